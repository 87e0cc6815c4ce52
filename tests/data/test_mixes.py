"""Synthetic completions of length mixes: lengths as named, prompts the same among siblings, the same for one seed."""

import numpy as np
import pytest

from qrpo_jax.data.mixes import MIXES, choose_mix, synthetic
from qrpo_jax.errors import UserError
from tests.helpers import tiny


@pytest.mark.parametrize("name", MIXES)
def test_lengths_are_those_of_the_mix_and_siblings_have_one_prompt(name):
    mix = choose_mix(name)
    prompts = 400
    table = synthetic(mix, prompts, vocab=97, seed=3)
    length, prompt = table.completions_C.length, table.prompt_lengths_C
    assert len(table.names) == prompts * mix.siblings == sum(map(len, table.units))
    assert {len(unit) for unit in table.units} == {2 if mix.pairs else 1}
    assert abs(np.median(prompt) / mix.prompt - 1) < 0.15 and abs(np.median(length) / mix.completion - 1) < 0.1
    assert (length >= 1).all() and (prompt >= 1).all() and (prompt + length).max() <= mix.most
    assert table.tokens.min() >= 0 and table.tokens.max() < 97 and len(table.tokens) == (prompt + length).sum()
    for c in range(0, 60):
        first = c - c % mix.siblings
        assert table.prompts_C[c] == table.prompts_C[first]
        one, other = (table.tokens[table.starts_C[i] : table.starts_C[i] + prompt[i]] for i in (c, first))
        np.testing.assert_array_equal(one, other)
    assert len(np.unique(table.prompts_C)) == prompts
    for field in table.completions_C:
        assert np.isfinite(field).all()
    again = synthetic(mix, prompts, vocab=97, seed=3)
    tiny.assert_trees_equal(table.completions_C, again.completions_C)
    np.testing.assert_array_equal(table.tokens, again.tokens)


def test_an_unknown_mix_is_refused():
    with pytest.raises(UserError, match="many_short, chat_pairs, long_prompts"):
        choose_mix("short")
