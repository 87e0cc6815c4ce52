"""Runs a config: `python -m qrpo_jax.main --config=quickstart --workdir=runs/quickstart`.

The same command runs on a laptop and on every host of a pod; installed, it is also called `qrpo-jax`. A user's mistake
prints one line and exits with status 2. Storage or a server that fails, a loss that is not finite and a damaged file
print one line and exit with status 1; a bug exits with its traceback and status 1. Signals: see `interruption`.

Libraries are imported when the command line and the config have been read, so that a mistake in them is answered at
once.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qrpo_jax import command_line
from qrpo_jax.command_line import Request, RowsRequest
from qrpo_jax.errors import DamagedError, FailuresError, PeerError, PointsError, ServerError, UserError, located
from qrpo_jax.faults import storage
from qrpo_jax.faults.interruption import RUN
from qrpo_jax.stages import STAGES

if TYPE_CHECKING:
    from qrpo_jax.job.job import Job
    from qrpo_jax.job.shard import Shard

USER_ERROR, RUN_ERROR = 2, 1


def run(argv: Sequence[str]) -> None:
    """Runs a command line; returns if that was without an error.

    Args:
      argv: begins with the name of the program.

    Raises:
      SystemExit: with status 2 for a user's mistake and 1 for an error of the run; 0 after help.
    """
    try:
        request = command_line.read(argv)
    except UserError as error:
        fail(str(error), USER_ERROR)
    quiet()

    storage.hush(request.workdir)
    if isinstance(request, RowsRequest):
        with errors_in_one_line(request.to or request.workdir):
            command_line.show(request.answer())
        return

    from qrpo_jax import pipeline
    from qrpo_jax.devices import peers
    from qrpo_jax.devices.processes import is_first
    from qrpo_jax.training.logbook import NonFiniteLossError

    with peers.together(), errors_in_one_line(request.workdir, NonFiniteLossError):
        complete = run_sweep(request) if request.points else pipeline.run(make_job(request), request.fork)
    if complete and is_first():
        print(f"done: {request.workdir}", file=sys.stderr)


@contextlib.contextmanager
def errors_in_one_line(workdir: Path, *others: type[Exception]) -> Iterator[None]:
    """Exits after one line for a mistake of the user, and for an error of the run that is no bug.

    Args:
      others: types of further errors that are no bugs.
    """
    try:
        yield
    except UserError as error:
        fail(str(error), USER_ERROR)
    except (DamagedError, FailuresError, PeerError, PointsError, ServerError) as error:
        fail(str(error), RUN_ERROR)
    except Exception as error:
        if isinstance(error, others):
            fail(str(error), RUN_ERROR)
        line = storage.explain(error, workdir)
        if line is None:
            raise
        leave(line, RUN_ERROR)


def fail(message: str, status: int) -> NoReturn:
    """Prints one line and exits."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    raise SystemExit(status)


def leave(message: str, status: int) -> NoReturn:
    """Prints one line and exits at once: buffers that cannot be written would complain once more at a normal exit."""
    from qrpo_jax.devices import peers

    with contextlib.suppress(SystemExit):
        fail(message, status)
    peers.leave_together(status)


def quiet() -> None:
    """Keeps other libraries' log messages out of the terminal; warnings about how this program uses them remain."""
    # transformers is used for its tokenizers alone; it would report on every start that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from absl import flags
    from absl import logging as absl_logging

    flags.FLAGS.mark_as_parsed()  # libraries define flags and read their defaults
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("orbax", "jax", "grain", "absl", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def make_job(request: Request) -> "Job":
    """The job that was asked for; joins the other processes of a distributed job first."""
    from ml_collections import FrozenConfigDict

    from qrpo_jax.job.job import Job

    shard = prepare(request)
    return Job(FrozenConfigDict(request.config), request.workdir, shard, STAGES, request.fork)


def run_sweep(request: Request) -> bool:
    """Runs the points of a sweep; returns whether all are complete."""
    from qrpo_jax.job.shard import Shard
    from qrpo_jax.sweep import run as sweep
    from qrpo_jax.sweep.plan import begun

    shard = prepare(request)
    # Without --distributed the shard is one of points, and each of them is whole.
    points, units = (Shard(0, 1), shard) if request.distributed else (shard, Shard(0, 1))
    known = begun(request.workdir, request.fork)
    return sweep.run(sweep.Sweep(request.workdir, request.points, points, units, STAGES, request.fork, known))


def prepare(request: Request) -> "Shard":
    """Sets this process up, and joins the others of a distributed job; returns its share of the work."""
    import jax

    from qrpo_jax.devices.cores import use_cores
    from qrpo_jax.devices.program.cache import keep_programs
    from qrpo_jax.job.shard import Shard
    from qrpo_jax.sweep.plan import begun

    config, shard = request.config, Shard(*request.shard)
    runs: tuple[Path, ...] = (request.workdir,) if request.fork is None else (request.workdir, request.fork)
    runs = begun(request.workdir, request.fork) if request.points else runs
    configs = [point.config for point in request.points] or [config]
    use_cores(min(cpu_devices(one, request.distributed, runs) for one in configs))
    keep_programs()
    if tuple(config.stages) == ("inspect",) or (tuple(config.stages) == ("compile",) and config.compile.topology):
        jax.config.update("jax_platforms", "cpu")  # the devices that are here are not needed, and may be busy
    if request.distributed:
        from qrpo_jax.devices import peers
        from qrpo_jax.devices.roll_call import program_facts
        from qrpo_jax.job.manifest import flatten
        from qrpo_jax.model import attention

        given = {f"config.{key}": value for key, value in flatten(config.to_dict()).items()}
        facts, seconds = program_facts() | given, request.join_timeout
        peers.join(request.coordinator, request.processes, request.process, facts=facts, seconds=seconds)
        shard = Shard(jax.process_index(), jax.process_count())
        with located(attention="model.attention"):
            for name in sorted({one.model.attention for one in configs if needs_model(one)}):
                attention.check_processes(name, jax.default_backend())
    return shard


def needs_model(config: Any) -> bool:
    """Whether any stage of a run computes with a model."""
    return any(STAGES[name].needs_model for name in config.stages)


def cpu_devices(config: Any, distributed: bool, runs: Sequence[Path] = ()) -> int:
    """Devices of a job without an accelerator: one a core, but no more than a batch has units or memory has room for.

    Processes of a distributed job may share a machine, so each has one unless the config says otherwise.

    Args:
      runs: work directories that may have recorded which commit of the hub the model is.
    """
    from qrpo_jax.devices.cores import copies_that_fit, core_count
    from qrpo_jax.job import model_folders
    from qrpo_jax.job.stage import needs_weights

    if config.mesh.cpu_devices or distributed:
        return config.mesh.cpu_devices or 1
    batches = [config[stage].batch_size for stage in ("sft", "train") if stage in config.stages]
    weights = 0
    if config.model.path and needs_model(config):
        with located("model.path"):
            loads = needs_weights(config, STAGES)
            folder = model_folders.find("model", config.model.path, runs, weights=loads).folder
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return max(1, min([core_count(), copies_that_fit(weights), *batches]))


def command() -> None:
    """The command `qrpo-jax`. Functions that a config names may lie in the working directory, as with `python -m`."""
    RUN.listen()  # before the imports that take seconds
    if "" not in sys.path and os.getcwd() not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    try:
        run(sys.argv)
    finally:
        RUN.done()


if __name__ == "__main__":
    command()
