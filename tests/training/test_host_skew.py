"""Skew between hosts: the process that is late with its batches is named, and a job of one process has no figures."""

from pathlib import Path

import numpy as np
import pytest

from qrpo_jax.training import host_skew
from qrpo_jax.training.host_skew import SECONDS, SLOWEST, HostSkew, Summary
from qrpo_jax.training.metrics import MACHINE, read_metrics
from tests.helpers.runs import figures
from tests.helpers.together import run_together

PAUSE, STEPS = 0.5, 6
PROGRAM = """
import time
from pathlib import Path
from types import SimpleNamespace
import jax.numpy as jnp
from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh, own_rows, replicated
from qrpo_jax.training.fit import fit
from qrpo_jax.training.host_skew import HostSkew
from qrpo_jax.training.logbook import LOSSES, Logbook
from qrpo_jax.training.metrics import MetricsWriter
from qrpo_jax.training.state import State
from qrpo_jax.training.step_watch import StepWatch
from qrpo_jax.training.time_sheet import TimeSheet
from tests.helpers import tiny
from tests.helpers.runs import Watched
from tests.training.test_host_skew import PAUSE, STEPS

mesh, table = make_mesh(-1, 1, 1), tiny.examples(23)
plan = tiny.plan(table, batch_units=3, seed=0, row_multiple=2)
state = State(jnp.int32(0), {}, (), jax.random.key_data(jax.random.key(0)))

def step(state, batch, frozen):
    # In place of a model's, which takes long to compile: like it, it needs the rows of all processes.
    tokens = jnp.sum(batch.layout.groups_BxL > 0).astype(jnp.float32)
    metrics = dict.fromkeys(("loss", "gradient_norm", "tokens"), tokens) | {LOSSES: batch.completions_BxS.reward}
    return state._replace(step=state.step + 1), metrics

def before(number):
    time.sleep(PAUSE * (process == 1 and number > 2))

run = SimpleNamespace(
    mesh=mesh,
    shardings=lambda: replicated(mesh),
    abstract=lambda: None,
    fresh=lambda: jax.device_put(state, replicated(mesh)),
)
checkpoints = SimpleNamespace(restore=lambda *_: None, due=lambda _: False, save=lambda *_, **__: None)
times = TimeSheet(None)
options = {"steps": STEPS, "every": 2, "name": table.name, "schedule": lambda step: 0.0, "title": "test"}
with MetricsWriter(Path(arguments[0])) as writer, StepWatch(print) as watch:
    skew = HostSkew(lambda: times.seconds("data"))
    logbook = Logbook(writer, checkpoints, watch=watch, skew=skew, **options)
    batches = Watched(loader.batches(table, plan, own_rows(mesh, plan.rows)), before)
    fit(step, run, batches, steps=STEPS, checkpoints=checkpoints, logbook=logbook, times=times)
"""


@pytest.mark.slow
def test_the_process_whose_data_is_slow_is_named(tmp_path: Path) -> None:
    run_together(tmp_path, PROGRAM, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    lines = [line for line in lines if line["step"] in (1, 2, 4, 6)]  # those that end a lap
    assert SECONDS not in lines[0], "the loader starts"
    late = [(line[SLOWEST], line[SECONDS]) for line in lines if line["step"] > 2]
    assert all(process == 1 and seconds > 0.2 * PAUSE for process, seconds in late), late
    found = host_skew.summary(lines)
    assert found is not None and found.process == 1 and found.worst >= max(seconds for _, seconds in late), found
    assert {SECONDS, SLOWEST} <= set(MACHINE) and not {SECONDS, SLOWEST} & set(figures(tmp_path / "run")[0])


def test_a_job_of_one_process_has_no_figures() -> None:
    skew = HostSkew(lambda: 1.0)
    assert [host_skew.figures(skew.lap(step)) for step in (1, 5)] == [{}, {}]


@pytest.mark.parametrize(
    ("seconds", "skew", "slowest"),
    [((0.5, 2.0), 1.5, 1), ((2.0, 0.5), 1.5, 0), ((1.0, 4.0, 2.0), 2.0, 1), ((3.0, 1.0, 7.0, 2.0), 5.0, 2)],
)
def test_the_slowest_process_is_compared_with_the_median(seconds: tuple[float, ...], skew: float, slowest: int) -> None:
    assert host_skew.figures(np.asarray(seconds)) == {SECONDS: skew, SLOWEST: slowest}


def test_the_summary_of_a_stage_names_the_process_that_cost_most() -> None:
    lines = [{SECONDS: 0.25, SLOWEST: 3.0}, {SECONDS: 0.25, SLOWEST: 3.0}, {SECONDS: 1.5, SLOWEST: 0.0}, {"loss": 1.0}]
    assert host_skew.summary(lines) == Summary(2 / 3, 1.5, 0, 0.75)
    assert host_skew.summary([{"loss": 1.0}]) is None
