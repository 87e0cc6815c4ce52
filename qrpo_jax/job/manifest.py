"""The records in a stage's folder: settings, written when it starts, and a manifest, written when it is complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.files import TEMPORARY, sweep

SETTINGS = "settings.json"
MANIFEST = "manifest.json"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"train.beta": 0.1, ...}, with tuples as lists, as JSON returns them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting that differs, and one for each section that only one side has.

    >>> difference({"seed": 0, "sft.rows": 7}, {"seed": 1, "train.beta": 0.1, "train.steps": 5})
    ['seed: 0 -> 1', 'sft: 1 setting -> (absent)', 'train: (absent) -> 2 settings']
    """
    absent = "(absent)"
    sections = _by_section(old), _by_section(new)
    phrases = []
    for section in sorted(sections[0].keys() | sections[1].keys()):
        had, has = (side.get(section, {}) for side in sections)
        if section and not (had and has):
            counts = (f"{len(x)} setting{'' if len(x) == 1 else 's'}" if x else absent for x in (had, has))
            phrases.append(f"{section}: {' -> '.join(counts)}")
            continue
        keys = sorted(k for k in had.keys() | has.keys() if (k in had) != (k in has) or had[k] != has[k])
        phrases += [f"{k}: {had.get(k, absent)!r} -> {has.get(k, absent)!r}" for k in keys]
    return phrases


def _by_section(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings as {"train": {"train.beta": 0.1, ...}, ...}; those without a section are in ""."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, dot, _ = key.partition(".")
        sections.setdefault(section if dot else "", {})[key] = value
    return sections


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a folder that was started with other settings, or that this program did not create.

    Raises:
      UserError: naming what differs.
      DamagedError: the record of the settings is not what was written.
    """
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and any(not entry.name.startswith(TEMPORARY) for entry in folder.iterdir()):
            raise UserError(f"{folder} was not made by this program; choose another --workdir")
        return
    changes = difference(read_record(path), settings)
    if changes:
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(changes)}); "
            f"choose another --workdir, set them back, or remove {folder} and the stages after it"
        )


def begin(folder: Path, settings: Mapping[str, Any], *, alone: bool) -> None:
    """Records the settings of a stage that starts, or starts again after a kill.

    Args:
      alone: no other shard can be writing into the folder, so leftovers of killed writers are removed.
    """
    if alone:
        sweep(folder)
    if not (folder / SETTINGS).exists():
        write_record(folder / SETTINGS, settings)


def complete(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Marks a stage as complete."""
    write_record(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage; None while it is not complete.

    Raises:
      DamagedError: it is not what was written.
    """
    path = folder / MANIFEST
    return read_record(path) if path.exists() else None
