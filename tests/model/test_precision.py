"""Precision: which values stay float32, and how far policy and reference may differ before the first update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.data.batch import Batch
from qrpo_jax.model.compute import Compute
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.optimizer import Optimization, make_optimizer, stochastically_rounded
from qrpo_jax.training.state import initial_state
from qrpo_jax.training.step import LogProbSettings, completion_log_probs, make_step
from tests.helpers import backends, tiny

OPTIMIZATION = Optimization(
    learning_rate=1e-3, schedule="constant", warmup_share=0.0, b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=0.0
)
OPTIMIZER, _ = make_optimizer(OPTIMIZATION, steps=3)
KINDS = [(p, c) for p in ("float32", "bfloat16") for c in ("float32", "bfloat16")]


def stored(parameters, batch: Batch, settings: LogProbSettings) -> np.ndarray:
    """Log-probs as the reference stage computes them."""
    return np.asarray(jax.jit(lambda p, b: completion_log_probs(tiny.GRAPH, p, b, settings))(parameters, batch))


def cast(dtype: str):
    return jax.tree.map(lambda x: x.astype(dtype), tiny.parameters())


def by_example(values_BxS: np.ndarray, batch: Batch) -> np.ndarray:
    present = batch.example_BxS >= 0
    return values_BxS[present][np.argsort(batch.example_BxS[present])]


@pytest.mark.parametrize("backend, kind", backends.crossed(KINDS, ("float32", "bfloat16")))
def test_from_the_same_parameters_and_batch_every_log_ratio_is_exactly_zero(backend, kind) -> None:
    """Of the training step, whose program includes the gradient, against those of a jitted forward pass.

    Groups of four completions share a prompt in their row.
    """
    batch = tiny.batch(tiny.examples(16, pairs=True, siblings=4))
    assert batch.layout.segments_BxL.max() == 4 and (batch.layout.groups_BxL.max(1) == 1).any()
    parameter, compute = kind
    parameters = cast(parameter)
    settings = LogProbSettings(vocab_chunk=17, compute=Compute(compute, attention=backends.ALL[backend]))
    batch = batch.with_numbers(reference_log_prob=stored(parameters, batch, settings))
    # With equal rewards REBEL's loss is the squared difference of two log-ratios, and nothing else.
    batch = batch.with_numbers(reward=np.zeros_like(batch.completions_BxS.reward))
    step = make_step(tiny.GRAPH, make_objective("rebel", beta=1.0), OPTIMIZER, log_prob_settings=settings)
    _, metrics = jax.jit(step)(initial_state(parameters, OPTIMIZER, 0), batch)
    zeros = {name: float(metrics[name]) for name in ("log_ratio_high", "log_ratio_low", "loss")}
    assert zeros == {"log_ratio_high": 0.0, "log_ratio_low": 0.0, "loss": 0.0}, zeros
    assert float(jnp.abs(metrics["losses_BxS"]).max()) == 0.0


# Nats a completion of up to 8 tokens whose logits spread over several nats; measured: 5e-6 and 1e-2.
@pytest.mark.parametrize("parameter, compute", KINDS)
def test_packing_in_another_way_moves_log_ratios_by_rounding_only(parameter, compute) -> None:
    """The reference stage packs rows in another way than training, and products of other shapes round differently."""
    table, parameters, settings = tiny.examples(14), cast(parameter), LogProbSettings(compute=Compute(compute))
    packed, loose = tiny.batch(table), tiny.batch(table, row_tokens=43, slots=6)
    drift = by_example(stored(parameters, packed, settings), packed) - by_example(
        stored(parameters, loose, settings), loose
    )
    bound = 2e-5 if compute == "float32" else 0.05
    assert np.abs(drift).max() < bound, np.abs(drift).max()


@pytest.mark.parametrize("compute, bound", [("float32", 2e-5), ("bfloat16", 0.4)])
def test_log_probs_are_float32_and_near_those_of_float64(compute, bound) -> None:
    table = tiny.examples(14)
    batch = tiny.batch(table)
    log_probs_BxS = stored(tiny.parameters(), batch, LogProbSettings(compute=Compute(compute)))
    assert log_probs_BxS.dtype == np.float32
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tiny.parameters())
        exact = np.asarray(
            completion_log_probs(tiny.GRAPH, wide, batch, LogProbSettings(compute=Compute(jnp.float64))), np.float64
        )
    error = np.abs(log_probs_BxS - exact)[batch.present_BxS].max()
    assert error < bound, error


@pytest.mark.parametrize("parameter", ["float32", "bfloat16"])
def test_a_step_keeps_the_type_of_the_parameters_and_a_float32_loss(parameter) -> None:
    batch = tiny.batch(tiny.examples(14))
    objective = make_objective("qrpo", beta=tiny.BETA, transform="identity", loss="mse")
    step = make_step(tiny.GRAPH, objective, OPTIMIZER, log_prob_settings=LogProbSettings(compute=Compute("bfloat16")))
    new, metrics = jax.jit(step)(initial_state(cast(parameter), OPTIMIZER, 0), batch)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(new.parameters)} == {parameter}
    assert metrics["loss"].dtype == metrics["losses_BxS"].dtype == jnp.float32


def test_stochastic_rounding_is_right_on_average_and_keeps_representable_values() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=211) * 10.0 ** rng.integers(-6, 6, 211), jnp.float32)
    drawn = jax.vmap(lambda key: stochastically_rounded(x, key))(jax.random.split(jax.random.key(1), 4001))
    drawn = np.asarray(drawn, np.float64)
    spread = drawn.std(0) / np.sqrt(len(drawn))
    off = np.abs(drawn.mean(0) - np.asarray(x, np.float64))
    assert (off <= 5 * spread + 1e-12).all(), (off / spread).max()
    assert (np.abs(drawn - np.asarray(x)) <= np.abs(x) * 2.0**-7).all()
    exact = jnp.asarray([0.0, -0.0, 1.0, -2.5, 3e38, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    kept = stochastically_rounded(exact.astype(jnp.bfloat16).astype(jnp.float32), jax.random.key(2))
    np.testing.assert_array_equal(np.asarray(kept, np.float32), np.asarray(exact.astype(jnp.bfloat16), np.float32))


def test_small_updates_of_bfloat16_parameters_add_up_as_those_of_float32_do() -> None:
    """A step of 1e-4 is far below the last digit of most weights; 30 steps move them as they should."""
    optimizer, _ = make_optimizer(OPTIMIZATION._replace(learning_rate=1e-4), steps=30)
    batch = tiny.batch(tiny.examples(14))
    objective = make_objective("qrpo", beta=tiny.BETA, transform="identity", loss="mse")
    moved = {}
    for dtype in ("float32", "bfloat16"):
        start = jax.tree.map(lambda x, dtype=dtype: x.astype("bfloat16").astype(dtype), tiny.parameters())
        step = jax.jit(make_step(tiny.GRAPH, objective, optimizer, log_prob_settings=LogProbSettings()))
        state = initial_state(start, optimizer, 0)
        assert {str(x.dtype) for x in jax.tree.leaves(state.optimizer) if x.ndim} == {"float32"}
        for _ in range(30):
            state, _ = step(state, batch)
        difference = jax.tree.map(
            lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), state.parameters, start
        )
        moved[dtype] = np.concatenate([x.ravel() for x in jax.tree.leaves(difference)])
    wanted, got = moved["float32"], moved["bfloat16"]
    slope = float(got @ wanted / (wanted @ wanted))
    assert slope == pytest.approx(1, abs=0.1), slope
