"""The sandbox that a job's reward runs model-written code in, from its config."""

import os
import sys
from typing import Any

from qrpo_jax.config.config import Config
from qrpo_jax.errors import UserError, located
from qrpo_jax.rewards.expressions import PACKAGE
from qrpo_jax.rewards.sandbox.launch import NotStartedError
from qrpo_jax.rewards.sandbox.pool import IsolationError, Sandbox
from qrpo_jax.rewards.sandbox.remote import RemoteSandbox
from qrpo_jax.rewards.sandbox.tasks import Limits

REMEDY = (
    "install bubblewrap, give the run's container user namespaces or seccomp, run code elsewhere with "
    "config.reward.command, or accept it by name; --config.stages=sandbox says what this machine holds"
)


def make_sandbox(
    config: Config, *, mathematics: bool = False, isolation: str = "", require: str = "", workers: int = 0
) -> Sandbox | RemoteSandbox:
    """The sandbox of section `reward`, not started yet.

    Args:
      config: section `reward`.
      mathematics: it has the library of the reward "math_verify", by default of the interpreter of this process.
      isolation, require, workers: in place of those of the config.
    """
    limits = Limits(config.cpu_seconds, config.memory_mb, config.output_kb << 10, config.failed_runs)
    options: dict[str, Any] = {
        "isolation": isolation or config.isolation,
        "require": require or config.require_isolation,
        "python": config.python or (sys.executable if mathematics and not config.command else ""),
        "preload": (*config.preload, *([PACKAGE] if mathematics else [])),
    }
    workers = workers or config.workers
    if config.command:
        return RemoteSandbox(config.command, limits, workers, **options)
    return Sandbox(limits, workers or os.cpu_count() or 1, **options)


def check_sandbox(config: Config, *, mathematics: bool = False) -> None:
    """Starts the sandbox with one worker and ends it.

    Args:
      config, mathematics: as in `make_sandbox`.

    Raises:
      UserError: it holds less than `reward.require_isolation`, or does not start; naming the key.
    """
    about = ("command",) if config.command else ("isolation", "require_isolation")
    keys = {name: f"reward.{name}" for name in ("command", "isolation", "require_isolation", "python", "preload")}
    with located("reward.command", **keys):
        try:
            with make_sandbox(config, mathematics=mathematics, workers=1):
                pass
        except IsolationError as error:
            raise UserError(f"{error}; {REMEDY}", about=about) from None
        except NotStartedError as error:
            raise UserError(f"the sandbox does not start: {error}", about=("python", "preload")) from None
