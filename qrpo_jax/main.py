"""Runs a config: `python -m qrpo_jax.main --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command runs on a laptop and on every host of a pod; `--config.SECTION.KEY=VALUE` overrides a key, and
`--shard=i/n` makes one slice of the row stages anywhere. A user's mistake exits with status 2 and one line.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

# The tokenizers are all that is used of transformers, which would otherwise report that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import FrozenConfigDict, config_flags

from qrpo_jax import pipeline
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.training.logbook import NonFiniteLossError

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, such as configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps everything it makes; run again to go on.")
SHARD = flags.DEFINE_string("shard", "0/1", "i/n: make only slice i of n of the row stages (sample, score, ...).")
DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "Join the other hosts of a TPU pod or a SLURM job.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where the cluster does not tell.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, with --coordinator.")

USER_ERROR, RUN_ERROR = 2, 1


def parse_shard(text: str) -> Shard:
    """The shard i/n.

    Raises:
      ValueError: not of that form, or i not below n.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard is {text!r}; allowed: i/n with 0 <= i < n, such as --shard=0/4")
    return Shard(int(index), int(count))


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line; a mistake in it is the user's, and is told in one line."""
    # A config file may build on configs/default.py, wherever the command is run from.
    for i, word in enumerate(argv):
        value = argv[i + 1] if word.lstrip("-") == "config" and i + 1 < len(argv) else word.partition("config=")[2]
        if value.endswith(".py"):
            sys.path.append(str(Path(value).resolve().parent.parent))
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        return fail(str(error).strip('"'), USER_ERROR)


def fail(message: str, status: int) -> list[str]:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    raise SystemExit(status)


def quiet() -> None:
    """Keeps other libraries' chatter out of the terminal; their warnings about this program's use stay."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("orbax", "jax", "grain", "absl", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def raised_here(error: BaseException) -> bool:
    """Whether this program raised the error itself, to tell the user something; libraries' errors are bugs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals["__name__"]).partition(".")[0] in ("qrpo_jax", "__main__")


def main(argv: list[str]) -> None:
    quiet()
    try:
        if len(argv) > 1:
            raise ValueError(f"unknown argument {argv[1]!r}; see --help")
        if CONFIG.value is None or WORKDIR.value is None:
            raise ValueError("--config=configs/NAME.py and --workdir=DIR are needed")
        shard = parse_shard(SHARD.value)
        if (DISTRIBUTED.value or COORDINATOR.value) and shard.count > 1:
            raise ValueError("--shard is for processes on their own; --distributed and --coordinator split the work")
        if not COORDINATOR.value and (PROCESSES.value is not None or PROCESS.value is not None):
            raise ValueError("--processes and --process need --coordinator=HOST:PORT")
        if DISTRIBUTED.value or COORDINATOR.value:
            jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
            shard = Shard(jax.process_index(), jax.process_count())
        complete = pipeline.run(Job(FrozenConfigDict(CONFIG.value), Path(WORKDIR.value), shard))
    except ValueError as error:
        if not raised_here(error):
            raise
        fail(str(error), USER_ERROR)
    except NonFiniteLossError as error:
        fail(str(error), RUN_ERROR)
    if complete and jax.process_index() == 0:
        print(f"done: {WORKDIR.value}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
