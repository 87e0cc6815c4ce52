"""Log-probabilities of tokens and of completions: the one code path of policy and reference alike."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qrpo_jax.model.attention.plain import soft_cap
from qrpo_jax.model.decoder import Parameters


def token_log_probs(
    hidden_BxLxD: Array,
    unembedding_VxD: Array,
    targets_BxL: Array,
    *,
    temperature: float,
    vocab_chunk: int,
    cap: float | None = None,
) -> Array:
    """log softmax(logits / temperature) at the targets, float32 [B, L]; logits are hidden @ unembedding.T, soft-capped.

    The vocabulary is walked in chunks of `vocab_chunk` columns (0: all at once) with a running log-sum-exp,
    and chunks are recomputed in the backward pass, so logits for the whole vocabulary never exist: peak
    memory is B·L·vocab_chunk floats instead of B·L·V.
    """
    vocab = unembedding_VxD.shape[0]
    chunk = vocab_chunk if 0 < vocab_chunk < vocab else vocab
    chunks = -(-vocab // chunk)
    padded_VxD = jnp.pad(unembedding_VxD, ((0, chunks * chunk - vocab), (0, 0)))
    stacked = padded_VxD.reshape(chunks, chunk, -1).astype(hidden_BxLxD.dtype)

    @jax.checkpoint
    def step(carry: tuple[Array, Array, Array], scanned: tuple[Array, Array]) -> tuple[Any, None]:
        high_BxL, total_BxL, picked_BxL = carry
        start, columns_CxD = scanned
        logits_BxLxC = jnp.einsum("BLD,CD->BLC", hidden_BxLxD, columns_CxD, preferred_element_type=jnp.float32)
        logits_BxLxC = soft_cap(logits_BxLxC, cap) / temperature
        ids_C = start + jnp.arange(chunk)
        logits_BxLxC = jnp.where((ids_C < vocab)[None, None], logits_BxLxC, -jnp.inf)
        # The maximum only shifts the exponents, so no gradient need flow through it.
        new_high_BxL = jnp.maximum(high_BxL, jax.lax.stop_gradient(logits_BxLxC.max(-1)))
        total_BxL = total_BxL * jnp.exp(high_BxL - new_high_BxL)
        total_BxL = total_BxL + jnp.exp(logits_BxLxC - new_high_BxL[..., None]).sum(-1)
        local_BxL = jnp.clip(targets_BxL - start, 0, chunk - 1)
        here_BxL = jnp.take_along_axis(logits_BxLxC, local_BxL[..., None], axis=-1)[..., 0]
        inside_BxL = (targets_BxL >= start) & (targets_BxL < start + chunk)
        picked_BxL = jnp.where(inside_BxL, here_BxL, picked_BxL)
        return (new_high_BxL, total_BxL, picked_BxL), None

    shape = targets_BxL.shape
    start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape))
    (high_BxL, total_BxL, picked_BxL), _ = jax.lax.scan(step, start, (jnp.arange(chunks) * chunk, stacked))
    return picked_BxL - high_BxL - jnp.log(total_BxL)


def row_log_probs(
    graph: nnx.GraphDef,
    parameters: Parameters,
    tokens_BxL: Array,
    segments_BxL: Array,
    positions_BxL: Array,
    targets_BxL: Array,
    *,
    temperature: float = 1.0,
    vocab_chunk: int = 0,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Array:
    """Log-probability of each token given those before it in its segment, float32 [B, L].

    Args:
      graph, parameters: the decoder.
      tokens_BxL, segments_BxL, positions_BxL: packed rows; a segment is one prompt with one completion.
      targets_BxL: bool, the tokens that belong to a completion; others (prompt, padding) get 0.
      temperature: of the distribution that generated the completions; 1 is the model's own.
    """
    decoder = nnx.merge(graph, parameters)
    hidden_BxLxD, _ = decoder(tokens_BxL, segments_BxL, positions_BxL, dtype=dtype, remat=remat)
    # Position l predicts token l + 1. What wraps around lands on the last column, and is never a target,
    # because the first token of a row belongs to a prompt.
    next_BxL = jnp.roll(tokens_BxL, -1, axis=1)
    log_probs_BxL = token_log_probs(
        hidden_BxLxD,
        decoder.unembedding(),
        next_BxL,
        temperature=temperature,
        vocab_chunk=vocab_chunk,
        cap=decoder.settings.logit_cap,
    )
    return jnp.where(targets_BxL, jnp.roll(log_probs_BxL, 1, axis=1), 0.0)


def sum_by_completion(values_BxL: Array, segments_BxL: Array, completions: int) -> Array:
    """Sums per-token values into the row's completions, float32 [B, S]; segment s fills slot s - 1."""
    member_BxLxS = segments_BxL[..., None] == jnp.arange(1, completions + 1)[None, None]
    return jnp.sum(jnp.where(member_BxLxS, values_BxL[..., None], 0.0), axis=1)
