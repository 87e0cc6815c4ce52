"""Rules that every way to compute attention follows: which keys a query sees, and the soft cap of scores."""

import jax.numpy as jnp
from jax import Array


def visible(segments_BxL: Array, positions_BxL: Array, window: Array | int | None = None) -> Array:
    """Which keys (last axis) each query sees, bool [B, L, L].

    A query sees the keys of its own segment up to and including its own position. With a window it sees only the last
    `window` of them, its own included. Padding (segment 0) is seen by nobody. One rule serves packed and padded rows,
    and packed sequences cannot see each other.
    """
    same = segments_BxL[:, :, None] == segments_BxL[:, None, :]
    past = positions_BxL[:, :, None] >= positions_BxL[:, None, :]
    seen = same & past & (segments_BxL > 0)[:, None, :]
    if window is None:
        return seen
    return seen & in_window(positions_BxL[:, :, None], positions_BxL[:, None, :], window)


def in_window(query_positions: Array, key_positions: Array, window: Array | int) -> Array:
    """Whether a key is among the last `window` tokens before and including the query; positions broadcast."""
    return query_positions - key_positions < window


def soft_cap(x: Array, cap: float | None) -> Array:
    """x squeezed into (-cap, cap) by a tanh (Gemma 2); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
