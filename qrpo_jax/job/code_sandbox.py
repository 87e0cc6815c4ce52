"""The sandbox that a job's reward runs model-written code in, from its config."""

from qrpo_jax.config.config import Config
from qrpo_jax.errors import UserError, located
from qrpo_jax.rewards.sandbox.launch import NotStartedError
from qrpo_jax.rewards.sandbox.pool import IsolationError, Sandbox
from qrpo_jax.rewards.sandbox.remote import RemoteSandbox
from qrpo_jax.rewards.sandbox.tasks import Limits

REMEDY = (
    "install bubblewrap, give the run's container user namespaces or seccomp, run code elsewhere with "
    "config.reward.command, or accept it by name; --config.stages=sandbox says what this machine holds"
)


def make_sandbox(
    config: Config, *, isolation: str = "", require: str = "", workers: int = 0, preload: tuple[str, ...] = ()
) -> Sandbox | RemoteSandbox:
    """The sandbox of section `reward`, not started yet.

    Args:
      config: section `reward`.
      isolation, require, workers: in place of those of the config.
      preload: modules to import first, besides those of the config.
    """
    limits = Limits(config.cpu_seconds, config.memory_mb, config.output_kb << 10, config.failed_runs)
    options = {
        "isolation": isolation or config.isolation,
        "require": require or config.require_isolation,
        "python": config.python,
        "preload": (*config.preload, *preload),
    }
    workers = workers or config.workers
    if config.command:
        return RemoteSandbox(config.command, limits, workers, **options)
    return Sandbox(limits, workers, **options)


def check_sandbox(config: Config, preload: tuple[str, ...] = ()) -> None:
    """Starts the sandbox with one worker and ends it.

    Raises:
      UserError: it holds less than `reward.require_isolation`, or does not start; naming the key.
    """
    about = ("command",) if config.command else ("isolation", "require_isolation")
    keys = {name: f"reward.{name}" for name in ("command", "isolation", "require_isolation", "python", "preload")}
    with located("reward.command", **keys):
        try:
            with make_sandbox(config, workers=1, preload=preload):
                pass
        except IsolationError as error:
            raise UserError(f"{error}; {REMEDY}", about=about) from None
        except NotStartedError as error:
            raise UserError(f"the sandbox does not start: {error}", about=("python", "preload")) from None
