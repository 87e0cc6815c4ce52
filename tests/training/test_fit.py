"""The training loop: interrupted and resumed equals undisturbed, and what is not finite stops it."""

import json

import jax
import numpy as np
import pytest

from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.training import fit as fit_module
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.fit import NonFiniteLossError, Pace, fit
from qrpo_jax.training.metrics import MetricsWriter, read_metrics
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.optimizer import make_optimizer
from qrpo_jax.training.state import abstract_state
from qrpo_jax.training.step import Precision, make_step
from tests.helpers import tiny

TABLE = tiny.examples(23)
STEPS = 7
OPTIMIZER, SCHEDULE = make_optimizer(
    learning_rate=0.01, schedule="cosine", warmup_share=0.3, steps=STEPS, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1
)
STEP = make_step(
    tiny.GRAPH, make_objective("qrpo", beta=0.3, transform="identity", loss="mse"), OPTIMIZER, precision=Precision()
)


class Killed(BaseException):
    """Ends a run as a signal would: nobody catches it."""


def run(directory, *, table=TABLE, stop_at=None, monkeypatch=None, checkpoint_every=2, sizes=(1, 1, 1), **options):
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    plan = tiny.plan(table, batch_units=5, epochs=2, seed=0, row_multiple=2)
    assert plan.steps >= STEPS
    batches = loader.batches(table, plan)
    if stop_at is not None:
        real, calls = fit_module.place, []

        def place(*arguments):
            calls.append(0)
            if len(calls) == stop_at:
                raise Killed
            return real(*arguments)

        monkeypatch.setattr(fit_module, "place", place)
    try:
        return jax.device_get(
            fit(
                STEP,
                OPTIMIZER,
                tiny.SETTINGS,
                mesh,
                batches,
                steps=STEPS,
                # A copy: the state is donated to the step.
                start=lambda: jax.tree.map(lambda x: x.copy(), tiny.parameters()),
                seed=0,
                pace=Pace(log_every=1, checkpoint_every=checkpoint_every),
                directory=directory,
                names=table.names,
                schedule=SCHEDULE,
                title="test",
                tensorboard=False,
                **options,
            )
        )
    finally:
        if stop_at is not None:
            monkeypatch.setattr(fit_module, "place", real)


def figures(directory):
    lines = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    return run(directory), figures(directory)


def test_interrupted_and_resumed_equals_undisturbed_bit_for_bit(undisturbed, tmp_path, monkeypatch):
    """Stopped before the first checkpoint, between two, and before the last step."""
    for stop_at in (2, 5, 3):
        with pytest.raises(Killed):
            run(tmp_path, stop_at=stop_at, monkeypatch=monkeypatch)
    parameters = run(tmp_path)
    tiny.assert_trees_equal(parameters, undisturbed[0])
    assert figures(tmp_path) == undisturbed[1]
    # Once more with nothing left to do.
    tiny.assert_trees_equal(run(tmp_path), undisturbed[0])


def test_another_mesh_goes_on_from_the_same_checkpoint(undisturbed, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, stop_at=6, monkeypatch=monkeypatch)
    parameters = run(tmp_path, sizes=(1, 2, 1))
    tiny.assert_trees_close(parameters, undisturbed[0], rtol=1e-3, atol=1e-4)
    assert [line["step"] for line in figures(tmp_path)] == [*range(1, STEPS + 1)]


def test_every_step_is_logged_with_the_figures_of_its_own_batch(undisturbed):
    lines = undisturbed[1]
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    plan = tiny.plan(TABLE, batch_units=5, epochs=2, seed=0, row_multiple=2)
    for i, line in enumerate(lines):
        batch = loader.assemble(TABLE, plan, i)
        assert line["reward"] == pytest.approx(
            batch.completions_BxS.reward[batch.present_BxS].mean(), rel=1e-4, abs=1e-6
        )
        assert line["learning_rate"] == pytest.approx(float(SCHEDULE(i)))
    needed = {"loss", "gradient_norm", "quantile", "log_ratio_high", "log_ratio_low", "tied_comparisons", "padding"}
    assert needed <= set(lines[0])


def test_a_loss_that_is_not_finite_stops_and_names_step_rows_and_last_good_checkpoint(tmp_path):
    plan = tiny.plan(TABLE, batch_units=5, epochs=2, seed=0, row_multiple=2)
    fourth = loader.assemble(TABLE, plan, 3)
    bad = int(fourth.example_BxS[fourth.present_BxS][2])
    reference = TABLE.completions_C.reference_log_prob.copy()
    reference[bad] = np.nan
    first = loader.assemble(TABLE, plan, 0)
    assert bad not in first.example_BxS
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, table=tiny.with_numbers(TABLE, reference_log_prob=reference), checkpoint_every=3)
    message = str(caught.value)
    assert message.startswith("step 4: loss nan") and "\n" not in message
    assert f"row-{bad}/0" in message and message.count("row-") == 1
    good = tmp_path / "checkpoints" / "3"
    assert message.endswith(f"last good checkpoint: {good}") and good.is_dir()
    # The bad step was neither saved nor logged, and the good checkpoint can be gone on from.
    assert [line["step"] for line in figures(tmp_path)] == [1, 2, 3]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest == 3
        mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
        state = checkpoints.restore(abstract_state(mesh, tiny.SETTINGS, OPTIMIZER), loader.batches(TABLE, plan))
    assert state.step == 3 and all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.parameters)))


def test_the_first_batch_is_shown_with_its_metrics_once(tmp_path, monkeypatch):
    shown = []
    with pytest.raises(Killed):
        run(tmp_path, stop_at=5, monkeypatch=monkeypatch, on_first=lambda *x: shown.append(x))
    run(tmp_path, on_first=lambda *x: shown.append(x))
    ((batch, metrics),) = shown
    assert batch.present_BxS.sum() == 5 and np.isfinite(metrics["loss"])


def write(directory, steps, resume_step=0):
    with MetricsWriter(directory, resume_step=resume_step, tensorboard=False, wandb=None) as writer:
        for step in steps:
            writer.write(step, {"loss": float(step)})


def test_metrics_after_the_checkpoint_are_taken_back_on_resume(tmp_path):
    write(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut by a kill
    assert [m["step"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    write(tmp_path, [4, 5, 6], resume_step=3)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": s, "loss": float(s)} for s in range(1, 7)]


def test_metrics_are_json_even_where_a_figure_is_not_known(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0, tensorboard=True, wandb=None) as writer:
        writer.write(1, {"loss": 0.5, "reward": float("nan")})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": 0.5}
    assert list((tmp_path / "tensorboard").iterdir())
