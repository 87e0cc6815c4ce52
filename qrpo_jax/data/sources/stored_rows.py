"""Prompts of rows that a stage of a run has written, with their completions, rewards and log-probs."""

import hashlib
from collections.abc import Mapping

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.held_out import about_held_out, divide
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.source import Source, SourceOptions
from qrpo_jax.data.tables.table import TRAIN
from qrpo_jax.errors import UserError
from qrpo_jax.stores.path import as_path


def open_rows(options: SourceOptions) -> Mapping[str, Source]:
    """Opens the rows of a stage's folder; stage `sft` learns from the rows that are trained on.

    Raises:
      UserError: about `path`, `split` or `held_out`; see `row_files.read` and `divide`.
    """
    train = _opened(options, options.split)
    with about_held_out():
        other = _opened(options, options.held_out) if isinstance(options.held_out, str) else None
    parts = divide(len(train), None if other is None else len(other), options)
    trained = _listed(options, train, parts.train, parts.left_out)
    held_out = _listed(options, train if other is None else other, parts.held_out)
    return {"sft": trained, "train": trained, "eval": held_out}


def identity(options: SourceOptions) -> str:
    """One digest of the rows."""
    folder = as_path(options.address)
    sums = [path.read_bytes() for path in sorted(folder.glob(f"{row_files.NAME}-*-of-*.json"))]
    return hashlib.sha256(b"".join(sums)).hexdigest()


def _opened(options: SourceOptions, split: str) -> row_files.RowSource:
    folder = as_path(options.address)
    if not options.address or not (folder / row_files.INFO_FILE).is_file():
        raise UserError(
            f"{options.address or 'nothing'} holds no rows ({row_files.INFO_FILE}); name the folder of a stage that "
            "writes rows, such as runs/mine/score",
            about="path",
        )
    return row_files.read(folder, split or TRAIN)


def _listed(options: SourceOptions, source: row_files.RowSource, part: range, left_out: int = 0) -> ListedRows:
    rows: list[Row] = [source[index] for index in part]
    if part and not rows:
        raise UserError(f"{options.address} holds no row; at least one prompt is needed", about="path")
    places = {row.id: f"{options.address}, row {index + 1}" for index, row in zip(part, rows, strict=True)}
    return ListedRows(rows, places, left_out=left_out)
