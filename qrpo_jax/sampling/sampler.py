"""Completions of prompts: one prefill a prompt, then cached decoding of n completions each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qrpo_jax.model.decoder import Cache, Parameters


class Samples(NamedTuple):
    """P prompts with n completions each of at most T tokens."""

    tokens_PxnxT: Array  # int32, the end token included where the completion ended, 0 after that
    lengths_Pxn: Array  # int32, tokens that count
    finished_Pxn: Array  # bool, False where the length limit cut the completion
    log_probs_Pxn: Array  # float32, of the tempered distribution before top-k and top-p cut it


def truncate(logits_BxV: Array, top_k: int, top_p: float) -> Array:
    """Sets logits outside the top k, or outside the smallest set of mass `top_p`, to -inf."""
    if 0 < top_k < logits_BxV.shape[-1]:
        floor_Bx1 = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < floor_Bx1, -jnp.inf, logits_BxV)
    if top_p < 1.0:
        order_BxV = jnp.argsort(-logits_BxV, axis=-1)
        probs_BxV = jnp.take_along_axis(jax.nn.softmax(logits_BxV, axis=-1), order_BxV, axis=-1)
        # A token stays if the mass before it is short of top_p, so the most likely one always does.
        before_BxV = jnp.cumsum(probs_BxV, axis=-1) - probs_BxV
        rank_BxV = jnp.argsort(order_BxV, axis=-1)
        logits_BxV = jnp.where(jnp.take_along_axis(before_BxV, rank_BxV, axis=-1) < top_p, logits_BxV, -jnp.inf)
    return logits_BxV


def make_sampler(
    graph: nnx.GraphDef,
    *,
    completions: int,
    max_new_tokens: int,
    temperature: float,
    end_tokens: tuple[int, ...],
    top_k: int = 0,
    top_p: float = 1.0,
    dtype: Any = jnp.float32,
) -> Callable[[Parameters, Array, Array, Array], Samples]:
    """A pure function `(parameters, tokens_PxL, lengths_P, keys_P) -> Samples`, to be jitted.

    Prompts are padded on the right. `temperature` 0 is greedy decoding. A completion's randomness depends only
    on its prompt's key and its index among the n, so neither batching nor sharding changes what is drawn.
    """
    ends = jnp.asarray(end_tokens, jnp.int32)

    def choose(logits_BxV: Array, keys_B: Array, step: Array) -> tuple[Array, Array]:
        if temperature == 0:
            tokens_B = jnp.argmax(logits_BxV, axis=-1)
            tempered_BxV = logits_BxV
        else:
            tempered_BxV = logits_BxV / temperature
            step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
            tokens_B = jax.vmap(jax.random.categorical)(step_keys_B, truncate(tempered_BxV, top_k, top_p))
        picked_B = jnp.take_along_axis(tempered_BxV, tokens_B[:, None], axis=-1)[:, 0]
        return tokens_B.astype(jnp.int32), picked_B - jax.nn.logsumexp(tempered_BxV, axis=-1)

    def sampler(parameters: Parameters, tokens_PxL: Array, lengths_P: Array, keys_P: Array) -> Samples:
        decoder = nnx.merge(graph, parameters)
        prompts, width = tokens_PxL.shape
        batch = prompts * completions
        positions_PxL = jnp.broadcast_to(jnp.arange(width), (prompts, width))
        segments_PxL = (positions_PxL < lengths_P[:, None]).astype(jnp.int32)
        hidden_PxLxD, (prompt_k, prompt_v) = decoder(
            tokens_PxL, segments_PxL, positions_PxL, dtype=dtype, keep_keys=True
        )
        last_PxD = jnp.take_along_axis(hidden_PxLxD, (lengths_P - 1)[:, None, None], axis=1)[:, 0]
        layers, _, kv_heads, head_dim, _ = prompt_k.shape
        empty = jnp.zeros((layers, batch, kv_heads, head_dim, max_new_tokens), dtype)
        cache = Cache(prompt_k, prompt_v, lengths_P, empty, empty, jnp.zeros((), jnp.int32))
        which_n = jnp.arange(completions)
        keys_B = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, which_n))(keys_P).reshape(batch)

        def unfinished(carry: Any) -> Array:
            step, _, _, finished_B, *_ = carry
            return (step < max_new_tokens) & ~jnp.all(finished_B)

        def advance(carry: Any) -> Any:
            step, cache, logits_BxV, finished_B, out_BxT, lengths_B, log_probs_B = carry
            tokens_B, token_log_probs_B = choose(logits_BxV, keys_B, step)
            tokens_B = jnp.where(finished_B, 0, tokens_B)
            out_BxT = jax.lax.dynamic_update_slice_in_dim(out_BxT, tokens_B[:, None], step, 1)
            lengths_B = lengths_B + ~finished_B
            log_probs_B = log_probs_B + jnp.where(finished_B, 0.0, token_log_probs_B)
            finished_B = finished_B | jnp.isin(tokens_B, ends)
            hidden_BxD, cache = decoder.decode(tokens_B, cache, dtype=dtype)
            return step + 1, cache, decoder.logits(hidden_BxD), finished_B, out_BxT, lengths_B, log_probs_B

        first_BxV = jnp.repeat(decoder.logits(last_PxD), completions, axis=0)
        carry = (
            jnp.zeros((), jnp.int32),
            cache,
            first_BxV,
            jnp.zeros(batch, bool),
            jnp.zeros((batch, max_new_tokens), jnp.int32),
            jnp.zeros(batch, jnp.int32),
            jnp.zeros(batch, jnp.float32),
        )
        _, _, _, finished_B, out_BxT, lengths_B, log_probs_B = jax.lax.while_loop(unfinished, advance, carry)
        shape = (prompts, completions)
        return Samples(
            out_BxT.reshape(*shape, max_new_tokens),
            lengths_B.reshape(shape),
            finished_B.reshape(shape),
            log_probs_B.reshape(shape),
        )

    return sampler
