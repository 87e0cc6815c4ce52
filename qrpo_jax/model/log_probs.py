"""Log-probabilities of tokens and of completions, by one code path for policy and reference."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qrpo_jax.devices.mesh import round_up
from qrpo_jax.model.attention.rules import soft_cap
from qrpo_jax.model.compute import DEFAULT, Compute
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
    """log softmax(logits / temperature) at the targets, float32 [B, L], with logits = hidden @ unembedding.T.

    The vocabulary is processed in chunks with a running log-sum-exp, and the backward pass recomputes each chunk. The
    logits of the whole vocabulary never exist: peak memory is B·L·vocab_chunk floats instead of B·L·V.

    Args:
      hidden_BxLxD: hidden states after the last norm.
      unembedding_VxD: the matrix from hidden states to logits.
      targets_BxL: token ids.
      temperature: divides the logits, after the soft cap.
      vocab_chunk: tokens of the vocabulary a chunk; 0 is all of them in one.
      cap: soft cap of the logits, or None.
    """
    vocab = unembedding_VxD.shape[0]
    chunk = vocab_chunk if 0 < vocab_chunk < vocab else vocab
    padded_vocab = round_up(vocab, chunk)
    padded_VxD = jnp.pad(unembedding_VxD, ((0, padded_vocab - vocab), (0, 0)))
    stacked = padded_VxD.reshape(-1, chunk, hidden_BxLxD.shape[-1]).astype(hidden_BxLxD.dtype)

    @jax.checkpoint
    def step(carry: tuple[Array, Array, Array], scanned: tuple[Array, Array]) -> tuple[Any, None]:
        high_BxL, total_BxL, picked_BxL = carry
        start, columns_CxD = scanned
        logits_BxLxC = jnp.einsum("BLD,CD->BLC", hidden_BxLxD, columns_CxD, preferred_element_type=jnp.float32)
        logits_BxLxC = soft_cap(logits_BxLxC, cap) / temperature
        ids_C = start + jnp.arange(chunk)
        logits_BxLxC = jnp.where((ids_C < vocab)[None, None], logits_BxLxC, -jnp.inf)
        # The maximum only shifts the exponents and needs no gradient.
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
    (high_BxL, total_BxL, picked_BxL), _ = jax.lax.scan(step, start, (jnp.arange(0, padded_vocab, chunk), stacked))
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
    compute: Compute = DEFAULT,
) -> Array:
    """Log-probability of each token given the tokens before it in its segment, float32 [B, L].

    Args:
      graph, parameters: the decoder.
      tokens_BxL, segments_BxL, positions_BxL: packed rows; a segment is one prompt with one completion.
      targets_BxL: bool, the tokens that belong to a completion; the others (prompt, padding) get 0.
      temperature: divides the logits; 1 is the model's own distribution.
      vocab_chunk: as in `token_log_probs`.
      compute: how the forward pass is computed.
    """
    decoder = nnx.merge(graph, parameters)
    hidden_BxLxD, _ = decoder(tokens_BxL, segments_BxL, positions_BxL, compute=compute)
    # Position l predicts token l + 1. The last position predicts the row's first token, which belongs to a prompt and
    # is never a target.
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
