"""The planner of row lengths: nothing on a grid is cheaper, and the choice is the same again."""

import numpy as np
import pytest

from qrpo_jax.data.batch_order import batch_order
from qrpo_jax.data.mixes import MIXES, synthetic
from qrpo_jax.data.packing import UNLIMITED, plan_batches
from qrpo_jax.data.row_cost import MACHINES, model_cost
from qrpo_jax.data.row_planner import SAMPLED, Planner
from qrpo_jax.model.settings import DecoderSettings
from tests.helpers import tiny

SMALL = DecoderSettings(
    vocab_size=512, d_model=64, layers=5, heads=8, kv_heads=4, head_dim=8, d_ff=172, max_positions=4096
)
BATCH = 72


def make(mix, platform, *, share=True, **options):
    units = synthetic(MIXES[mix], 20 if mix == "many_short" else 60, vocab=512).packing_units()
    orders = batch_order(units, BATCH, 1, seed=0)
    model = model_cost(SMALL, bytes_per_number=4, vocab_chunk=0, stored=None if platform == "cpu" else "full")
    return units, Planner(units, orders, MACHINES[platform], model, share=share, **options)


@pytest.mark.parametrize("platform, devices", [("cpu", 2), ("tpu", 4)])
@pytest.mark.parametrize("mix", MIXES)
def test_no_row_length_of_a_grid_costs_less(mix, platform, devices):
    units, planner = make(mix, platform, devices=devices)
    choice = planner.choose()
    step = planner.multiple * (1 if platform == "tpu" else 5)
    longest = int(units.tokens_U(True).max())
    grid = range(-(-longest // step) * step, max(2 * longest, MACHINES[platform].longest) + 1, step)
    others = {length: planner.evaluate(length).seconds for length in grid}
    best = min(others, key=others.__getitem__)
    assert choice.seconds <= 1.01 * others[best], (choice, best, others[best])
    assert choice.row_tokens % planner.multiple == 0 and choice.row_tokens >= longest
    assert choice == make(mix, platform, devices=devices)[1].choose(), "the same data must give the same choice"


def test_the_estimate_is_of_the_plan_that_is_made():
    """The planner tries some batches of a long run, and all of a short one: then it knows the plan's padding."""
    units, planner = make("many_short", "cpu", devices=2)
    assert len(planner.batches) <= SAMPLED
    choice = planner.choose()
    plan = plan_batches(
        units,
        batch_units=BATCH,
        seed=0,
        row_tokens=choice.row_tokens,
        slots=UNLIMITED,
        row_multiple=2 * choice.part_rows,
    )
    assert [sorted(units.first_U[u] for u in batch) for batch in planner.batches] == [
        sorted(c for row in batch for group in row for c in group) for batch in tiny.batches_of(plan)
    ]
    padded = planner.evaluate(1000)
    assert choice.seconds < padded.seconds and plan.padding < 0.2, (choice, padded, plan.padding)


def test_sharing_prompts_costs_less():
    for mix in MIXES:
        seconds = {share: make(mix, "cpu", share=share)[1].choose().seconds for share in (True, False)}
        assert seconds[True] < seconds[False], (mix, seconds)


def test_microbatches_keep_the_working_set_and_can_be_fixed():
    _, planner = make("chat_pairs", "tpu", devices=2)
    roomy = planner.evaluate(4096).part_rows
    planner.machine = planner.machine._replace(working_bytes=2.5 * 4096 * planner.model.token_bytes)
    tight = planner.evaluate(4096).part_rows
    assert roomy > tight and tight in (1, 2), (roomy, tight)
    _, fixed = make("chat_pairs", "tpu", devices=2, microbatches=3)
    plan = plan_batches(fixed.units, batch_units=BATCH, seed=0, row_tokens=4096, slots=UNLIMITED)
    device_rows = -(-max(map(len, tiny.batches_of(plan))) // 2)
    assert fixed.evaluate(4096).part_rows == -(-device_rows // 3)


def test_without_skipping_blocks_short_rows_are_cheaper():
    _, planner = make("many_short", "cpu")
    skipping = planner.choose()
    planner.machine = planner.machine._replace(block=0)
    whole = planner.choose()
    assert whole.row_tokens < skipping.row_tokens and whole.seconds > skipping.seconds, (whole, skipping)


def test_coarse_choices_are_the_same_for_similar_data():
    choices = set()
    for seed in range(4):
        units = synthetic(MIXES["many_short"], 20, vocab=512, seed=seed).packing_units()
        model = model_cost(SMALL, bytes_per_number=4, vocab_chunk=0, stored=None)
        planner = Planner(units, [np.arange(len(units))], MACHINES["cpu"], model, devices=2)
        choice = planner.choose_coarsely()
        choices.add((choice.row_tokens, choice.part_rows))
        assert choice.seconds < 1.25 * planner.choose().seconds
    assert len(choices) <= 2, choices
