"""Units of rows that a file lists, counted from its listing alone."""

import numpy as np
import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.data.views import VIEWS, View, pick_units
from qrpo_jax.job.listed_units import unit_counts
from tests.helpers.sources import in_memory

DRAW = np.random.default_rng(7)
ROWS = [
    Row(
        f"r{i}",
        (Message("user", "q"),),
        completions=tuple(
            Completion("a", NO_TOKENS, True, "reference" if j < sampled else "dataset", float(DRAW.random()))
            for j in range(sampled + brought)
        ),
    )
    for i, (sampled, brought) in enumerate(DRAW.integers(0, 9, (53, 2)).tolist())
]


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("units", VIEWS)
def test_units_are_counted_as_they_are_picked(units, first):
    view = View(units=units, first=first, max_tokens=99, over_long="drop")
    counts = unit_counts(in_memory(ROWS), 0, view)
    assert counts.tolist() == [len(pick_units(row, view, i)) for i, row in enumerate(ROWS)]
    assert counts.sum() > 0 and counts.dtype == np.int64
