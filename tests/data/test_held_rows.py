"""Rows held out of training."""

import numpy as np
import pytest

from qrpo_jax.data.held_rows import HELD_OUT, part
from tests.helpers import tiny


@pytest.mark.parametrize("pairs", [False, True])
def test_the_two_parts_are_all_units_and_share_no_prompt(pairs: bool) -> None:
    every = tiny.examples(24, pairs=pairs, siblings=4)
    trained, held = part(every, 2)
    assert sorted([*trained.entries_C, *held.entries_C]) == sorted(every.entries_C)
    rows = [set(every.corpus.row_K[one.entries_C].tolist()) for one in (trained, held)]
    assert not rows[0] & rows[1] and len(rows[1]) == 2 and len(rows[0]) == 4
    for one in (trained, held):
        assert one.sizes_U.sum() == len(one.entries_C) == one.counts["completions"] and one.counts[HELD_OUT] == 2
        assert np.unique(one.prompts_C).tolist() == list(range(len(np.unique(one.prompts_C))))
        for name, values in one.completions_C._asdict().items():
            of_all = dict(zip(every.entries_C.tolist(), getattr(every.completions_C, name), strict=True))
            np.testing.assert_array_equal(values, [of_all[entry] for entry in one.entries_C.tolist()], err_msg=name)


def test_more_rows_hold_out_the_same_and_others() -> None:
    every = tiny.examples(24, siblings=4)
    held = [set(part(every, count).held_out.entries_C.tolist()) for count in (1, 3, 99)]
    assert held[0] < held[1] < held[2] == set(every.entries_C.tolist())
    assert len(part(every, 99).trained.sizes_U) == 0
