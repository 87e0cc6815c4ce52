"""A stage's rows as Parquet files, unit after unit: for other programs, and for sources `parquet:FILES` of this one."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from tqdm import tqdm

from qrpo_jax.data.parquet_rows import ROW_LAYOUTS, fits, row_groups
from qrpo_jax.errors import UserError
from qrpo_jax.files import whole_file
from qrpo_jax.job.written_rows import WrittenRows, open_written
from qrpo_jax.stores.path import as_path

FOLDER = "parquet"  # in the work directory
FILE_BYTES = 1 << 28  # of the stage's own files that go into a file, about
HELD_OUT = "evaluate"  # its rows are of held-out prompts
FLAG = "export-rows"


class Exported(NamedTuple):
    """What was written.

    Attributes:
      pattern: of the files, as a source names them.
    """

    pattern: str
    rows: int
    files: int
    layout: str

    def lines(self) -> list[str]:
        """For the terminal."""
        lost = ROW_LAYOUTS[self.layout].lost
        kept = f"without {lost} (--layout=rows keeps all)" if lost else "with all that they have"
        return [
            f"{self.rows:,} rows in {self.files} file{'s' * (self.files > 1)}, layout {self.layout!r}, {kept}",
            f"to read them: --config.prompts.source=parquet:{self.pattern}",
        ]


def export_rows(workdir: Path, stage: str, target: Path | None = None, layout: str = "") -> Exported:
    """Writes the rows of a finished stage. Files that are there already, of the same names, are replaced.

    Args:
      stage: or one of its sides, such as evaluate/policy.
      target: folder of the files; by default `parquet/STAGE` in the work directory.
      layout: a key of `ROW_LAYOUTS`; "" for the published one if all rows fit it, else `rows`.

    Raises:
      UserError: there are no such rows, or not all yet; a row does not fit the layout; the folder has other files.
      DamagedError: what describes the rows is not what was written.
    """
    rows = open_written(workdir, stage, FLAG)
    if not rows.units.whole:
        raise UserError(
            f"--{FLAG}={stage}: {len(rows.units.infos)} of {rows.units.total} units are complete; let the stage finish"
        )
    layout = layout or ("qrpo" if fits(rows, "qrpo") else "rows")
    folder = as_path(target or workdir / FOLDER / stage)
    files = plan_files(rows)
    split = "test" if stage.partition("/")[0] == HELD_OUT else "train"
    paths = [folder / f"{split}-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))]
    check_folder(folder, paths)
    with tqdm(total=rows.units.total, desc=FLAG, unit="unit", mininterval=0.5) as bar:
        for path, units in zip(paths, files, strict=True):
            write_file(path, rows, units, layout, bar)
    return Exported(f"{folder}/*.parquet", rows.units.rows, len(files), layout)


def plan_files(rows: WrittenRows) -> list[list[int]]:
    """The units of each file: consecutive ones of about `FILE_BYTES` together, one at least."""
    files: list[list[int]] = []
    size = 0
    for unit, info in rows.units.infos.items():
        if not files or size + info.bytes > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(unit)
        size += info.bytes
    return files


def write_file(path: Path, rows: WrittenRows, units: list[int], layout: str, bar: tqdm) -> None:
    """Writes the rows of some units as one file, whole or not at all."""

    def each() -> Iterator:
        for unit in units:
            yield from rows.unit(unit)
            bar.update()

    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, ROW_LAYOUTS[layout].schema, compression="zstd") as writer,
    ):
        for group in row_groups(each(), layout):
            writer.write_table(group)


def check_folder(folder: Path, paths: list[Path]) -> None:
    """Refuses a folder with other Parquet files, which a pattern would read too.

    Raises:
      UserError: naming one of them.
    """
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"--to={folder} is a file; name a folder")
        return
    others = {path.name for path in folder.glob("*.parquet")} - {path.name for path in paths}
    if others:
        raise UserError(f"{folder} has other files, such as {min(others)}; remove them, or name a folder with --to")
