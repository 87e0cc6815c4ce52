"""Log-probabilities of tokens and of completions, by one code path for policy and reference; and their values."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from qrpo_jax.model import value_head
from qrpo_jax.model.compute import DEFAULT, Compute
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.layout import Layout
from qrpo_jax.model.token_log_probs import Head, token_log_probs


def log_probs_and_values(
    graph: nnx.GraphDef,
    parameters: Parameters,
    tokens_BxL: Array,
    layout: Layout,
    targets_BxL: Array,
    *,
    temperature: float = 1.0,
    vocab_chunk: int = 0,
    compute: Compute = DEFAULT,
) -> tuple[Array, Array | None]:
    """Log-probability of each target given its token and those that it sees, float32 [B, L], and the value before it.

    Values are those of `value_head.values`, by the same forward pass; None if the parameters have no value head.

    Args:
      graph, parameters: the decoder, and its value head if it has one.
      tokens_BxL, layout: packed rows.
      targets_BxL: the next token of each token's completion, or -1 where nothing is predicted, which gets 0.
      temperature: divides the logits; 1 is the model's own distribution.
      vocab_chunk: tokens of the vocabulary whose logits exist at a time; 0 is `token_log_probs.CHUNK`.
      compute: how the forward pass is computed.
    """
    policy, head = value_head.split(parameters)
    decoder = nnx.merge(graph, policy)
    hidden_BxLxD, _ = decoder(tokens_BxL, layout, compute=compute)
    settings = decoder.settings
    unembedding = Head(temperature, settings.logit_cap, vocab_chunk, compute.mesh, settings.logit_scale)
    log_probs_BxL = token_log_probs(hidden_BxLxD, decoder.unembedding(), targets_BxL, unembedding)
    if head is None:
        return log_probs_BxL, None
    return log_probs_BxL, value_head.values(head, hidden_BxLxD, targets_BxL, compute)


def sum_by_completion(values_BxL: Array, segments_BxL: Array, completions: int) -> Array:
    """Sums per-token values into the row's completions, [B, L] -> [B, S]; segment s fills slot s - 1.

    In the place of B there may be any number of axes.
    """
    slots_S = jnp.arange(1, completions + 1).reshape(*(1 for _ in segments_BxL.shape), -1)
    member_BxLxS = segments_BxL[..., None] == slots_S
    return jnp.sum(jnp.where(member_BxLxS, values_BxL[..., None], 0.0), axis=-2)
