"""The rows that a stage reads: those of the last stage before it that wrote some, or else those of the data set."""

from collections.abc import Callable
from typing import NamedTuple

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.source import Source
from qrpo_jax.job.completions import fitting
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import Prompts, open_listed, open_prompts
from qrpo_jax.job.units import Counts, row_units

BLOCK = 1024  # rows of a data set that are read at a time


class StageRows(NamedTuple):
    """Rows in units.

    Attributes:
      total: number of rows, before any is left out.
      read: from a unit's number to its rows, and counts of rows that were left out.
      identity: from a unit's number to text that differs between other contents; "" where the settings of a run tell.
      counts: what the data set dropped before any unit was read, if this stage is the first to read it.
    """

    units: int
    total: int
    read: Callable[[int], tuple[list[Row], Counts]]
    identity: Callable[[int], str] = lambda unit: ""
    counts: Counts = {}


def rows_of(job: Job, stage: str) -> StageRows:
    """The rows of a stage that works in units.

    Raises:
      UserError: no stage before it writes rows, and the prompts bring none.
    """
    if reads_source(job, stage):
        return _of_prompts(job, open_prompts(job, stage))
    folder = job.folder(job.rows_before(stage))
    units = row_units(folder)
    infos = [row_files.unit_info(folder, unit, units) for unit in range(units)]
    return StageRows(
        units,
        sum(info.count for info in infos if info),
        lambda unit: (list(row_files.read_unit(folder, unit, units)), {}),
        [info.sha256 if info else "" for info in infos].__getitem__,
    )


def rows_in_blocks(job: Job, stage: str) -> StageRows:
    """As `rows_of`, for a stage that does not work in units itself, so that those of a data set may have any size."""
    if reads_source(job, stage):
        return _of_prompts(job, Prompts(open_listed(job, "train"), BLOCK))
    return rows_of(job, stage)


def whole_source(source: Source) -> StageRows:
    """All rows of a source, in blocks."""
    prompts = Prompts(source, BLOCK)
    return StageRows(prompts.units, source.count, lambda unit: (prompts.rows(unit), {}), counts=prompts.counts)


def reads_source(job: Job, stage: str) -> bool:
    """Whether no stage before it writes rows, so that it reads those that the prompts bring."""
    names = job.config.stages
    return not any(job.stages[name].writes_rows for name in names[: names.index(stage)])


def _of_prompts(job: Job, prompts: Prompts) -> StageRows:
    """Rows of a data set without those whose prompt is too long, as stage `sample` would leave them."""

    def read(unit: int) -> tuple[list[Row], Counts]:
        rows = prompts.rows(unit)
        tokens = [job.text.prompt(row.messages, f"row {row.id!r}") for row in rows]
        kept, counts = fitting(rows, tokens, job.config.prompts.max_tokens)
        return [rows[i] for i in kept], counts

    return StageRows(prompts.units, prompts.source.count, read, counts=prompts.counts)
