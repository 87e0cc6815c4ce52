"""Views: units of many rows at once are those of each row by hand."""

import itertools
from collections import Counter

import numpy as np
import pytest

from qrpo_jax.data.corpus import tokenize
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.text import make_text
from qrpo_jax.data.views import VIEWS, View, pick, pick_units, unit_count
from qrpo_jax.data.vocabulary import vocabulary_tokenizer

TOKENIZER = vocabulary_tokenizer([chr(97 + i) for i in range(26)])
TEXT = make_text(TOKENIZER, "plain", (TOKENIZER.eos_token_id,))
VIEW = View(max_tokens=64, over_long="drop")
NONE = np.zeros(0, np.int32)
COUNT = 41
REFERENCE = {name: selection.references for name, selection in VIEWS.items()}
FIRST = {"offpolicy2best": 6, "offpolicy2random": 2, "offpolicy6random": 6, "offpolicy10random": 20}


def rows(seed, count=COUNT, ordered=0.2):
    """Rows of 1 to 24 completions with tied rewards, of the data set and the reference; some with an order alone."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        number, rewards = int(rng.integers(1, 25)), None
        rewards = rng.integers(0, 9, number) / 7
        sources = rng.choice(["dataset", "reference", "reference"], number)
        pairs = ()
        if number > 3 and rng.uniform() < ordered:
            rewards = np.where(rng.uniform(size=number) < 0.5, np.nan, rewards)
            rewards[0] = np.nan
            pairs = ((2, 0), (1, 3), (3, 1))
        completions = [Completion("ab", NONE, True, s, float(r)) for s, r in zip(sources, rewards, strict=True)]
        result.append(Row(f"r{i}", (Message("user", "c"),), "", tuple(completions), preferences=pairs))
    return result


def picked(data, view, index_R=None):
    """For each row its units, as indices among its completions."""
    corpus = tokenize(data, TEXT)
    index_R = np.arange(len(data)) if index_R is None else index_R
    units = pick(corpus.rewards, corpus.sources_K, corpus.preferences, view, index_R)
    assert (np.diff(units.row_U) >= 0).all(), "rows are in order"
    found = [[] for _ in data]
    ends = np.cumsum(units.sizes_U)
    for row, size, end in zip(units.row_U, units.sizes_U, ends, strict=True):
        unit = units.completions_E[end - size : end] - corpus.first_R1[row]
        assert ((unit >= 0) & (unit < len(data[row].completions))).all()
        found[row].append(tuple(unit.tolist()))
    return found


def may_pick(row, name, first=0):
    kept = [i for i, c in enumerate(row.completions) if c.source == "reference" or not REFERENCE[name]]
    limits = [n for n in (first, FIRST.get(name, 0)) if n]
    return kept[: min(limits)] if limits else kept


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("name", VIEWS)
def test_units_of_every_row_are_those_by_hand(name, first):
    data = rows(1)
    view = VIEW._replace(units=name, first=first, seed=3)
    for i, (row, units) in enumerate(zip(data, picked(data, view), strict=True)):
        assert units == pick_units(row, view, i), "one row alone has the same units"
        kept, reward = may_pick(row, name, first), [c.reward for c in row.completions]
        if VIEWS[name].pairing is None:
            assert units == [(i,) for i in kept]
            continue
        if row.preferences:
            stated = [pair for pair in row.preferences if set(pair) <= set(kept)]
            assert units == (stated[:1] if VIEWS[name].pairing == "extremes" else stated)
            continue
        assert all(reward[a] >= reward[b] and a != b for a, b in units)
        pairs = {frozenset(unit) for unit in units}
        everyone = {frozenset(pair) for pair in itertools.combinations(kept, 2)}
        if VIEWS[name].pairing == "extremes":
            best = max(kept, key=lambda i: (reward[i], -i)) if kept else None
            worst = min(kept, key=lambda i: (reward[i], -i)) if kept else None
            assert units == ([(best, worst)] if len(kept) > 1 else [])
        elif VIEWS[name].pairing == "all":
            assert pairs == everyone and len(units) == len(everyone)
        else:
            assert pairs <= everyone and len(units) == len(kept) // 2
            assert max(Counter(i for unit in units for i in unit).values(), default=1) == 1


def test_random_pairs_depend_on_seed_and_index_alone():
    data = rows(2, ordered=0)
    view = VIEW._replace(units="random_pairs", seed=5)
    whole = picked(data, view)
    some = np.asarray([31, 7, 2])
    assert picked([data[i] for i in some], view, some) == [whole[i] for i in some]
    assert picked(data, view._replace(seed=6)) != whole


def test_every_pairing_of_four_is_drawn_equally_often():
    row = Row("r", (Message("user", "c"),), "", tuple(Completion("ab", NONE, True, "dataset", 0.0) for _ in range(4)))
    draws = 3000
    found = picked([row] * draws, VIEW._replace(units="random_pairs", seed=1))
    counts = Counter(frozenset(map(frozenset, units)) for units in found)
    assert len(counts) == 3 and max(abs(n - draws / 3) for n in counts.values()) < 5 * np.sqrt(draws * 2 / 9), counts


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("first", [0, 1, 3, 30])
def test_the_number_of_units_is_known_from_the_number_of_completions(name, first):
    view = VIEW._replace(units=name, first=first)
    for row in rows(4, ordered=0):
        references = sum(completion.source == "reference" for completion in row.completions)
        units = pick_units(row, view, 0)
        if REFERENCE[name] or not first:
            assert unit_count(len(row.completions), view, references) == len(units)
        else:
            assert unit_count(len(row.completions), view) == len(units)
