"""Rules that every way to compute attention follows: which keys a query sees, and the soft cap of scores."""

import jax.numpy as jnp
from jax import Array

from qrpo_jax.model.layout import Layout


def visible(queries: Layout, keys: Layout, window: Array | int | None = None) -> Array:
    """Which keys (last axis) each query sees, bool [B, L, M].

    A query sees its group's shared prompt and its own completion, up to and including its own position. With a window
    it sees only the last `window` of these positions, its own included. Padding (group 0) is seen by nobody.
    """

    def pairs(queries_BxL: Array, keys_BxM: Array) -> tuple[Array, Array]:
        return queries_BxL[:, :, None], keys_BxM[:, None, :]

    query_groups, key_groups = pairs(queries.groups_BxL, keys.groups_BxL)
    query_segments, key_segments = pairs(queries.segments_BxL, keys.segments_BxL)
    query_positions, key_positions = pairs(queries.positions_BxL, keys.positions_BxL)
    same = (query_groups == key_groups) & (key_groups > 0)
    seen = same & ((key_segments == 0) | (query_segments == key_segments)) & (key_positions <= query_positions)
    return seen if window is None else seen & in_window(query_positions, key_positions, window)


def in_window(query_positions: Array, key_positions: Array, window: Array | int) -> Array:
    """Whether a key is among the last `window` tokens before and including the query; positions broadcast."""
    return query_positions - key_positions < window


def soft_cap(x: Array, cap: float | None) -> Array:
    """x squeezed into (-cap, cap) by a tanh (Gemma 2); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
