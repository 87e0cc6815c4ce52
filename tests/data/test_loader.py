"""Batches from a plan: the contents of slots, and that a restored iterator resumes where it stopped."""

import dataclasses

import jax
import numpy as np
import pytest

from qrpo_jax.data.loader import assemble, batches
from qrpo_jax.data.per_completion import NEUTRAL
from tests.helpers import tiny

# Every completion with a prompt of its own, siblings that share one, and siblings in rows that do not share.
TABLES = {
    "alone": tiny.examples(23),
    "shared": tiny.examples(23, siblings=5),
    "separate": tiny.examples(23, siblings=5),
}
PLANS = {
    name: tiny.plan(table, batch_units=5, epochs=2, seed=0, share=name != "separate") for name, table in TABLES.items()
}
TABLE, PLAN = TABLES["shared"], PLANS["shared"]


def row_of(batch, b, s):
    """Positions of the row that hold the shared prompt of a slot's completion, and those that hold the completion."""
    groups, segments = batch.layout.groups_BxL[b], batch.layout.segments_BxL[b]
    own = np.flatnonzero(segments == s + 1)
    return np.flatnonzero((groups == groups[own[0]]) & (segments == 0)), own


@pytest.mark.parametrize("name", TABLES)
def test_every_completion_is_whole_in_its_slot_with_its_numbers(name):
    table, plan, seen = TABLES[name], PLANS[name], []
    for index in range(plan.steps):
        batch = assemble(table, plan, index)
        for b, s in np.argwhere(batch.present_BxS):
            c = batch.example_BxS[b, s]
            seen.append(int(c))
            prompt, own = row_of(batch, b, s)
            count, text = table.prompt_lengths_C[c], tiny.text_of(table, c)
            for where in (prompt, own):
                assert len(where) == 0 or np.ptp(where) + 1 == len(where), (b, s, where)
            np.testing.assert_array_equal(batch.tokens_BxL[b, prompt], text[: count - 1])
            np.testing.assert_array_equal(batch.tokens_BxL[b, own], text[count - 1 : -1])
            np.testing.assert_array_equal(batch.targets_BxL[b, own], text[count:])
            read = np.concatenate([prompt, own])
            np.testing.assert_array_equal(batch.layout.positions_BxL[b, read], np.arange(len(text) - 1))
            for field, values_BxS in batch.completions_BxS._asdict().items():
                assert values_BxS[b, s] == getattr(table.completions_C, field)[c], field
    assert sorted(seen) == sorted([*range(23)] * 2)


def test_the_completions_of_a_row_share_a_prompt_only_if_the_plan_shares_it():
    copies = {name: 0 for name in TABLES}
    for name, table in TABLES.items():
        for index in range(PLANS[name].steps):
            layout = assemble(table, PLANS[name], index).layout
            copies[name] += int(layout.groups_BxL.max(1).sum())
            for groups, segments in zip(layout.groups_BxL, layout.segments_BxL, strict=True):
                used = groups[groups > 0]
                assert (np.diff(used) >= 0).all() and used[:1].sum() in (0, 1), "groups are numbered in order"
                assert (np.diff(segments[segments > 0]) >= 0).all(), "slots are filled in order"
    assert copies["separate"] == 2 * 23 and copies["shared"] < 25, copies


def test_padding_has_no_targets_and_empty_slots_hold_the_neutral_numbers():
    for index in range(PLAN.steps):
        batch = assemble(TABLE, PLAN, index)
        pad, empty = batch.layout.groups_BxL == 0, ~batch.present_BxS
        for padded in (batch.tokens_BxL, batch.layout.segments_BxL, batch.layout.positions_BxL):
            assert not padded[pad].any()
        # Prompts are read and never predicted.
        np.testing.assert_array_equal(batch.targets_BxL == -1, batch.layout.segments_BxL == 0)
        assert (batch.example_BxS[empty] == -1).all()
        for name, values_BxS in batch.completions_BxS._asdict().items():
            neutral = getattr(NEUTRAL, name)
            assert values_BxS.dtype == neutral.dtype and (values_BxS[empty] == neutral).all(), name


@pytest.mark.parametrize("multiple", [1, 2])
def test_microbatches_are_filled_in_turn_and_the_plan_knows_their_padding(multiple):
    plan = tiny.plan(TABLE, batch_units=7, row_tokens=23, slots=3, seed=2, row_multiple=multiple)
    assert plan.microbatches > 1
    empty = computed = 0
    for index in range(plan.steps):
        groups_BxL = assemble(TABLE, plan, index).layout.groups_BxL
        # As `make_step` splits them.
        parts = groups_BxL.reshape(-1, plan.microbatches, plan.row_tokens).swapaxes(0, 1)
        filled = parts.any((1, 2))
        assert (np.diff(filled.astype(int)) <= 0).all(), filled
        empty, computed = empty + (parts[filled] == 0).sum(), computed + parts[filled].size
    assert abs(empty / computed - plan.padding) < 1e-12


def test_pairs_occupy_neighbouring_slots_of_one_row_the_higher_reward_first():
    table = tiny.examples(34, pairs=True)
    plan = tiny.plan(table, batch_units=5, seed=1)
    count = 0
    for index in range(plan.steps):
        batch = assemble(table, plan, index)
        w, l = batch.example_BxS[:, 0::2], batch.example_BxS[:, 1::2]
        here = w >= 0
        np.testing.assert_array_equal(here, l >= 0)
        np.testing.assert_array_equal(l[here], w[here] + 1)
        assert (batch.completions_BxS.reward[:, 0::2][here] >= batch.completions_BxS.reward[:, 1::2][here]).all()
        count += here.sum()
    assert count == 17


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


class Counted:
    """Tokens of a table that count how often each is read."""

    def __init__(self, tokens, count):
        self._tokens, self.reads = tokens, np.zeros(count, int)

    def read(self, start, count):
        self.reads[start : start + count] += 1
        return self._tokens.read(start, count)


@pytest.mark.parametrize("name", TABLES)
def test_chosen_rows_are_those_of_the_whole_batch_and_tokens_of_others_are_not_read(name):
    table, rng = TABLES[name], np.random.default_rng(3)
    plan = tiny.plan(table, batch_units=11, seed=1, row_multiple=4, share=name != "separate")
    for index in range(plan.steps):
        whole = assemble(table, plan, index)
        split = np.array_split(rng.permutation(plan.rows), 3)
        for rows in (*split, [], [plan.rows - 1]):
            counted = Counted(table.corpus.tokens, table.corpus.token_count)
            counting = table._replace(corpus=dataclasses.replace(table.corpus, tokens=counted))
            part = assemble(counting, plan, index, rows)
            jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a, b[rows]), part, whole)
            here = part.example_BxS[part.present_BxS]
            allowed = np.zeros(len(counted.reads), bool)
            for entry in table.entries_C[here]:
                row = table.corpus.row_of(entry)
                first, start = table.corpus.first_R1[row], table.corpus.prompt_starts_R[row]
                allowed[start : start + table.corpus.prompt_lengths_R[row]] = True
                start += table.corpus.prompt_lengths_R[row] + table.corpus.lengths_K[first:entry].sum()
                allowed[start : start + table.corpus.lengths_K[entry]] = True
            assert not counted.reads[~allowed].any(), f"rows {rows} read {np.flatnonzero(counted.reads * ~allowed)}"
            assert bool(counted.reads.any()) == bool(len(here))


def test_iterators_over_any_rows_restore_each_other():
    """A job of four processes resumes with two, and one: a checkpoint has the state of the first process alone."""
    whole = list(batches(TABLE, PLAN))
    state = None
    for taken, rows in enumerate(([1], [0], None)):
        iterator = batches(TABLE, PLAN, rows)
        if state is not None:
            iterator.set_state(state)
        assert equal(next(iterator), jax.tree.map(lambda x, rows=rows: x if rows is None else x[rows], whole[taken]))
        state = iterator.get_state()


def test_the_iterator_yields_the_batches_of_the_plan_in_order_and_ends():
    got = list(batches(TABLE, PLAN))
    assert len(got) == PLAN.steps
    assert all(equal(batch, assemble(TABLE, PLAN, i)) for i, batch in enumerate(got))


def test_a_restored_iterator_yields_the_remaining_batches():
    for taken in (0, 1, 4, PLAN.steps - 1):
        iterator = batches(TABLE, PLAN)
        for _ in range(taken):
            next(iterator)
        state = iterator.get_state()
        fresh = batches(TABLE, PLAN)
        fresh.set_state(state)
        rest, again = list(iterator), list(fresh)
        assert len(rest) == len(again) == PLAN.steps - taken
        assert all(map(equal, rest, again)), taken
