"""One update on every way to lay out eight devices, and the arrays that its program never holds."""

import dataclasses

import jax
import pytest

from qrpo_jax.devices.mesh import make_mesh, place, row_sharding
from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.memory import large_arrays
from qrpo_jax.model import attention, decoder
from qrpo_jax.model.compute import Compute
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.state import initial_state, parameter_layout, state_shardings
from qrpo_jax.training.step import LogProbSettings, make_step
from tests.helpers import steps, tiny
from tests.helpers.steps import TABLE, assert_same_update, update

# Sizes that up to eight ways of `fsdp` and four of `tensor` divide.
WIDE = dataclasses.replace(tiny.SETTINGS, vocab_size=44, d_model=40, heads=8, kv_heads=4, d_ff=44)
WIDE_TABLE = tiny.examples(14, pairs=True, vocab=44)
LENGTH = 40  # divided by up to eight ways of `context`
slow = pytest.mark.slow


def plain(settings, table):
    return update(tiny.batch(table, row_multiple=8), settings=settings)


@pytest.fixture(scope="module")
def alone():
    return plain(tiny.SETTINGS, TABLE)


@pytest.fixture(scope="module")
def wide_alone():
    return plain(WIDE, WIDE_TABLE)


# Sizes in the order of `make_mesh`: data, fsdp, tensor, context, replica.
@pytest.mark.parametrize(
    "sizes, microbatches, remat",
    [
        ((1, 2, 2, 2), 1, "none"),
        ((1, 1, 1, 8), 2, "full"),
        ((1, 2, 2, 1, 2), 1, "none"),
        *(
            pytest.param(*case, marks=slow)
            for case in (
                ((1, 1, 2, 4), 1, "attention"),
                ((2, 1, 1, 2, 2), 2, "dots"),
                ((1, 1, 2, 2, 2), 1, "none"),
                ((2, 2, 1, 2), 2, "none"),
                ((1, 2, 1, 4), 1, "none"),
                ((1, 1, 1, 1, 8), 1, "none"),
                ((1, 1, 1, 4, 2), 1, "none"),
                ((4, 1, 1, 2), 1, "offload"),
            )
        ),
    ],
)
def test_every_mesh_of_eight_devices_is_one_device(alone, sizes, microbatches, remat):
    batch = tiny.batch(TABLE, row_tokens=LENGTH, row_multiple=16)
    assert_same_update(update(batch, "qrpo", microbatches, sizes, remat=remat), alone, reordered=True)


@pytest.mark.parametrize(
    "sizes", [(1, 8, 1), *(pytest.param(m, marks=slow) for m in [(1, 1, 4, 2), (1, 4, 2), (1, 4, 1, 2), (1, 2, 4)])]
)
def test_axes_of_four_and_eight_devices_are_one_device(wide_alone, sizes):
    batch = tiny.batch(WIDE_TABLE, row_tokens=LENGTH, row_multiple=8)
    assert_same_update(update(batch, mesh_sizes=sizes, settings=WIDE), wide_alone, reordered=True)


@pytest.mark.parametrize("sizes", [(2, 1, 1, 4), pytest.param((1, 2, 2, 2), marks=slow)])
def test_rows_and_lengths_that_cannot_be_split_are_not(alone, sizes):
    """Microbatches of an odd number of rows, of 29 tokens each."""
    batch = tiny.batch(TABLE, row_multiple=6)
    assert batch.tokens_BxL.shape == (6, 29)
    assert_same_update(update(batch, "qrpo", 2, sizes), alone, reordered=True)


@pytest.mark.parametrize("sizes, rows, parts", [(None, 2, (1, 1)), ((2, 2, 2), 8, (4, 2))])
def test_no_array_has_a_logit_for_each_position_and_token(sizes, rows, parts):
    """Of a compiled step that keeps no scores; with the whole vocabulary as one chunk, such an array is found."""
    length, vocab, chunk = 67, 1022, 64
    settings = dataclasses.replace(tiny.SETTINGS, vocab_size=vocab)
    table = tiny.examples(12, pairs=True, vocab=vocab)
    batch = tiny.batch(table, row_tokens=length, slots=12, row_multiple=rows)
    assert len(batch.tokens_BxL) == rows
    mesh = make_mesh(*sizes) if sizes else None
    state, batch = jax.eval_shape(lambda: initial_state(tiny.parameters(settings), steps.OPTIMIZER, 0)), batch
    shardings = state_shardings(parameter_layout(mesh, settings), steps.OPTIMIZER) if mesh else None
    batch = place(batch, row_sharding(mesh)) if mesh else batch

    splits_rows, splits_vocab = parts
    logits = rows // splits_rows * length * vocab // splits_vocab

    def arrays(chunk):
        step = make_step(
            decoder.graph(settings),
            make_objective("sft"),
            steps.OPTIMIZER,
            log_prob_settings=LogProbSettings(vocab_chunk=chunk, compute=Compute(remat="full", mesh=mesh)),
        )
        jitted = jax.jit(step, in_shardings=(shardings, None) if mesh else None)
        return large_arrays(hlo.parse(jitted.lower(state, batch).compile().as_text()), logits)

    assert arrays(vocab) and not arrays(chunk), arrays(chunk)


@pytest.mark.parametrize("prompts", ["shared", "copied"])
def test_no_array_has_a_score_for_each_pair_of_positions(prompts):
    """Of a compiled step with attention block by block; with the plain formula, such an array is found."""
    length, shared = 257, prompts == "shared"
    table = tiny.examples(120, siblings=5)
    batch = tiny.batch(table, row_tokens=length, slots=60, share=shared)
    pairs = len(batch.tokens_BxL) * length**2
    state = jax.eval_shape(lambda: initial_state(tiny.parameters(), steps.OPTIMIZER, 0))

    def arrays(backend):
        compute = Compute(remat="none", attention=attention.backend(backend), unroll=tiny.SETTINGS.layers)
        step = make_step(
            tiny.GRAPH, make_objective("sft"), steps.OPTIMIZER, log_prob_settings=LogProbSettings(compute=compute)
        )
        return large_arrays(hlo.parse(jax.jit(step).lower(state, batch).compile().as_text()), pairs)

    assert arrays("plain") and not arrays("blocks"), arrays("blocks")
