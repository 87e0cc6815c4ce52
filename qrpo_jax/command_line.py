"""The command line: flags, the config with its overrides, and their checks, before anything heavy is imported."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import flags

import qrpo_jax
from qrpo_jax.config import Config, files, help, overrides
from qrpo_jax.config.keys import shown
from qrpo_jax.errors import UserError
from qrpo_jax.job import status
from qrpo_jax.job.source_check import check_source, needs_no_samples
from qrpo_jax.job.stage import check_order
from qrpo_jax.stages import STAGES
from qrpo_jax.stores.path import StorePath, as_path
from qrpo_jax.sweep import status as sweep_status
from qrpo_jax.sweep.points import Point, check_shard, points_of

HELP = {
    "config": "a shipped config by name, such as quickstart, or the path of a config file",
    "workdir": "folder of the run, or its address in an object store; the same command resumes an interrupted run",
    "fork": "work directory of another run: take over its stages whose settings agree, and run the others",
    "shard": "i/n: run only slice i of n of the stages that split into units; of a sweep, the points i, i+n, ...",
    "distributed": "join the other hosts of a TPU pod or a SLURM job",
    "coordinator": "HOST:PORT of process 0, for clusters that do not provide it",
    "processes": "number of processes, with --coordinator",
    "process": "index of this process, with --coordinator",
    "join-timeout": "seconds to wait for processes that have not come",
    "status": "say how far the run in --workdir is, and what must still run; with --json for programs",
    "export-rows": "write the rows of a stage of --workdir as Parquet files: STAGE, such as score or evaluate/policy",
    "to": "with --export-rows: folder of the files, or its address; by default parquet/STAGE in the work directory",
    "layout": "with --export-rows: qrpo (as published) or rows (all that is known); by default the first that fits",
    "show-row": "print one row of a stage of --workdir: STAGE:INDEX, with an index from 0, or STAGE:ID",
    "help": "print this; --help=SECTION prints one section of the config",
    "version": "print the version",
}
ROW_LAYOUTS = "qrpo", "rows"
ASKS = re.compile(r"--?(help|helpfull|helpshort|h|version)(?:=(.*))?")


class Request(NamedTuple):
    """What a command line asks for.

    Attributes:
      config: every key, checked on its own.
      workdir: folder of the run.
      fork: folder of a run whose stages are taken over, or None.
      shard: (i, n): slice i of n of the work; of a sweep, of its points.
      distributed: other processes work on the same run.
      coordinator, processes, process: how they find each other; None if the cluster says it.
      join_timeout: seconds to wait for those that have not come.
      points: of the config's sweep; empty without one.
    """

    config: Config
    workdir: Path
    fork: Path | None
    shard: tuple[int, int]
    distributed: bool
    coordinator: str | None
    processes: int | None
    process: int | None
    join_timeout: int
    points: tuple[Point, ...] = ()


class RowsRequest(NamedTuple):
    """Rows of a work directory, to look at or to write in another form.

    Attributes:
      workdir: folder of the run.
      row: "STAGE:INDEX" or "STAGE:ID" of the one to print; None to export.
      stage: whose rows are exported.
      to: folder of the files; None for the default one.
      layout: of the files; "" for the first that fits.
    """

    workdir: Path
    row: str | None
    stage: str
    to: Path | None
    layout: str

    def answer(self) -> str:
        """What is printed. Reads rows, and writes them where that is asked for.

        Raises:
          UserError: there are no such rows, or they cannot be written so.
        """
        from qrpo_jax.job import row_export, row_lookup  # with libraries that take seconds

        if self.row is not None:
            return "\n".join(row_lookup.row_lines(self.workdir, self.row, terminal_width()))
        return "\n".join(row_export.export_rows(self.workdir, self.stage, self.to, self.layout).lines())


def read(argv: Sequence[str]) -> Request | RowsRequest:
    """The request of a command line. Prints and exits with status 0 if that asks for help, version or status.

    Args:
      argv: begins with the name of the program.

    Raises:
      UserError: a mistake in the command line or in the config.
    """
    answer(argv[1:])
    words, given = overrides.split(argv[1:], files.default_config())
    values = parse_flags([argv[0], *words])
    if values.status or values.json:
        answer_status(values)
    if rows := rows_request(values):
        return rows
    shard, distributed = parse_shard(values.shard), bool(values.distributed or values.coordinator)
    check_processes(values, shard, distributed)
    if values.config is None or values.workdir is None:
        raise UserError("--config=NAME and --workdir=DIR are needed; see --help")
    workdir = folder("workdir", values.workdir)
    other = None if values.fork is None else folder("fork", values.fork)
    config = files.read(values.config)
    overrides.apply(config, given)
    check_order(config.stages, STAGES, needs_no_samples(config))
    if any(STAGES[name].needs_model for name in config.stages):
        check_source(config)
    points = points_of(config)
    check_shard(shard, points, forked=other is not None)
    many = distributed, values.coordinator, values.processes, values.process, values["join-timeout"].value
    return Request(config, workdir, other, shard, *many, points)


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line without overrides of the config.

    Raises:
      UserError: an unknown flag or argument, or a value of another type.
    """
    values = flags.FlagValues()  # without the flags that imported libraries define
    for name in ("config", "workdir", "fork", "coordinator", "export-rows", "to", "layout", "show-row"):
        flags.DEFINE_string(name, None, HELP[name], flag_values=values)
    flags.DEFINE_string("shard", "0/1", HELP["shard"], flag_values=values)
    for name in ("distributed", "status", "json"):
        flags.DEFINE_boolean(name, False, HELP.get(name, ""), flag_values=values)
    for name in ("processes", "process"):
        flags.DEFINE_integer(name, None, HELP[name], flag_values=values)
    flags.DEFINE_integer("join-timeout", 300, HELP["join-timeout"], lower_bound=1, flag_values=values)
    try:
        _, *rest = values([argv[0], *(spelled(word, values) for word in argv[1:])])
    except flags.Error as error:
        raise UserError(f"{error} (--help lists all flags)") from None
    if rest:
        raise UserError(f"unknown argument {rest[0]!r}; see --help")
    return values


def spelled(word: str, known: flags.FlagValues) -> str:
    """A word with hyphens in the name of its flag; users also write underscores there, as config keys have them.

    >>> spelled("--export_rows=a_b", {"export-rows"}), spelled("--no_such_flag", {"export-rows"})
    ('--export-rows=a_b', '--no_such_flag')
    """
    name, equals, value = word.partition("=")
    hyphens = name.replace("_", "-")
    return f"{hyphens}{equals}{value}" if hyphens.removeprefix("--") in known else word


def answer(words: Sequence[str]) -> None:
    """Prints help or version and exits, if a word asks for it."""
    for word in words:
        found = ASKS.fullmatch(word)
        if found is None:
            continue
        if found[1] == "version":
            show(f"qrpo-jax {qrpo_jax.__version__}")
        else:
            folder = Path(__file__).parent / "stages"
            stages = {name: help.first_sentence(folder / f"{name}.py") for name in STAGES}
            show(help.page(HELP, stages, found[2] or ""))
        raise SystemExit(0)


def answer_status(values: flags.FlagValues) -> NoReturn:
    """Prints the status of a run and exits.

    Raises:
      UserError: there is no run in the folder, or the flags do not go together.
    """
    if not values.status or values.workdir is None:
        raise UserError("--status needs --workdir=DIR, and --json is for --status")
    workdir = folder("workdir", values.workdir)
    of = sweep_status if sweep_status.is_sweep(workdir) else status
    report = of.read_status(workdir)
    show(json.dumps(report, indent=2) if values.json else "\n".join(of.lines(report)))
    raise SystemExit(0)


def rows_request(values: flags.FlagValues) -> RowsRequest | None:
    """What the flags about rows ask for; None without one.

    Raises:
      UserError: they do not go together.
    """
    stage, row, target, layout = (values[name].value for name in ("export-rows", "show-row", "to", "layout"))
    if stage is None and (target is not None or layout is not None):
        raise UserError("--to and --layout are for --export-rows=STAGE")
    if stage is None and row is None:
        return None
    if (stage is None) == (row is None) or values.workdir is None or values.config is not None:
        raise UserError("--export-rows=STAGE or --show-row=STAGE:INDEX needs --workdir=DIR, and no config")
    if layout is not None and layout not in ROW_LAYOUTS:
        raise UserError(f"--layout={shown(layout)[1:-1]}; allowed: {', '.join(ROW_LAYOUTS)}")
    other = None if target is None else folder("to", target)
    return RowsRequest(folder("workdir", values.workdir), row, stage or "", other, layout or "")


def terminal_width() -> int:
    """Columns of the terminal, or 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def show(text: str) -> None:
    """Prints a text to a reader who may stop reading, as `--help | head` does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a terminal that knows fewer characters
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of a text "i/n".

    Raises:
      UserError: the text has another form, or i is not below n.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"shard is {text!r}; allowed: i/n with 0 <= i < n, such as --shard=0/4")
    return int(found[1]), int(found[2])


def check_processes(values: Any, shard: tuple[int, int], distributed: bool) -> None:
    """Refuses flags of several processes that do not go together.

    Raises:
      UserError: naming the flags.
    """
    if distributed and shard[1] > 1:
        raise UserError(
            "--shard is for independent processes; --distributed and --coordinator split the work themselves"
        )
    count, index = values.processes, values.process
    if values.coordinator:
        if not re.fullmatch(r".+:[0-9]{1,5}", values.coordinator):
            raise UserError(f"--coordinator={values.coordinator} is no HOST:PORT, such as 10.0.0.1:1234")
        if (count is None) != (index is None):
            raise UserError("--processes and --process go together: name both, or neither if the cluster says them")
        if count is not None and not 0 <= index < count:
            raise UserError(f"--process={index} of --processes={count}; allowed: 0 <= process < processes")
    elif count is not None or index is not None:
        raise UserError("--processes and --process need --coordinator=HOST:PORT")


def folder(flag: str, text: str) -> Path:
    """The folder that a flag names.

    Raises:
      UserError: it is empty, or the address of a store that nothing installed can reach.
    """
    if not text.strip() or not text.isprintable():
        raise UserError(f"--{flag}={text and shown(text)}; name a folder")
    path = as_path(text)
    if isinstance(path, StorePath):
        try:
            path.store  # noqa: B018
        except UserError as error:
            raise UserError(f"--{flag}={text}: {error.message}") from None
    return path
