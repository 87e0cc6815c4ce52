"""Cursors in a Parquet file. Inside a group of rows Parquet can only be read forwards, so a reader that goes on later
should not begin again at the start of its group, which may have a million rows."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MOST_RECORDS = 256  # of a batch
MOST_BYTES = 8 << 20  # of a batch, with all columns
KEPT = 4  # cursors of a file, for so many readers at a time


class Cursors:
    """Some columns of a file by the numbers of records; threads may share it."""

    def __init__(self, file: pq.ParquetFile, columns: Sequence[str]) -> None:
        self._file, self._columns = file, list(columns)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        self._starts_G = np.cumsum([0, *(group.num_rows for group in groups)])
        size = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
        self._records = int(min(max(MOST_BYTES // max(size, 1), 1), MOST_RECORDS))
        self._lock = threading.Lock()
        self._cursors: list[_Cursor] = []  # the one that was used last is the last

    def batch(self, start: int, stop: int) -> pa.RecordBatch:
        """Records from `start` on, one at least, and none from `stop` on."""
        with self._lock:
            cursor = self._at(start)
            while cursor.first + cursor.batch.num_rows <= start:
                cursor.move()
            skipped = start - cursor.first
            return cursor.batch.slice(skipped, min(stop - start, cursor.batch.num_rows - skipped))

    def _at(self, start: int) -> "_Cursor":
        """The nearest cursor before a record in its group, or a new one."""
        group = int(np.searchsorted(self._starts_G, start, side="right")) - 1
        begin = int(self._starts_G[group])
        near = [
            cursor
            for cursor in self._cursors
            if begin <= cursor.first <= start or cursor.first + cursor.batch.num_rows == start
        ]
        if near:
            cursor = max(near, key=lambda one: one.first)
            self._cursors.remove(cursor)
        else:
            groups = range(group, len(self._starts_G) - 1)
            batches = self._file.iter_batches(self._records, row_groups=groups, columns=self._columns)
            cursor = _Cursor(batches, begin)
        self._cursors = [*self._cursors[-KEPT + 1 :], cursor]
        return cursor


class _Cursor:
    """Batches that are read one after the other; `batch` begins with record `first`."""

    def __init__(self, batches: Iterator[pa.RecordBatch], first: int) -> None:
        self._batches, self.first, self.batch = batches, first, next(batches)

    def move(self) -> None:
        self.first += self.batch.num_rows
        self.batch = next(self._batches)
