"""Packing plans: every unit once an epoch, rows within their limits, siblings beside each other, always the same."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrpo_jax.data.batch_order import SHUFFLES, batch_order
from qrpo_jax.data.packing import UNLIMITED, plan_batches, plan_rows
from qrpo_jax.data.packing_units import Units
from qrpo_jax.errors import UserError
from tests.helpers.tiny import assert_trees_equal, batches_of

# Prompts with their shared tokens, and for each the own tokens of its units.
prompts = st.lists(st.tuples(st.integers(0, 11), st.lists(st.integers(1, 12), min_size=1, max_size=7)), min_size=1)
sizes = st.sampled_from([1, 2])


def make(drawn, size=1):
    """Units of `size` completions each, numbered in order; those of one unit have the same length."""
    flat = [(p, shared, own) for p, (shared, owns) in enumerate(drawn) for own in owns for _ in range(size)]
    return Units(np.full(len(flat) // size, size), *(np.asarray([entry[k] for entry in flat], int) for k in range(3)))


def unit_of(units):
    return np.repeat(np.arange(len(units)), units.sizes_U)


def units_of_batches(plan, units):
    """The units of each batch, sorted; fails where completions of a unit are not together."""
    owner, size = unit_of(units), int(units.sizes_U[0])
    batches = []
    for batch in batches_of(plan):
        found = []
        for row in batch:
            order = [c for group in row for c in group]
            for i in range(0, len(order), size):
                first = int(units.first_U[owner[order[i]]])
                assert order[i : i + size] == [*range(first, first + size)], order
                found.append(int(owner[order[i]]))
        batches.append(sorted(found))
    return batches


def row_tokens_of(units, row):
    return sum(int(units.shared_C[group[0]]) + int(units.length_C[list(group)].sum()) for group in row)


def check_rows(plan, units, share):
    used = 0
    for batch in batches_of(plan):
        assert len(batch) <= plan.rows
        for row in batch:
            tokens = row_tokens_of(units, row)
            assert tokens <= plan.row_tokens, (tokens, row)
            assert sum(map(len, row)) <= plan.slots, row
            used += tokens
            for group in row:
                assert len({int(units.prompts_C[c]) for c in group}) == 1, group
                assert share or len(group) == 1, group
    assert plan.tokens == used, (plan.tokens, used)
    part = plan.rows // plan.microbatches
    computed = sum(-(-len(batch) // part) * part for batch in batches_of(plan)) * plan.row_tokens
    assert abs(plan.padding - (1 - used / computed)) < 1e-12


@settings(max_examples=80, deadline=None)
@given(
    prompts,
    sizes,
    st.booleans(),
    st.sampled_from(SHUFFLES),
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), st.integers(1, 4)),
)
def test_plans_hold_every_unit_once_an_epoch_in_batches_of_equal_size(drawn, size, share, shuffle, numbers):
    batch_units, epochs, seed, multiple = numbers
    units = make(drawn, size)
    options = dict(batch_units=batch_units, row_tokens=47, slots=6, epochs=epochs, row_multiple=multiple)
    options |= dict(share=share, shuffle=shuffle, seed=seed)
    plan = plan_batches(units, **options)
    check_rows(plan, units, share)
    batches = units_of_batches(plan, units)
    count = len(units)
    assert sorted(sum(batches, [])) == sorted([*range(count)] * epochs)
    assert [len(b) for b in batches[:-1]] == [batch_units] * (plan.steps - 1) and 1 <= len(batches[-1]) <= batch_units
    assert plan.steps == math.ceil(epochs * count / batch_units)
    assert plan.rows == plan.microbatches * multiple and plan.rows < max(map(len, batches_of(plan))) + multiple
    halves = plan_batches(units, **options, microbatches=2)
    assert halves.rows % (2 * multiple) == 0 and halves.microbatches == 2
    assert plan.separate_tokens == epochs * units.tokens_U(share=False).sum()
    assert_trees_equal(plan, plan_batches(units, **options))


@settings(max_examples=60, deadline=None)
@given(prompts, sizes, st.booleans(), st.integers(1, 5))
def test_rows_hold_every_unit_once(drawn, size, share, batch_rows):
    units = make(drawn, size)
    plan = plan_rows(units, 47, 6, batch_rows, share=share)
    check_rows(plan, units, share)
    assert sorted(sum(units_of_batches(plan, units), [])) == [*range(len(units))]
    assert all(len(batch) == batch_rows for batch in batches_of(plan)[:-1])


@settings(max_examples=60, deadline=None)
@given(prompts, sizes)
def test_a_prompt_is_copied_only_where_its_units_do_not_fit_one_row(drawn, size):
    units = make(drawn, size)
    plan = plan_rows(units, 47, 6, 1)
    copies = Counter(int(units.prompts_C[group[0]]) for batch in batches_of(plan) for row in batch for group in row)
    for p in range(len(drawn)):
        members = units.prompts_C == p
        tokens = int(units.shared_C[members][0] + units.length_C[members].sum())
        if tokens <= 47 and members.sum() <= 6:
            assert copies[p] == 1, (p, copies[p])
    shared = sum((copies[p] - 1) * drawn[p][0] for p in range(len(drawn)))
    least = sum(entry[0] for entry in drawn) + int(units.length_C.sum())
    assert plan.tokens == least + shared


def epochs_of(batch_units, count, **options):
    """The units of each batch, sorted, for each of two epochs of `count` units; batches divide an epoch."""
    orders = [sorted(order.tolist()) for order in batch_order(batch_units=batch_units, epochs=2, **options)]
    return orders[: count // batch_units], orders[count // batch_units :]


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_epochs_and_seeds_differ_and_no_seed_keeps_the_order(shuffle):
    units = make([(3, [2] * 5)] * 7)
    options = dict(units=units, batch_units=7, count=35, shuffle=shuffle)
    first, second = epochs_of(seed=0, **options)
    assert first != second
    for epoch in (first, second):
        assert sorted(u for batch in epoch for u in batch) == [*range(35)]
    assert epochs_of(seed=1, **options)[0] != first
    kept = [*range(35)]
    assert epochs_of(seed=None, **options) == ([kept[i : i + 7] for i in range(0, 35, 7)],) * 2


def test_which_units_meet_depends_on_neither_rows_nor_sharing():
    units = make([(5, [3, 4, 9, 2]), (2, [7, 7])] * 11, size=2)
    options = dict(batch_units=7, seed=3, epochs=2)
    plans = [
        plan_batches(units, row_tokens=tokens, slots=slots, share=share, row_multiple=multiple, **options)
        for tokens, slots, share, multiple in [(37, 4, True, 1), (64, 12, False, 3), (211, 40, True, 8)]
    ]
    batches = [units_of_batches(plan, units) for plan in plans]
    assert batches[0] == batches[1] == batches[2]


def test_shuffled_prompts_keep_siblings_in_one_batch_and_shuffled_units_part_them():
    units = make([(3, [2] * 4)] * 30)
    met = {}
    for shuffle in SHUFFLES:
        orders = batch_order(units, 12, 3, seed=0, shuffle=shuffle)
        met[shuffle] = [len({int(units.prompts_C[u]) for u in order}) for order in orders]
    assert met["prompts"] == [3] * 30, met
    assert np.mean(met["units"]) > 9, met


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("count, batch_units, epochs", [(523, 31, 2), (4000, 64, 1), (61, 61, 3), (7, 13, 4)])
def test_batches_have_equally_many_tokens_and_every_unit_once_an_epoch(shuffle, count, batch_units, epochs):
    rng = np.random.default_rng(count)
    lengths = np.exp(rng.normal(4, 1, count)).astype(int) + 1
    cuts = np.sort(rng.choice(np.arange(1, count), count // 3, replace=False))
    drawn = [(int(rng.integers(1, 40)), part.tolist()) for part in np.split(lengths, cuts)]
    units = make(drawn)
    options = dict(batch_units=batch_units, epochs=epochs, seed=2, shuffle=shuffle)
    batches = batch_order(units, **options)
    assert [len(batch) for batch in batches[:-1]] == [batch_units] * (len(batches) - 1)
    order = np.concatenate(batches)
    for epoch in range(epochs):
        assert sorted(order[epoch * count : (epoch + 1) * count].tolist()) == [*range(count)], epoch
    again = batch_order(units, **options)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True)), "the same seed must give the same batches"
    inner = [i for i in range(len(batches)) if (i + 1) * batch_units % count >= batch_units]  # within one epoch
    whole = [units.own_U[batches[i]].sum() for i in inner]
    if len(whole) > 3:
        random = [lengths[rng.permutation(count)[:batch_units]].sum() for _ in range(200)]
        spread, chance = (np.std(values) / np.mean(values) for values in (whole, random))
        assert spread < 0.4 * chance, (spread, chance)


def test_which_batch_a_unit_is_in_is_random():
    """Lengths decide how batches are put together; neither the first batch nor the last has the long ones."""
    units = make([(2, [length]) for length in range(1, 97)])
    longest = [
        [i for i, batch in enumerate(batch_order(units, 8, 1, seed)) if 95 in batch.tolist()][0] for seed in range(240)
    ]
    counts = np.bincount(longest, minlength=12)
    assert abs(counts - 20).max() < 5 * np.sqrt(20), counts


def test_with_one_unit_a_prompt_both_shuffles_are_the_same():
    units = make([(3, [2])] * 31)
    orders = [np.concatenate(batch_order(units, 5, 2, seed=4, shuffle=shuffle)).tolist() for shuffle in SHUFFLES]
    assert orders[0] == orders[1] and orders[0] != [*range(31)] * 2


def test_rows_fill_one_microbatch_after_the_other():
    """`make_step` puts row b into part b mod k, so that devices keep their rows."""
    units = make([(2, [9])] * 17)
    plan = plan_batches(units, batch_units=17, row_tokens=11, slots=2, row_multiple=4)
    assert (plan.rows, plan.microbatches) == (20, 5)
    places = [plan.place_of(row) for row in range(plan.rows)]
    assert sorted(places) == [*range(20)]
    assert [b % 5 for b in places] == [row // 4 for row in range(20)]


def test_unlimited_slots_are_as_many_as_the_fullest_row_needs():
    units = make([(1, [3, 4, 5, 2, 2]), (9, [6] * 9)])
    plan = plan_rows(units, 23, UNLIMITED, 2)
    assert plan.slots == 6 and max(sum(map(len, row)) for batch in batches_of(plan) for row in batch) == 5


def test_first_fit_decreasing_leaves_little_padding():
    lengths = np.random.default_rng(0).integers(5, 60, 400)
    plan = plan_rows(make([(0, [int(n)]) for n in lengths]), 128, 64, 1)
    assert plan.padding < 0.05, plan.padding


@pytest.mark.parametrize(
    "drawn, size, share, message, about",
    [
        ([], 1, True, "nothing to pack", "lengths"),
        ([(20, [3]), (20, [18])], 1, True, "38 tokens", "row_tokens"),
        ([(20, [4])], 2, False, "48 tokens", "row_tokens"),
        ([(2, [1])], 4, True, "4 completions", "slots"),
    ],
)
def test_units_that_no_row_can_hold_are_refused_about_an_argument(drawn, size, share, message, about):
    units = make(drawn, size)
    with pytest.raises(UserError, match=message) as of_batches:
        plan_batches(units, batch_units=2, row_tokens=37, slots=3, share=share)
    with pytest.raises(UserError, match=message) as of_rows:
        plan_rows(units, 37, 3, 2, share=share)
    assert of_batches.value.about == of_rows.value.about == (about,)
