"""Packing plans: every unit once an epoch, rows within their limits, the same plan for the same seed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrpo_jax.data.packing import plan_batches, plan_rows
from qrpo_jax.errors import UserError

units = st.lists(st.tuples(st.integers(1, 31), st.sampled_from([1, 2])), min_size=1, max_size=41)


def arrays(drawn):
    return np.asarray([length for length, _ in drawn]), np.asarray([size for _, size in drawn])


def flat(plan):
    return [unit for batch in plan.batches for row in batch for unit in row]


def check_rows(plan, lengths, sizes):
    for batch in plan.batches:
        assert len(batch) <= plan.rows
        for row in batch:
            assert sum(lengths[u] for u in row) <= plan.row_tokens, row
            assert sum(sizes[u] for u in row) <= plan.slots, row


@settings(max_examples=60, deadline=None)
@given(units, st.integers(1, 9), st.integers(1, 3), st.integers(0, 5), st.integers(1, 4))
def test_plans_hold_every_unit_once_an_epoch_in_batches_of_equal_size(drawn, size, epochs, seed, multiple):
    lengths, sizes = arrays(drawn)
    options = dict(batch_units=size, row_tokens=37, slots=3, epochs=epochs, row_multiple=multiple)
    plan = plan_batches(lengths, sizes, seed=seed, **options)
    check_rows(plan, lengths, sizes)
    assert sorted(flat(plan)) == sorted([*range(len(drawn))] * epochs)
    counts = [sum(map(len, batch)) for batch in plan.batches]
    assert counts[:-1] == [size] * (plan.steps - 1) and 1 <= counts[-1] <= size
    assert plan.steps == math.ceil(epochs * len(drawn) / size)
    assert plan.rows % multiple == 0 and plan.rows < max(map(len, plan.batches)) + multiple
    empty = 1 - epochs * lengths.sum() / (plan.steps * plan.rows * 37)
    assert abs(plan.padding - empty) < 1e-12
    assert plan == plan_batches(lengths, sizes, seed=seed, **options), "the same seed must give the same plan"


@settings(max_examples=40, deadline=None)
@given(units, st.integers(1, 5))
def test_rows_hold_every_unit_once(drawn, batch_rows):
    lengths, sizes = arrays(drawn)
    plan = plan_rows(lengths, sizes, 37, 3, batch_rows)
    check_rows(plan, lengths, sizes)
    assert sorted(flat(plan)) == [*range(len(drawn))]
    assert all(len(batch) == batch_rows for batch in plan.batches[:-1])
    assert abs(plan.padding - (1 - lengths.sum() / (plan.steps * batch_rows * 37))) < 1e-12


def epochs_of(plan, batch_units, count):
    """Which units each epoch of `count` units holds; needs batches that divide an epoch."""
    per_epoch = count // batch_units
    return [
        [sorted(u for row in batch for u in row) for batch in plan.batches[e : e + per_epoch]]
        for e in range(0, plan.steps, per_epoch)
    ]


def test_epochs_and_seeds_differ_and_no_seed_keeps_the_order():
    lengths, sizes = np.full(35, 3), np.full(35, 1)
    options = dict(batch_units=7, row_tokens=11, slots=3, epochs=2)
    first, second = epochs_of(plan_batches(lengths, sizes, seed=0, **options), 7, 35)
    assert first != second
    for epoch in (first, second):
        assert sorted(u for batch in epoch for u in batch) == [*range(35)]
    assert epochs_of(plan_batches(lengths, sizes, seed=1, **options), 7, 35)[0] != first
    kept = [*range(35)]
    assert (
        epochs_of(plan_batches(lengths, sizes, seed=None, **options), 7, 35)
        == [[kept[i : i + 7] for i in range(0, 35, 7)]] * 2
    )


def test_first_fit_decreasing_leaves_little_padding():
    lengths = np.random.default_rng(0).integers(5, 60, 400)
    plan = plan_rows(lengths, np.ones(400, int), 128, 64, 1)
    assert plan.padding < 0.05, plan.padding


@pytest.mark.parametrize(
    "lengths, sizes, message, about",
    [
        ([], [], "nothing to pack", "lengths"),
        ([3, 38], [1, 1], "38 tokens", "row_tokens"),
        ([3, 5], [1, 4], "4 completions", "slots"),
    ],
)
def test_units_that_no_row_can_hold_are_refused_about_an_argument(lengths, sizes, message, about):
    with pytest.raises(UserError, match=message) as of_batches:
        plan_batches(np.asarray(lengths), np.asarray(sizes), batch_units=2, row_tokens=37, slots=3)
    with pytest.raises(UserError, match=message) as of_rows:
        plan_rows(np.asarray(lengths), np.asarray(sizes), 37, 3, 2)
    assert of_batches.value.about == of_rows.value.about == (about,)
