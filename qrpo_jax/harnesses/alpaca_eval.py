"""AlpacaEval 2: answers in its format, its command where it can run, and the figures of its leaderboard.

The format, the names of variables and columns are those of alpaca_eval 0.6.6 (github.com/tatsu-lab/alpaca_eval).
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import from_first, is_first, wait
from qrpo_jax.errors import ServerError, UserError, shortened
from qrpo_jax.evaluation.side_figures import Figures
from qrpo_jax.files import write_json
from qrpo_jax.harnesses.record import with_error
from qrpo_jax.harnesses.task_job import ANSWERS, TaskJob
from qrpo_jax.job.held_out import rows_by_seed
from qrpo_jax.stores.path import StorePath

KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH")  # one of them must be set
LEADERBOARD = "leaderboard.csv"
# Figures by their names here: the column, and that of their standard error; all in percent.
COLUMNS = {
    "length_controlled_win_rate": ("length_controlled_winrate", "lc_standard_error"),
    "win_rate": ("win_rate", "standard_error"),
}
NOT_INSTALLED = "not judged: the command {command!r} is not installed"
NO_KEY = "not judged: none of " + ", ".join(KEYS) + " is set"


class Judged(NamedTuple):
    """Figures of the leaderboard, none if nothing was judged; and by whom, or why not."""

    figures: Figures
    how: str


def records(rows: Sequence[Row], answered: Mapping[str, Row], generator: str) -> list[dict[str, str]]:
    """The answers in AlpacaEval's format, one for each instruction that was asked, in the order of the prompts.

    Args:
      rows: the prompts, whose payload is the `dataset` of their record.
      answered: the rows with completions, by id; the first completion is the answer.
    """
    return [
        {
            "dataset": json.loads(row.payload) if row.payload else "",
            "instruction": row.messages[-1].content,
            "output": answered[row.id].completions[0].text.strip(),
            "generator": generator,
        }
        for row in rows
        if row.id in answered
    ]


def judge(job: TaskJob, side: str, rows: Sequence[Row]) -> Judged:
    """Writes the answers of a side, and has alpaca_eval judge them where it is installed and has a key.

    Else the command to run is printed. A leaderboard that is there, as after running it by hand, is read.

    Raises:
      ServerError: the command failed; the answers are kept, and the same run tries again.
    """
    folder, section = job.folder(ANSWERS), job.config.harness
    generator = generator_of(job, side)
    outputs, target = folder / f"{side}_outputs.json", folder / f"{side}_judged"
    if is_first():
        write_json(outputs, records(rows, {row.id: row for row in rows_by_seed(job, side)[0]}, generator))
    wait(f"{job.task.name} {side} outputs")
    command = command_of(job, outputs, target)
    # A judge by name has a folder of its own there; one by the path of its config has none.
    leaderboard = target / ("" if "/" in section.annotator else section.annotator) / LEADERBOARD
    how = f"judged by {section.annotator}"
    if not leaderboard.exists():
        why = reason_not(job)
        if why:
            job.say(f"harness {job.task.name}, {side}: {why}; to judge {outputs}, run: {shlex.join(command)}")
            return Judged({}, why)
        fault = from_first(judged_fault(command, target) if is_first() else "")
        if fault:
            raise ServerError(fault)
    return Judged(read_leaderboard(leaderboard, generator), how)


def reason_not(job: TaskJob) -> str:
    """Why alpaca_eval cannot run, as the first process sees it; "" if it can."""
    command = job.config.harness.alpaca_eval
    if shutil.which(command) is None:
        return from_first(NOT_INSTALLED.format(command=command))
    return from_first("" if any(os.environ.get(name) for name in KEYS) else NO_KEY)


def command_of(job: TaskJob, outputs: Path, target: Path) -> list[str]:
    """The command line that judges a file of answers; keys come from the environment."""
    section, reference = job.config.harness, job.task.options.get("reference")
    words = [section.alpaca_eval, "--model_outputs", str(outputs), "--annotators_config", section.annotator]
    words += ["--output_path", str(target), "--precomputed_leaderboard", "None", "--is_cache_leaderboard", "False"]
    return words + (["--reference_outputs", reference] if reference else [])


def judged_fault(command: Sequence[str], target: Path) -> str:
    """Runs the command, with what it says in a file; one line on what went wrong, or ""."""
    target.mkdir(parents=True, exist_ok=True)
    log = target / "alpaca_eval.log"
    with log.open("w") as said:
        status = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False).returncode
    if not status:
        return ""
    lines = log.read_text(errors="replace").strip().splitlines()
    last = shortened(lines[-1], 200) if lines else "it said nothing"
    return f"{command[0]} ended with status {status}: {last} (all of it: {log}); run the same command again to retry"


def read_leaderboard(path: Path, generator: str) -> Figures:
    """The figures of one model of a leaderboard, shares from 0 to 1 with intervals from its standard errors.

    Raises:
      UserError: it is no table, it has no line of the model, or not its columns, or no numbers in them.
    """
    figures: Figures = {}
    with suppress(csv.Error, ValueError), path.open(newline="", encoding="utf-8") as lines:
        found = next((line for line in csv.DictReader(lines) if line.get("") == generator), {})
        for name, (column, error) in COLUMNS.items():
            if found.get(column) and found.get(error):
                figures[name] = with_error(float(found[column]) / 100, float(found[error]) / 100)
    if "win_rate" not in figures:
        raise UserError(
            f"{path} has no win_rate and standard_error of {generator!r}; remove it and run again", about="alpaca_eval"
        )
    return figures


def generator_of(job: TaskJob, side: str) -> str:
    """A name of the model for the leaderboard: the last part of its path, and the side where there are two."""
    config = job.config
    path = config.evaluate.against if side == "reference" and config.evaluate.against else config.model.path
    name = re.sub(r"[^\w.-]+", "-", PurePosixPath(path).name or job.workdir.name)
    return f"{name}-{side}"


def check(job: TaskJob) -> None:
    """Refuses a work directory that another program cannot read.

    Raises:
      UserError: it is in an object store, and alpaca_eval would run.
    """
    if isinstance(job.workdir, StorePath) and not reason_not(job):
        raise UserError(
            f"alpaca_eval reads and writes files on disk, and --workdir={job.workdir} is in an object store; set "
            "config.harness.alpaca_eval='' to write the answers alone",
            about="alpaca_eval",
        )
