"""Folders of the models that a config names: local ones, addresses, and models of the hub, pinned to a commit.

A commit is looked up once. Every stage records it in its settings, so a run that starts again, or is forked, takes it
from there, also when the branch has moved since.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from qrpo_jax.devices.processes import from_first, is_first
from qrpo_jax.errors import UserError
from qrpo_jax.faults.records import read_record
from qrpo_jax.hugging_face import hub
from qrpo_jax.job.manifest import SETTINGS
from qrpo_jax.stores.path import as_path


class ModelFolder(NamedTuple):
    """Where a model is.

    Attributes:
      commit: of a model of the hub; "" for a folder or address.
      hub_id: ORG/NAME of a model of the hub; "" likewise.
      note: a line for the user; empty if there is nothing to say.
    """

    folder: Path
    commit: str = ""
    hub_id: str = ""
    note: str = ""


def commit_setting(key: str) -> str:
    """The name of the commit of a config key's model among the settings of a stage."""
    return f"{key} commit"


def find(section: str, text: str, runs: Sequence[Path], *, weights: bool) -> ModelFolder:
    """The folder that a config names, which is downloaded if it is of the hub. All processes call it together.

    Args:
      section: "model" or "reward".
      text: a folder, an address, or ORG/NAME[@REVISION] of the hub; a local folder of that name wins.
      runs: work directories whose stages may have recorded the commit.
      weights: whether weights are needed.

    Raises:
      UserError: see `hub.resolve` and `hub.download`.
    """
    model = hub.read_id(text)
    if model is None:
        return ModelFolder(as_path(text))
    if os.path.exists(text):
        return ModelFolder(as_path(text), note=f"{section}: {text} is a folder here, and the hub is not asked for it")
    commit = _agreed(lambda: commit_of(section, text, tuple(runs)))
    folder = hub.download(model, commit, weights=weights)
    return ModelFolder(folder, commit, model.name, f"{section}: {model.name} of the hub at commit {commit} ({folder})")


@functools.lru_cache(maxsize=8)
def commit_of(section: str, text: str, runs: tuple[Path, ...]) -> str:
    """The commit of a model of the hub: the one that a run has recorded for this text, or else the current one."""
    key = f"{section}.path"
    for path in (path for run in runs if run.is_dir() for path in sorted(run.glob(f"*/{SETTINGS}"))):
        settings = read_record(path)
        if settings.get(key) == text and commit_setting(key) in settings:
            return settings[commit_setting(key)]
    model = hub.read_id(text)
    assert model is not None, "callers look for others in the file system"
    return hub.resolve(model)


def _agreed(find_commit: Callable[[], str]) -> str:
    """What the first process finds, on all processes; all raise its error."""
    if not jax.distributed.is_initialized():  # and no device may be touched yet
        return find_commit()
    commit = refused = ""
    if is_first():
        try:
            commit = find_commit()
        except UserError as error:
            refused = error.message
    if refused := from_first(refused):
        raise UserError(refused, about="path")
    return from_first(commit)
