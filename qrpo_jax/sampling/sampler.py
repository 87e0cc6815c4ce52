"""Sampling: each prompt passes through the decoder once, then n completions of it are decoded with a cache."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qrpo_jax.model.cache import Cache, start_cache
from qrpo_jax.model.compute import DEFAULT, Compute
from qrpo_jax.model.decoder import Decoder, Parameters
from qrpo_jax.model.layout import one_sequence


class Samples(NamedTuple):
    """P prompts with n completions each of at most T tokens."""

    tokens_PxnxT: Array  # int32; the last counted token is the end token if the completion finished, then 0s follow
    lengths_Pxn: Array  # int32, tokens that count
    finished_Pxn: Array  # bool, False where the length limit cut the completion
    log_probs_Pxn: Array  # float32, of the tempered distribution before top-k and top-p cut it


class Progress(NamedTuple):
    """B = P·n completions while they are decoded; `cache.step` is the number of tokens so far."""

    cache: Cache
    logits_BxV: Array  # of the next token
    finished_B: Array
    tokens_BxT: Array
    lengths_B: Array
    log_probs_B: Array


def truncate(logits_BxV: Array, top_k: int, top_p: float) -> Array:
    """Sets logits outside the top k, or outside the smallest set of mass `top_p`, to -inf."""
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


def make_sampler(
    graph: nnx.GraphDef,
    *,
    completions: int,
    max_new_tokens: int,
    temperature: float,
    end_tokens: tuple[int, ...],
    top_k: int = 0,
    top_p: float = 1.0,
    compute: Compute = DEFAULT,
) -> Callable[[Parameters, Array, Array, Array], Samples]:
    """A pure function `(parameters, tokens_PxL, lengths_P, keys_P) -> Samples`, to be jitted.

    Prompts are padded on the right. A completion's randomness depends only on its prompt's key and its index among
    the n, so neither batching nor sharding changes what is drawn.

    Args:
      graph: of the decoder, with adapters if the parameters have them.
      completions: n, how many completions each prompt gets.
      max_new_tokens: T, the length limit of a completion.
      temperature: divides the logits; 0 is greedy decoding.
      end_tokens: each of these ends a completion.
      top_k, top_p: as in `truncate`; 0 and 1 cut nothing.
      compute: how the decoder is computed.
    """
    ends = jnp.asarray(end_tokens, jnp.int32)

    def draw(logits_BxV: Array, keys_B: Array, step: Array) -> tuple[Array, Array]:
        """The next tokens and their log-probabilities."""
        if temperature == 0:
            tokens_B = jnp.argmax(logits_BxV, axis=-1)
            tempered_BxV = logits_BxV
        else:
            tempered_BxV = logits_BxV / temperature
            step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
            tokens_B = jax.vmap(jax.random.categorical)(step_keys_B, truncate(tempered_BxV, top_k, top_p))
        picked_B = jnp.take_along_axis(tempered_BxV, tokens_B[:, None], axis=-1)[:, 0]
        return tokens_B.astype(jnp.int32), picked_B - jax.nn.logsumexp(tempered_BxV, axis=-1)

    def begin(decoder: Decoder, tokens_PxL: Array, lengths_P: Array) -> Progress:
        """Every completion before its first token."""
        positions_PxL = jnp.broadcast_to(jnp.arange(tokens_PxL.shape[1]), tokens_PxL.shape)
        hidden_PxLxD, (prompt_k, prompt_v) = decoder(
            tokens_PxL, one_sequence(lengths_P, positions_PxL), compute=compute, keep_keys=True
        )
        last_PxD = jnp.take_along_axis(hidden_PxLxD, (lengths_P - 1)[:, None, None], axis=1)[:, 0]
        batch = len(tokens_PxL) * completions
        return Progress(
            cache=start_cache(prompt_k, prompt_v, lengths_P, completions, max_new_tokens),
            logits_BxV=jnp.repeat(decoder.logits(last_PxD), completions, axis=0),
            finished_B=jnp.zeros(batch, bool),
            tokens_BxT=jnp.zeros((batch, max_new_tokens), jnp.int32),
            lengths_B=jnp.zeros(batch, jnp.int32),
            log_probs_B=jnp.zeros(batch, jnp.float32),
        )

    def advance(decoder: Decoder, keys_B: Array, now: Progress) -> Progress:
        """Every unfinished completion with one more token."""
        tokens_B, log_probs_B = draw(now.logits_BxV, keys_B, now.cache.step)
        tokens_B = jnp.where(now.finished_B, 0, tokens_B)
        hidden_BxD, cache = decoder.decode(tokens_B, now.cache, compute=compute)
        return Progress(
            cache=cache,
            logits_BxV=decoder.logits(hidden_BxD),
            finished_B=now.finished_B | jnp.isin(tokens_B, ends),
            tokens_BxT=jax.lax.dynamic_update_slice_in_dim(now.tokens_BxT, tokens_B[:, None], now.cache.step, 1),
            lengths_B=now.lengths_B + ~now.finished_B,
            log_probs_B=now.log_probs_B + jnp.where(now.finished_B, 0.0, log_probs_B),
        )

    def unfinished(now: Progress) -> Array:
        return (now.cache.step < max_new_tokens) & ~jnp.all(now.finished_B)

    def sampler(parameters: Parameters, tokens_PxL: Array, lengths_P: Array, keys_P: Array) -> Samples:
        decoder = nnx.merge(graph, parameters)
        indices_n = jnp.arange(completions)
        keys_Pxn = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, indices_n))(keys_P)
        keys_B, start = keys_Pxn.reshape(-1), begin(decoder, tokens_PxL, lengths_P)
        end = jax.lax.while_loop(unfinished, lambda now: advance(decoder, keys_B, now), start)
        shape = (len(tokens_PxL), completions)
        return Samples(
            end.tokens_BxT.reshape(*shape, max_new_tokens),
            end.lengths_B.reshape(shape),
            end.finished_B.reshape(shape),
            end.log_probs_B.reshape(shape),
        )

    return sampler
