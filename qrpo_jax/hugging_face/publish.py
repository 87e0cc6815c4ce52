"""Publishes an exported folder as a model of the hub (extra `hf`)."""

import os
import re
from pathlib import Path

from qrpo_jax.errors import ServerError, UserError, reason
from qrpo_jax.files import local_folder
from qrpo_jax.hugging_face.hub import LOG_IN

NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def check_name(name: str) -> None:
    """Refuses what is no name of a model.

    Raises:
      UserError: about `name`.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"push_to_hub is {name!r}; allowed: ORG/NAME, or '' to publish nothing", about="name")


def check_access() -> None:
    """Refuses to begin where the library is missing, or the hub knows nobody with this token.

    Raises:
      UserError: about `name`.
    """
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(
            "push_to_hub needs the library huggingface_hub, which is not installed: pip install -e '.[hf]'",
            about="name",
        ) from None
    try:
        HfApi().whoami(cache=True)
    except Exception as error:  # of the library, of its client, of the network
        unknown = f"push_to_hub: the hub does not know who you are: {reason(error)}; {LOG_IN}"
        raise UserError(unknown, about="name") from None


def push(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a folder's files as one commit, to a model that is made if it is missing; returns the commit's address.

    Args:
      name: ORG/NAME.
      private: of a model that is made; one that is there stays as it is.

    Raises:
      ServerError: the hub refused.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=local_folder(folder), commit_message="Upload a model that qrpo-jax has trained"
        )
        return str(done.commit_url)
    except Exception as error:  # of the library, of its client, of the network
        raise ServerError(
            f"{folder} is complete, but the hub did not take it as {name}: {reason(error)}; the same command tries "
            "again"
        ) from None
