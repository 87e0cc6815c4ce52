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
    assert len(table.entries_C) == prompts * mix.siblings == table.sizes_U.sum()
    assert set(table.sizes_U.tolist()) == {2 if mix.pairs else 1}
    assert abs(np.median(prompt) / mix.prompt - 1) < 0.15 and abs(np.median(length) / mix.completion - 1) < 0.1
    assert (length >= 1).all() and (prompt >= 1).all() and (prompt + length).max() <= mix.most
    tokens = table.corpus.tokens.read(0, table.corpus.token_count)
    assert tokens.min() >= 0 and tokens.max() < 97
    assert len(tokens) == (prompt[:: mix.siblings].sum() + length.sum())
    for c in range(0, 60):
        first = c - c % mix.siblings
        assert table.prompts_C[c] == table.prompts_C[first]
        np.testing.assert_array_equal(table.prompt(c), table.prompt(first))
    assert len(np.unique(table.prompts_C)) == prompts
    for field in table.completions_C:
        assert np.isfinite(field).all()
    again = synthetic(mix, prompts, vocab=97, seed=3)
    tiny.assert_trees_equal(table.completions_C, again.completions_C)
    np.testing.assert_array_equal(tokens, again.corpus.tokens.read(0, again.corpus.token_count))


def test_an_unknown_mix_is_refused():
    with pytest.raises(UserError, match="many_short, chat_pairs, long_prompts"):
        choose_mix("short")
