"""The two ranges of keys, and the blocks they touch, say what the definition of visible keys says."""

import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.model.attention.key_ranges import KeyRanges, block_order, key_ranges
from qrpo_jax.model.attention.rules import visible
from tests.helpers.packings import random_layout
from tests.helpers.samples import sampled

LARGEST = np.iinfo(np.int32).max
WINDOWS = [None, 1, 5, 10**6, jnp.int32(7), jnp.int32(LARGEST)]


def as_mask(ranges, keys):
    at = np.arange(keys)[None, None]
    prompt_start, prompt_end, own_start, own_end = (np.asarray(x)[..., None] for x in ranges)
    return ((at >= prompt_start) & (at < prompt_end)), ((at >= own_start) & (at < own_end))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_ranges_hold_the_visible_keys_once_each(seed, window):
    layout = random_layout(np.random.default_rng(seed), rows=3, length=97, longest=13)
    prompt, own = as_mask(key_ranges(layout, window), 97)
    np.testing.assert_array_equal(prompt | own, visible(layout, layout, window))
    assert not (prompt & own).any()
    if window is None:
        assert prompt.any() and own.any()


@pytest.mark.parametrize(
    "seed, block_queries, block_keys, window",
    sampled([(seed, *b, window) for seed in range(4) for b in ((8, 4), (4, 16), (16, 16)) for window in (None, 9)], 3),
)
def test_every_block_with_a_visible_key_is_visited_and_whole_blocks_are_seen_by_all_queries(
    seed, block_queries, block_keys, window
):
    length, keys = 48, 96
    layout = random_layout(np.random.default_rng(seed), rows=2, length=keys, longest=21)
    ranges = KeyRanges(*(x[:, 32 : 32 + length] for x in key_ranges(layout, window)))
    seen = np.asarray(visible(layout, layout, window))[:, 32 : 32 + length]
    tiles = seen.reshape(2, length // block_queries, block_queries, keys // block_keys, block_keys)
    some, every = tiles.any((2, 4)), tiles.all((2, 4))
    for by_keys in (False, True):
        order, counts = block_order(ranges, keys, block_queries, block_keys, by_keys=by_keys)
        expected_some, expected_every = (x.swapaxes(1, 2) if by_keys else x for x in (some, every))
        others = order.shape[-1]
        np.testing.assert_array_equal(np.sort(order, axis=-1), np.broadcast_to(np.arange(others), order.shape))
        rank = np.argsort(np.asarray(order), axis=-1)
        visited, whole = rank < np.asarray(counts)[..., 1:], rank < np.asarray(counts)[..., :1]
        assert not (expected_some & ~visited).any(), "a block with a visible key is left out"
        assert not (whole & ~expected_every).any(), "a block is taken for whole and is not"
        # Ranges of blocks may hold a block that no query sees, where a block of queries ends one group and begins
        # another; it costs time and no exactness.
        assert visited.sum() <= 1.5 * expected_some.sum() + 8, (visited.sum(), expected_some.sum())


def test_long_segments_have_whole_blocks():
    length = 64
    ones = jnp.ones((1, length), jnp.int32)
    segments = jnp.asarray([[0] * 24 + [1] * 20 + [2] * 20], jnp.int32)
    positions = jnp.asarray([[*range(24), *range(24, 44), *range(24, 44)]], jnp.int32)
    order, counts = block_order(key_ranges((ones, segments, positions)), length, 8, 4)
    # The last eight queries are the end of the second completion: six blocks of prompt and three of their own are
    # whole, the two with the queries themselves are not.
    assert counts[0, -1].tolist() == [9, 11]
    # Queries 24 to 31 begin the first completion, which is one range with its prompt.
    assert counts[0, 3].tolist() == [6, 8]
    assert sorted(order[0, -1, :9].tolist()) == [*range(6), 11, 12, 13]
