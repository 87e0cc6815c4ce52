"""Sampling: each prompt passes through the decoder once, then n completions of it are decoded with a cache.

A batch has fewer slots than completions. A slot whose completion ends takes the next one in the same step (`queue`), so
that short completions do not wait for long ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qrpo_jax.devices.mesh import replicated, row_sharding
from qrpo_jax.model.cache import Cache, pinned, start_cache
from qrpo_jax.model.compute import DEFAULT, Compute
from qrpo_jax.model.decoder import Decoder, Parameters
from qrpo_jax.model.decoding_layout import for_decoding
from qrpo_jax.sampling.draw import pick, truncate
from qrpo_jax.sampling.prefill import Prompts, read_prompts
from qrpo_jax.sampling.queue import Queue, advance_queue, arrange, start_queue
from qrpo_jax.sampling.stop import Stops

LEAST_TEMPERATURE = 1e-30  # lower ones have no reciprocal in float32, and give the same samples

LAYOUT = "decoding_layout"  # scope of the operations that lay parameters out, by which a compiled program names them


class Samples(NamedTuple):
    """P prompts with n completions each of at most T tokens."""

    # int32; if the completion finished, the last counted token is an end token or ends a stop string. Then 0s follow.
    tokens_PxnxT: Array
    lengths_Pxn: Array  # int32, tokens that count
    finished_Pxn: Array  # bool, False where the length limit cut the completion
    log_probs_PxnxT: Array  # float32, of the tempered distribution before top-k, top-p and min-p cut it; then 0s
    slot_steps: Array  # [] int32, steps times slots: what was decoded, whether it counts or not

    @property
    def log_probs_Pxn(self) -> Array:
        """Those of whole completions."""
        return self.log_probs_PxnxT.sum(-1)


class Progress(NamedTuple):
    """B = D·Q·m slots while they are decoded, and the C = P·n completions of each device."""

    cache: Cache
    queue: Queue
    logits_BxV: Array  # of the next token
    states_B: Array  # int32, of `Stops`
    tokens_DxCxT: Array
    lengths_DxC: Array
    finished_DxC: Array
    log_probs_DxCxT: Array


def sample_shardings(compute: Compute) -> Any:
    """Where samples lie, as `Samples` of shardings, if parameters are laid out for decoding.

    Arguments and results of such a program have different meshes. Otherwise None: jax can tell by itself.
    """
    if compute.stored is None or compute.mesh is None:
        return None
    rows: Any = row_sharding(compute.mesh)
    everywhere: Any = replicated(compute.mesh)
    return Samples(rows, rows, rows, rows, everywhere)


def make_sampler(
    graph: nnx.GraphDef,
    *,
    completions: int,
    max_new_tokens: int,
    temperature: float,
    end_tokens: tuple[int, ...],
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stops: Stops | None = None,
    slots: int = 0,
    prefill_tokens: int = 0,
    compute: Compute = DEFAULT,
) -> Callable[[Parameters, Array, Array, Array], Samples]:
    """A pure function `(parameters, tokens_PxL, lengths_P, keys_P) -> Samples`, to be jitted.

    Prompts are padded on the right. A completion's randomness depends only on its prompt's key, its index among the n
    and the place of each token, so neither batching nor sharding nor the number of slots changes what is drawn.

    Args:
      graph: of the decoder, with adapters if the parameters have them.
      completions: n, how many completions each prompt gets.
      max_new_tokens: T, the length limit of a completion.
      temperature: divides the logits; 0 is greedy decoding.
      end_tokens: each of these ends a completion.
      top_k, top_p, min_p: as in `truncate`; 0, 1 and 0 cut nothing.
      stops: strings that end a completion with the token in which they end.
      slots: completions that each device decodes at a time, or fewer; 0: all.
      prefill_tokens: places of prompts that each device reads at a time; 0: all.
      compute: how the decoder is computed.
    """
    ends = jnp.asarray(end_tokens, jnp.int32)
    devices = compute.row_parts

    def draw(logits_BxV: Array, keys_B: Array, ages_B: Array) -> tuple[Array, Array]:
        """The next tokens and their log-probabilities."""
        if temperature == 0:
            tokens_B, tempered_BxV = jnp.argmax(logits_BxV, axis=-1), logits_BxV
        else:
            tempered_BxV = logits_BxV
            if temperature != 1:
                # From the largest logit on, because rounding errors of large quotients would pass for differences.
                tempered_BxV = (logits_BxV - logits_BxV.max(-1, keepdims=True)) / max(temperature, LEAST_TEMPERATURE)
            uniform_B = jax.vmap(lambda key, age: jax.random.uniform(jax.random.fold_in(key, age)))(keys_B, ages_B)
            tokens_B = pick(truncate(tempered_BxV, top_k, top_p, min_p), uniform_B)
        picked_B = jnp.take_along_axis(tempered_BxV, tokens_B[:, None], axis=-1)[:, 0]
        return tokens_B.astype(jnp.int32), picked_B - jax.nn.logsumexp(tempered_BxV, axis=-1)

    def lengths_of(prompts: Prompts, prompt_DxQ: Array) -> Array:
        return jnp.take_along_axis(prompts.lengths_DxP, prompt_DxQ, axis=1, mode="clip").reshape(-1)

    def first_prompts(prompts: Prompts, groups: int) -> tuple[Array, Array]:
        """Keys and values of the first prompts of each device."""
        k, v = (x[:, :, :groups].reshape(x.shape[0], -1, *x.shape[3:]) for x in (prompts.k, prompts.v))
        return k, v

    def with_taken(cache: Cache, prompts: Prompts, prompt_DxQ: Array, taken_DxQ: Array) -> Cache:
        """The cache with the prompt that one group of each device took; if none did, the first gets its own again."""
        group_Dx1 = jnp.argmax(taken_DxQ, axis=-1, keepdims=True)
        prompt_D = jnp.take_along_axis(prompt_DxQ, group_Dx1, axis=-1)[:, 0]
        pick = jax.vmap(functools.partial(jax.lax.dynamic_index_in_dim, axis=1, keepdims=False), (1, 0), 1)
        replace = jax.vmap(functools.partial(jax.lax.dynamic_update_index_in_dim, axis=1), (1, 1, 0), 1)

        def put(x: Array, source: Array) -> Array:
            apart = x.reshape(x.shape[0], *taken_DxQ.shape, *x.shape[2:])
            return pinned(replace(apart, pick(source, prompt_D), group_Dx1[:, 0]).reshape(x.shape), compute.cache_order)

        k, v = put(cache.prompt_k, prompts.k), put(cache.prompt_v, prompts.v)
        return cache._replace(prompt_k=k, prompt_v=v, prompt_lengths_Q=lengths_of(prompts, prompt_DxQ))

    def first_logits(prompts: Prompts, prompt_DxQ: Array, each: int) -> Array:
        found = jnp.take_along_axis(prompts.logits_DxPxV, prompt_DxQ[..., None], axis=1, mode="clip")
        return jnp.repeat(found.reshape(-1, found.shape[-1]), each, axis=0)

    def advance(decoder: Decoder, prompts: Prompts, keys_DxC: Array, now: Progress) -> Progress:
        """Every slot with one more token, and the next completion where that was the last."""
        count, (_, groups, each) = prompts.lengths_DxP.shape[1], now.queue.completion_DxQxm.shape
        prompt_B = jnp.repeat(now.queue.prompt_DxQ, each, axis=-1).reshape(devices, -1)
        completion_B = now.queue.completion_DxQxm.reshape(devices, -1)
        active_B = completion_B < completions
        # Idle slots point behind the last completion; what they write is dropped.
        at_DxB = jnp.where(active_B, prompt_B * completions + completion_B, count * completions)
        keys_DxB = jax.vmap(lambda keys, at: jnp.take(keys, at, mode="clip"))(keys_DxC, at_DxB)
        tokens_B, log_probs_B = draw(now.logits_BxV, keys_DxB.reshape(-1), now.cache.ages_B)
        ages_DxB, tokens_DxB = now.cache.ages_B.reshape(devices, -1), tokens_B.reshape(devices, -1)
        states_B = (
            now.states_B if stops is None else jnp.asarray(stops.table_SxV)[now.states_B, tokens_B].astype(jnp.int32)
        )
        last_DxB = jnp.isin(tokens_DxB, ends)
        if stops is not None:
            last_DxB = last_DxB | (states_B == stops.states - 1).reshape(devices, -1)

        def write(x: Array, *at: Array, value: Array) -> Array:
            return jax.vmap(lambda x, at, value: x.at[at].set(value, mode="drop"))(x, at, value)

        tokens_DxCxT = write(now.tokens_DxCxT, at_DxB, ages_DxB, value=tokens_DxB)
        log_probs_DxCxT = write(now.log_probs_DxCxT, at_DxB, ages_DxB, value=log_probs_B.reshape(devices, -1))
        lengths_DxC = write(now.lengths_DxC, at_DxB, value=ages_DxB + 1)
        finished_DxC = write(now.finished_DxC, at_DxB, value=last_DxB)

        hidden_BxD, cache = decoder.decode(tokens_B, now.cache, compute=compute)
        logits_BxV = decoder.logits(hidden_BxD)
        ended = (active_B & (last_DxB | (ages_DxB + 1 >= max_new_tokens))).reshape(devices, groups, each)
        queue, begun = advance_queue(now.queue, ended, count, completions)
        begun_B = begun.reshape(-1)
        if each < completions or groups < count:
            logits_BxV = jnp.where(begun_B[:, None], first_logits(prompts, queue.prompt_DxQ, each), logits_BxV)
        cache = cache._replace(ages_B=jnp.where(begun_B, 0, cache.ages_B))
        if groups < count:
            taken_DxQ = (queue.prompt_DxQ != now.queue.prompt_DxQ) & (queue.prompt_DxQ < count)
            cache = with_taken(cache, prompts, queue.prompt_DxQ, taken_DxQ)
        # Idle slots do not grow older, or attention would read more and more for them.
        idle_B = (queue.completion_DxQxm == completions).reshape(-1)
        cache = cache._replace(ages_B=jnp.where(idle_B, 0, cache.ages_B))
        states_B = jnp.where(begun_B, 0, states_B)
        return Progress(cache, queue, logits_BxV, states_B, tokens_DxCxT, lengths_DxC, finished_DxC, log_probs_DxCxT)

    def sampler(parameters: Parameters, tokens_PxL: Array, lengths_P: Array, keys_P: Array) -> Samples:
        with jax.named_scope(LAYOUT):
            decoder = for_decoding(nnx.merge(graph, parameters), compute)
        count = len(tokens_PxL) // devices
        groups, each = arrange(slots, count, completions)
        indices_n = jnp.arange(completions)
        keys_Pxn = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, indices_n))(keys_P)
        prompts = read_prompts(decoder, tokens_PxL, lengths_P, prefill_tokens, compute)
        queue = start_queue(devices, groups, each)
        shape = (devices, count * completions)
        start = Progress(
            cache=start_cache(
                *first_prompts(prompts, groups),
                lengths_of(prompts, queue.prompt_DxQ),
                each,
                max_new_tokens,
                decoder.settings,
                compute.cache_order,
            ),
            queue=queue,
            logits_BxV=first_logits(prompts, queue.prompt_DxQ, each),
            states_B=jnp.zeros(queue.completion_DxQxm.size, jnp.int32),
            tokens_DxCxT=jnp.zeros((*shape, max_new_tokens), jnp.int32),
            lengths_DxC=jnp.zeros(shape, jnp.int32),
            finished_DxC=jnp.zeros(shape, bool),
            log_probs_DxCxT=jnp.zeros((*shape, max_new_tokens), jnp.float32),
        )
        keys_DxC = keys_Pxn.reshape(shape)
        # After k·T steps each slot has ended k completions, and each prompt may wait for a step until it is taken, so
        # these steps are enough; the compiler needs to be told.
        most = -(-count // groups) * -(-completions // each) * max_new_tokens + count
        end = jax.lax.while_loop(
            lambda now: jnp.any(now.queue.completion_DxQxm < completions) & (now.cache.step < most),
            lambda now: advance(decoder, prompts, keys_DxC, now),
            start,
        )
        shape = (len(tokens_PxL), completions)
        return Samples(
            end.tokens_DxCxT.reshape(*shape, max_new_tokens),
            end.lengths_DxC.reshape(shape),
            end.finished_DxC.reshape(shape),
            end.log_probs_DxCxT.reshape(*shape, max_new_tokens),
            end.cache.step * queue.completion_DxQxm.size,
        )

    return sampler
