"""Drawing the next token from logits."""

import jax
import jax.numpy as jnp
from jax import Array

CHUNK = 128  # tokens of the vocabulary whose probabilities are added up first


def truncate(logits_BxV: Array, top_k: int, top_p: float, min_p: float = 0.0) -> Array:
    """Sets logits to -inf outside the top k, outside the smallest set of mass `top_p`, and below a share of the best.

    Args:
      top_k: 0: no cut.
      top_p: 1: no cut.
      min_p: share of the largest probability that a token must have; 0: no cut.
    """
    if min_p > 0.0:
        floor_Bx1 = logits_BxV.max(-1, keepdims=True) + jnp.log(min_p)
        logits_BxV = jnp.where(logits_BxV < floor_Bx1, -jnp.inf, logits_BxV)
    if 0 < top_k < logits_BxV.shape[-1]:
        floor_Bx1 = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < floor_Bx1, -jnp.inf, logits_BxV)
    if top_p < 1.0:
        order_BxV = jnp.argsort(-logits_BxV, axis=-1)
        probs_BxV = jnp.take_along_axis(jax.nn.softmax(logits_BxV, axis=-1), order_BxV, axis=-1)
        # A token stays if the mass before it is below top_p, so the most likely token always stays.
        before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV
        rank_BxV = jnp.argsort(order_BxV, axis=-1)
        logits_BxV = jnp.where(jnp.take_along_axis(before_BxV, rank_BxV, axis=-1) < top_p, logits_BxV, -jnp.inf)
    return logits_BxV


def pick(logits_BxV: Array, uniform_B: Array) -> Array:
    """The token of each row at which the distribution function passes a number of [0, 1).

    One random number a row, where the Gumbel trick needs V. The sum goes over chunks, and then inside one, so that its
    rounding errors are those of sums of √V terms, and so that a mesh which splits V exchanges the sums of chunks alone.
    """
    weights_BxV = jnp.exp(logits_BxV - logits_BxV.max(-1, keepdims=True))
    padding = -weights_BxV.shape[-1] % CHUNK
    weights_BxCxW = jnp.pad(weights_BxV, ((0, 0), (0, padding))).reshape(len(weights_BxV), -1, CHUNK)
    sums_BxC = weights_BxCxW.sum(-1)
    ends_BxC = jnp.cumsum(sums_BxC, axis=-1)
    target_B = uniform_B * ends_BxC[:, -1]
    # Chunks and tokens without weight are passed over: their sums do not grow.
    chunk_B = jnp.minimum((ends_BxC <= target_B[:, None]).sum(-1), last_above_zero(sums_BxC))
    own_BxW = jnp.take_along_axis(weights_BxCxW, chunk_B[:, None, None], axis=1)[:, 0]
    before_B = jnp.take_along_axis(ends_BxC - sums_BxC, chunk_B[:, None], axis=-1)[:, 0]
    inside_B = (jnp.cumsum(own_BxW, axis=-1) <= (target_B - before_B)[:, None]).sum(-1)
    # Rounding can put the target behind the last token of its chunk.
    return chunk_B * CHUNK + jnp.minimum(inside_B, last_above_zero(own_BxW))


def last_above_zero(x_BxW: Array) -> Array:
    """Index of each row's last entry above 0."""
    width = x_BxW.shape[-1]
    return width - 1 - jnp.argmax(x_BxW[:, ::-1] > 0, axis=-1)
