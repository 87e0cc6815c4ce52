"""The rows that a stage has written into a work directory, found by its name alone, also while it goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qrpo_jax.config.keys import did_you_mean
from qrpo_jax.data import row_files
from qrpo_jax.data.row_files import RowSource, Units
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import DamagedError, UserError, shown


@dataclass(frozen=True)
class WrittenRows:
    """The complete units of a stage.

    Attributes:
      name: of the stage, or of one of its sides, such as evaluate/policy or harness/gsm8k/policy.
    """

    name: str
    folder: Path
    units: Units

    def unit(self, unit: int) -> RowSource:
        """The rows of a complete unit.

        Raises:
          DamagedError: its file is not what was written.
        """
        if not row_files.unit_whole(self.folder, unit, self.units.total):
            path = row_files.unit_path(self.folder, unit, self.units.total)
            raise DamagedError(path, "it is not what was written", "run its stage again, which makes it again")
        return row_files.read_unit(self.folder, unit, self.units.total)

    def __iter__(self) -> Iterator[Row]:
        """All rows, a unit in memory at a time."""
        for unit in self.units.infos:
            yield from self.unit(unit)

    def at(self, index: int) -> Row:
        """The row of an index, counted from 0 over the complete units."""
        for unit, info in self.units.infos.items():
            if index < info.count:
                return self.unit(unit)[index]
            index -= info.count
        raise IndexError(index)


def open_written(workdir: Path, name: str, flag: str) -> WrittenRows:
    """The rows of a stage.

    Args:
      flag: that names it, for messages.

    Raises:
      UserError: there is no such stage, or it has written no rows.
    """
    there = stages_with_rows(workdir)
    if name not in there:
        found = f"{workdir} has those of {', '.join(there)}" if there else f"no stage in {workdir} has any"
        raise UserError(f"--{flag}={shown(name)[1:-1]} has no rows; {found}{did_you_mean(name, there)}")
    return WrittenRows(name, workdir / name, row_files.units_of(workdir / name))


def stages_with_rows(workdir: Path) -> list[str]:
    """Names of the stages, of their sides, and of those of the tasks of a stage, that have written rows."""
    pattern = f"{row_files.NAME}-train.array_record-*"
    folders = {path.parent for deep in ("*", "*/*", "*/*/*") for path in workdir.glob(f"{deep}/{pattern}")}
    return sorted(folder.relative_to(workdir).as_posix() for folder in folders)
