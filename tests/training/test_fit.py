"""The training loop: an interrupted run ends like an undisturbed one, and a loss that is not finite stops it."""

import contextlib
import json
import sys
import types

import jax
import numpy as np
import pytest

from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import DamagedError
from qrpo_jax.model.compute import Compute
from qrpo_jax.training.fit import Visitor, fit
from qrpo_jax.training.logbook import NonFiniteLossError
from qrpo_jax.training.metrics import MetricsWriter, Written, read_metrics
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.optimizer import Optimization, make_optimizer
from qrpo_jax.training.step import LogProbSettings, make_step
from tests.helpers import tiny
from tests.helpers.runs import Killed, Watched, books, figures, killing, trainable

NOTHING = Written()
TABLE = tiny.examples(23)
STEPS = 7
OPTIMIZATION = Optimization(
    learning_rate=0.01, schedule="cosine", warmup_share=0.3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1
)
OPTIMIZER, SCHEDULE = make_optimizer(OPTIMIZATION, STEPS)
OBJECTIVE = make_objective("qrpo", beta=0.3, transform="identity", loss="mse")


def new_step(mesh=None):
    """A step that jit has not seen."""
    settings = LogProbSettings(compute=Compute(mesh=mesh))
    return make_step(tiny.GRAPH, OBJECTIVE, OPTIMIZER, log_prob_settings=settings)


STEP = new_step()


def plan(table=TABLE):
    return tiny.plan(table, batch_units=5, epochs=2, seed=0, row_multiple=2)


def mesh_of(*sizes):
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def run(
    directory, *, step=STEP, table=TABLE, kill_at=0, sizes=(1, 1, 1), before=None, frozen=None, visitors=(), **options
):
    """Trains to the end, or until the `kill_at`-th batch of this call; returns parameters on the host."""
    assert plan(table).steps >= STEPS
    batches = killing(loader.batches(table, plan(table)), kill_at)
    what = trainable(OPTIMIZER, mesh_of(*sizes), tiny.parameters)
    with books(directory, steps=STEPS, name=table.name, schedule=SCHEDULE, **options) as writing:
        batches = Watched(batches, before) if before else batches
        return jax.device_get(fit(step, what, batches, frozen=frozen, visitors=visitors, **writing))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    return run(directory), figures(directory)


def test_interrupted_and_resumed_equals_undisturbed_bit_for_bit(undisturbed, tmp_path):
    """Killed before the first checkpoint, between two, and before the last step."""
    for kill_at in (2, 5, 3):
        with pytest.raises(Killed):
            run(tmp_path, kill_at=kill_at)
    parameters = run(tmp_path)
    tiny.assert_trees_equal(parameters, undisturbed[0])
    assert figures(tmp_path) == undisturbed[1]
    # Once more with nothing left to do.
    tiny.assert_trees_equal(run(tmp_path), undisturbed[0])


def test_visits_change_no_step_and_their_figures_are_the_same_after_a_kill(undisturbed, tmp_path):
    """Of every third step and the last; the line of a step has the figures of the parameters that it made."""
    visited = []

    def visit(step, parameters):
        visited.append(step)
        total = sum(float(np.abs(np.asarray(leaf)).sum()) for leaf in jax.tree.leaves(parameters))
        return {"held_out_size": total}

    visitor = Visitor(lambda step: step % 3 == 0 or step == STEPS, visit, "evaluate")
    for kill_at in (4, 5):
        with pytest.raises(Killed):
            run(tmp_path, kill_at=kill_at, visitors=[visitor])
    parameters = run(tmp_path, visitors=[visitor])
    tiny.assert_trees_equal(parameters, undisturbed[0])
    assert visited == [3, 3, 6, 7], visited  # the first kill came before the checkpoint that follows step 3
    lines = figures(tmp_path)
    assert [line["step"] for line in lines if "held_out_size" in line] == [3, 6, 7]
    assert lines[-1]["held_out_size"] == visit(STEPS, parameters)["held_out_size"]
    plain = [{name: value for name, value in line.items() if name != "held_out_size"} for line in lines]
    assert plain == undisturbed[1]


def test_another_mesh_resumes_from_the_same_checkpoint(undisturbed, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    parameters = run(tmp_path, sizes=(1, 2, 1), step=new_step(mesh_of(1, 2, 1)))
    tiny.assert_trees_close(parameters, undisturbed[0], rtol=1e-3, atol=1e-4)
    assert [line["step"] for line in figures(tmp_path)] == [*range(1, STEPS + 1)]


def test_every_step_is_logged_with_the_figures_of_its_own_batch(undisturbed):
    lines = undisturbed[1]
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    for i, line in enumerate(lines):
        batch = loader.assemble(TABLE, plan(), i)
        assert line["reward"] == pytest.approx(
            batch.completions_BxS.reward[batch.present_BxS].mean(), rel=1e-4, abs=1e-6
        )
        assert line["learning_rate"] == pytest.approx(float(SCHEDULE(i)))
    needed = {"loss", "gradient_norm", "quantile", "log_ratio_high", "log_ratio_low", "tied_comparisons", "padding"}
    assert needed <= set(lines[0])


def test_a_loss_that_is_not_finite_stops_and_names_step_rows_and_last_good_checkpoint(tmp_path):
    fourth = loader.assemble(TABLE, plan(), 3)
    bad = int(fourth.example_BxS[fourth.present_BxS][2])
    reference = TABLE.completions_C.reference_log_prob.copy()
    reference[bad] = np.nan
    first = loader.assemble(TABLE, plan(), 0)
    assert bad not in first.example_BxS
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, table=tiny.with_numbers(TABLE, reference_log_prob=reference), save_every=3)
    message = str(caught.value)
    assert message.startswith("step 4: loss nan") and "\n" not in message
    assert f"row-{bad}/0" in message and message.count("row-") == 1
    good = tmp_path / "checkpoints" / "3"
    assert message.endswith(f"last good checkpoint: {good}") and good.is_dir()
    # The bad step was neither saved nor logged, and a run resumes from the good checkpoint.
    assert [line["step"] for line in figures(tmp_path)] == [1, 2, 3]
    parameters = run(tmp_path, save_every=3)
    assert [line["step"] for line in figures(tmp_path)] == [*range(1, STEPS + 1)]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters))


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_says_so(tmp_path):
    reference = np.full_like(TABLE.completions_C.reference_log_prob, np.nan)
    with pytest.raises(NonFiniteLossError, match="^step 1: loss nan.* last good checkpoint: none yet$"):
        run(tmp_path, table=tiny.with_numbers(TABLE, reference_log_prob=reference))
    assert figures(tmp_path) == []


def test_the_first_batch_is_shown_with_its_metrics_once(tmp_path):
    shown = []
    with pytest.raises(Killed):
        run(tmp_path, kill_at=5, on_first=lambda *x: shown.append(x))
    run(tmp_path, on_first=lambda *x: shown.append(x))
    ((batch, metrics),) = shown
    assert batch.present_BxS.sum() == 5 and np.isfinite(metrics["loss"])


@contextlib.contextmanager
def explicit_transfers():
    """A function for `before` that forbids implicit transfers from the first batch until the block ends."""
    with contextlib.ExitStack() as stack:
        yield lambda n: stack.enter_context(jax.transfer_guard("disallow")) if n == 1 else None


def test_no_step_transfers_anything_but_its_batch_and_what_is_logged(tmp_path, monkeypatch):
    """From the first batch on, through checkpoints, and after a resume.

    On a CPU the guard sees uploads alone, so conversions of arrays to Python's numbers are refused as well.
    """

    def refuse(array):
        raise AssertionError(f"implicit download of {array.aval}")

    def guarded(**options):
        with explicit_transfers() as before:
            run(tmp_path, before=before, **options)

    for conversion in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
        monkeypatch.setattr(type(jax.numpy.zeros(())), conversion, refuse)
    with pytest.raises(Killed):
        guarded(kill_at=6)
    guarded()
    assert [line["step"] for line in figures(tmp_path)] == [*range(1, STEPS + 1)]


def test_an_array_of_the_host_given_to_the_step_is_an_implicit_transfer(tmp_path):
    """Without this the test above would show nothing."""

    def step(state, batch, frozen):
        return STEP(state, batch.with_numbers(weight=batch.completions_BxS.weight * frozen["weight"]))

    with (
        pytest.raises(Exception, match="Disallowed host-to-device transfer"),
        explicit_transfers() as before,
    ):
        run(tmp_path, step=step, before=before, frozen={"weight": np.float32(2)})


def test_the_step_is_compiled_once_a_process(tmp_path):
    """However many steps a run makes, and also when it resumes from a checkpoint."""
    compiled = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    step = new_step()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(Killed):
            run(tmp_path, step=step, kill_at=6)
        assert compiled.count("jit(step)") == 1, compiled
        run(tmp_path, step=step)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count("jit(step)") == 1, compiled


def write(directory, steps, kept=NOTHING):
    """Writes metrics; returns what is written after each step."""
    with MetricsWriter(directory) as writer:
        writer.begin(steps[0] - 1, kept)
        return [writer.write(step, {"loss": float(step)}) or writer.written for step in steps]


def test_a_resumed_run_drops_metrics_after_its_checkpoint(tmp_path):
    written = write(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut by a kill
    assert [m["step"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    write(tmp_path, [4, 5, 6], written[2])
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": s, "loss": float(s)} for s in range(1, 7)]


@pytest.mark.parametrize("change", ["flip", "cut", "swap", "delete"])
def test_metrics_that_changed_before_the_checkpoint_are_refused(tmp_path, change):
    written, path = write(tmp_path, range(1, 6)), tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    damaged = {
        "flip": content.replace(b"2.0", b"2.1"),
        "cut": content[:50],
        "swap": b"".join([lines[1], lines[0], *lines[2:]]),
        "delete": b"",
    }[change]
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match="metrics.jsonl is damaged"):
        write(tmp_path, [4, 5, 6], written[2])
    assert path.read_bytes() == damaged


def test_weights_and_biases_gets_every_line_and_resumes_one_run_per_directory(tmp_path, monkeypatch):
    """With a stand-in for the library, which is imported only where it is configured."""
    runs, lines = [], []
    run_of_library = types.SimpleNamespace(
        log=lambda values, step: lines.append((step, values)), finish=lambda: lines.append("finished")
    )
    library = types.SimpleNamespace(init=lambda **options: runs.append(options) or run_of_library)
    monkeypatch.setitem(sys.modules, "wandb", library)
    for directory in ("a", "a", "b"):
        with MetricsWriter(tmp_path / directory, wandb={"project": "p"}) as writer:
            writer.begin(0, NOTHING)
            writer.write(1, {"loss": 0.5, "reward": float("nan")})
    assert lines == [(1, {"loss": 0.5}), "finished"] * 3
    assert runs[0] == runs[1] and runs[0]["id"] != runs[2]["id"]
    assert all(options["resume"] == "allow" and options["project"] == "p" for options in runs)


def test_metrics_are_json_even_where_a_figure_is_not_known(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        writer.begin(0, NOTHING)
        writer.write(1, {"loss": 0.5, "reward": float("nan")})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": 0.5}
    assert list((tmp_path / "tensorboard").iterdir())
