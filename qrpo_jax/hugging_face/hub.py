"""Models of the Hugging Face hub, by id: resolved to a commit, and downloaded into the hub's cache (extra `hf`).

Of a model only its configuration, tokenizer, safetensors, model card and licence are downloaded, so no code and no
pickle. The cache's own locks let several processes of a host share a download.
"""

import errno
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from qrpo_jax.errors import UserError, reason
from qrpo_jax.hugging_face.base_card import CARD, DOCUMENTS
from qrpo_jax.hugging_face.json_values import read_json
from qrpo_jax.hugging_face.tokenizer import FILES, SETTINGS, TEMPLATES
from qrpo_jax.hugging_face.weights import INDEX

ID = re.compile(r"(?P<name>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
CONFIG = "config.json"
WITHOUT_WEIGHTS = (
    CONFIG,
    "generation_config.json",
    *FILES.split(),
    SETTINGS,
    f"{TEMPLATES}/*.jinja",
    INDEX,
    CARD,
    *DOCUMENTS,
)
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


class HubModel(NamedTuple):
    """A model of the hub.

    Attributes:
      revision: a branch, a tag or a commit; "" for the default branch.
    """

    name: str
    revision: str


def read_id(text: str) -> HubModel | None:
    """The model of the hub that a text can name; None for other paths.

    >>> read_id("org/name"), read_id("org/name@v1.0"), read_id("models/org/name"), read_id("./org")
    (HubModel(name='org/name', revision=''), HubModel(name='org/name', revision='v1.0'), None, None)
    """
    found = ID.fullmatch(text)
    return None if found is None else HubModel(found["name"], found["revision"] or "")


def resolve(model: HubModel) -> str:
    """The commit that the model's revision is now; where the hub cannot be reached, what it was in the cache.

    Raises:
      UserError: about `path`: there is no such model or revision, it cannot be reached, or the library is missing.
    """
    return _snapshot(model, model.revision, (CONFIG,)).name


def download(model: HubModel, commit: str, *, weights: bool) -> Path:
    """The folder of a model at a commit, in the hub's cache.

    Args:
      weights: whether its weights are needed, or configuration and tokenizer alone.

    Raises:
      UserError: as `resolve`, or the model is not in Hugging Face layout.
    """
    folder = _snapshot(model, commit, WITHOUT_WEIGHTS)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{model.name} of the hub has no {CONFIG} at commit {commit}; name a whole model", about="path")
    if weights:
        # By name: some models also have their weights in another layout, such as consolidated.safetensors.
        files = ["model.safetensors", *map(glob.escape, _indexed(folder / INDEX))]
        missing = not all((folder / file).is_file() for file in _indexed(folder / INDEX) or files)
        folder = _snapshot(model, commit, (*WITHOUT_WEIGHTS, *files), bars=missing)
    return folder


def _indexed(index: Path) -> list[str]:
    """Names of the files in an index of weights; none where there is no index."""
    files = read_json(index).get("weight_map", {}) if index.is_file() else {}
    names = set(files.values()) if isinstance(files, dict) else set()
    return sorted(name for name in names if isinstance(name, str) and name.endswith(".safetensors"))


class _Silent(tqdm):
    """A progress bar that is not shown."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"disable": True})


def _snapshot(model: HubModel, revision: str, patterns: Sequence[str], *, bars: bool = False) -> Path:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it advises those who have not logged in
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"model folder {model.name} does not exist, and models of the hub need the library huggingface_hub, which "
            "is not installed: pip install -e '.[hf]'",
            about="path",
        ) from None
    try:
        found = snapshot_download(
            model.name,
            revision=revision or None,
            allow_patterns=list(patterns),
            tqdm_class=None if bars else _Silent,
        )
        return Path(found)
    except Exception as error:  # of the library, of its client, of the network
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(_explained(model, revision, error), about="path") from None


def _explained(model: HubModel, revision: str, error: Exception) -> str:
    """One line on why the hub gave no model."""
    from huggingface_hub import errors

    name = model.name
    if isinstance(error, errors.GatedRepoError):
        return f"model {name} of the hub is gated: accept its terms on its page, then {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"model {name} of the hub has no revision {revision or 'main'!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"model folder {name} does not exist, and the hub has no model of that name, or a private one: correct it, "
            f"or {LOG_IN}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"model folder {name} does not exist, and the hub cannot be reached, nor does its cache have the model: "
            "check the network and HF_HUB_OFFLINE, or name a folder"
        )
    return f"model {name} of the hub cannot be downloaded: {reason(error)}"
