"""Runs a config: `python -m qrpo_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command runs on a laptop and on every host of a pod. `--config.SECTION.KEY=VALUE` overrides a key, and
`--shard=i/n` runs one slice of the stages that split into units. A user's mistake prints one line and exits with status
2. Storage that fails, a loss that is not finite and a damaged file print one line and exit with status 1; a bug exits
with its traceback and status 1. Signals: see `interruption`.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

from qrpo_jax.faults.interruption import RUN

if __name__ == "__main__":
    RUN.listen()  # before the imports that take seconds

# transformers is used for its tokenizers alone; it would report on every start that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import FrozenConfigDict, config_flags

from qrpo_jax import pipeline
from qrpo_jax.devices import peers
from qrpo_jax.devices.cores import copies_that_fit, core_count, use_cores
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import DamagedError, UserError
from qrpo_jax.faults import storage
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.stages import STAGES
from qrpo_jax.training.logbook import NonFiniteLossError

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, such as configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The same command resumes an interrupted run.")
SHARD = flags.DEFINE_string("shard", "0/1", "i/n: run only slice i of n of the stages that split into units.")
DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "Join the other hosts of a TPU pod or a SLURM job.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for clusters that do not provide it.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, with --coordinator.")

USER_ERROR, RUN_ERROR = 2, 1


def parse_shard(text: str) -> Shard:
    """The shard of a text "i/n".

    Raises:
      UserError: the text has another form, or i is not below n.
    """
    index, slash, parts = text.partition("/")
    if not (slash and index.isdigit() and parts.isdigit() and int(index) < int(parts)):
        raise UserError(f"shard is {text!r}; allowed: i/n with 0 <= i < n, such as --shard=0/4")
    return Shard(int(index), int(parts))


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line and the config file; a mistake in either is one line and exit status 2."""
    config = config_file(argv)
    if config is not None:
        if not config.is_file():
            fail(f"no config file {config}; see --config", USER_ERROR)
        # Config files import configs/default.py. This makes it importable from any working directory.
        sys.path.append(str(config.resolve().parent.parent))
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # reading flags runs nothing but absl and the config file
        line = line_in(config, error) if config is not None else None
        message = text_of(error)
        fail(f"{config}, line {line}: {type(error).__name__}: {message}" if line else message, USER_ERROR)


def config_file(argv: list[str]) -> Path | None:
    """The config file that a command line names; the last one counts."""
    for i, word in reversed(list(enumerate(argv))):
        value = argv[i + 1] if word.lstrip("-") == "config" and i + 1 < len(argv) else word.partition("config=")[2]
        if value.endswith(".py"):
            return Path(value)
    return None


def text_of(error: BaseException) -> str:
    """An error's message; that of a KeyError, or of one inside another error, without the quotes around it."""
    inner = error.args[0] if error.args else ""
    if isinstance(inner, BaseException):
        return text_of(inner)
    return str(inner) if isinstance(error, KeyError) else str(error)


def line_in(file: Path, error: BaseException) -> int | None:
    """The innermost line of a file that an error passed through, or that is no Python."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == file.resolve():
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
    return lines[-1] if lines else None


def fail(message: str, status: int) -> NoReturn:
    """Prints one line and exits."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    raise SystemExit(status)


def leave(message: str, status: int) -> NoReturn:
    """Prints one line and exits at once: buffers that cannot be written would complain once more at a normal exit."""
    with contextlib.suppress(SystemExit):
        fail(message, status)
    peers.leave_together(status)


def quiet() -> None:
    """Keeps other libraries' log messages out of the terminal; warnings about how this program uses them remain."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("orbax", "jax", "grain", "absl", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def make_job() -> Job:
    """The job that the command line describes; joins the other processes of a distributed job first.

    Raises:
      UserError: flags that are missing or do not go together.
    """
    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("--config=configs/NAME.py and --workdir=DIR are needed")
    shard = parse_shard(SHARD.value)
    distributed = bool(DISTRIBUTED.value or COORDINATOR.value)
    if distributed and shard.parts > 1:
        raise UserError(
            "--shard is for independent processes; --distributed and --coordinator split the work themselves"
        )
    if not COORDINATOR.value and (PROCESSES.value is not None or PROCESS.value is not None):
        raise UserError("--processes and --process need --coordinator=HOST:PORT")
    use_cores(cpu_devices(CONFIG.value, distributed))
    if tuple(CONFIG.value.stages) == ("compile",) and CONFIG.value.compile.topology:
        jax.config.update("jax_platforms", "cpu")  # it opens devices that are not here, and needs none that are
    if distributed:
        peers.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        shard = Shard(jax.process_index(), jax.process_count())
    return Job(FrozenConfigDict(CONFIG.value), Path(WORKDIR.value), shard, STAGES)


def cpu_devices(config: Any, distributed: bool) -> int:
    """Devices of a job without an accelerator: one a core, but no more than a batch has units or memory has room for.

    Processes of a distributed job may share a machine, so each has one unless the config says otherwise.
    """
    if config.mesh.cpu_devices < 0:
        raise UserError(f"mesh.cpu_devices is {config.mesh.cpu_devices}; it must be at least 1, or 0 for one a core")
    if config.mesh.cpu_devices or distributed:
        return config.mesh.cpu_devices or 1
    batches = [config[stage].batch_size for stage in ("sft", "train") if stage in config.stages]
    weights = sum(path.stat().st_size for path in Path(config.model.path or "no folder").glob("*.safetensors"))
    return max(1, min([core_count(), copies_that_fit(weights), *batches]))


def main(argv: list[str]) -> None:
    quiet()
    storage.hush(Path(WORKDIR.value or "."))
    with peers.together():
        try:
            if len(argv) > 1:
                raise UserError(f"unknown argument {argv[1]!r}; see --help")
            complete = pipeline.run(make_job())
        except UserError as error:
            fail(str(error), USER_ERROR)
        except (NonFiniteLossError, DamagedError) as error:
            fail(str(error), RUN_ERROR)
        except Exception as error:
            line = storage.explain(error, Path(WORKDIR.value or "."))
            if line is None:
                raise
            leave(line, RUN_ERROR)
    if complete and is_first():
        print(f"done: {WORKDIR.value}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
