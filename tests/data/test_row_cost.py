"""The cost of packed rows: blocks counted one by one, and what makes a step slower."""

import numpy as np
import pytest

from qrpo_jax.data.loader import assemble
from qrpo_jax.data.packing import UNLIMITED
from qrpo_jax.data.row_cost import MACHINES, model_cost, step_seconds, visible_blocks
from qrpo_jax.model.attention import rules
from tests.helpers import tiny


@pytest.mark.parametrize("siblings", [1, 3, 11])
@pytest.mark.parametrize("block", [1, 3, 7, 16])
def test_visible_blocks_are_those_that_the_attention_rule_sees(block, siblings):
    table = tiny.examples(43, siblings=siblings, seed=siblings)
    plan = tiny.plan(table, row_tokens=61, slots=UNLIMITED)
    batch, units = assemble(table, plan, 0), table.packing_units()
    seen = np.asarray(rules.visible(batch.layout, batch.layout, None))
    for r, row in enumerate(tiny.batches_of(plan)[0]):
        pairs = np.pad(seen[r if seen.ndim == 3 else (r, 0)], (0, -61 % block))
        count = len(pairs) // block
        blocks = pairs.reshape(count, block, count, block).any((1, 3)).sum()
        assert visible_blocks(row, units, block) == blocks, (r, row)


def test_a_step_costs_more_with_more_tokens_pairs_rows_and_microbatches():
    machine = MACHINES["cpu"]
    model = model_cost(tiny.SETTINGS, bytes_per_number=4, vocab_chunk=0, stored="full")
    base = dict(row_tokens=64, device_rows=6, microbatches=2, pairs=9000.0)
    seconds = step_seconds(machine, model, **base)
    for name, value in {"row_tokens": 72, "device_rows": 7, "microbatches": 3, "pairs": 9001.0}.items():
        assert step_seconds(machine, model, **(base | {name: value})) > seconds, name


def test_activations_grow_with_what_is_stored_and_with_the_logits():
    kept = {
        name: model_cost(tiny.SETTINGS, bytes_per_number=2, vocab_chunk=7, stored=name).token_bytes
        for name in (None, "full", "attention", "dots", "none")
    }
    assert list(kept.values()) == sorted(kept.values()) and len(set(kept.values())) == 5, kept
    wide = [model_cost(tiny.SETTINGS, bytes_per_number=2, vocab_chunk=n, stored="full").token_bytes for n in (1, 0)]
    many = tiny.SETTINGS.__class__(**(vars(tiny.SETTINGS) | {"vocab_size": 99_991}))
    long = [model_cost(many, bytes_per_number=2, vocab_chunk=n, stored="full").token_bytes for n in (1, 0)]
    assert wide[0] <= wide[1] < long[1] and long[0] == wide[0], (wide, long)
