"""The policy: one decoder-only transformer whose settings say which family it is.

The module is plain Flax NNX and is used functionally: `graph(settings)` gives its static graph,
`parameters` live outside as a nested dict of arrays, and `nnx.merge(graph, parameters)` joins the two
inside a jitted function. Layers are stacked on a leading axis and scanned, so compile time does not
grow with depth.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from qrpo_jax.model.attention.plain import attend, attend_cached, soft_cap, visible
from qrpo_jax.model.layers import Layer, RMSNorm, normal
from qrpo_jax.model.settings import DecoderSettings, Kind, Lora, join, kinds

Parameters = dict[str, Any]


class Cache(NamedTuple):
    """Keys and values already computed: those of P prompts, and of B = P·n completions of up to T tokens.

    The n completions of a prompt share its keys, so the prompt part costs nothing extra however many are drawn.
    """

    prompt_k_NxPxGxKxL: Array
    prompt_v_NxPxGxKxL: Array
    prompt_lengths_P: Array
    k_NxBxGxKxT: Array
    v_NxBxGxKxT: Array
    step: Array  # [] tokens of each completion already in the cache


def slots_last(x_BxLxGxK: Array) -> Array:
    """Keys or values as the cache keeps them, [B, G, K, L]."""
    return x_BxLxGxK.transpose(0, 2, 3, 1)


class Decoder(nnx.Module):
    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs, lora: Lora | None = None):
        self.settings = settings
        v, d = settings.vocab_size, settings.d_model
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (v, d)) * 0.02, axes=("vocab", "embed"))

        @nnx.split_rngs(splits=settings.layers)
        @nnx.vmap
        def stack(layer_rngs: nnx.Rngs) -> Layer:
            return Layer(settings, layer_rngs, lora)

        self.layers = stack(rngs)
        self.norm = RMSNorm(settings)
        if not settings.tie_embeddings:
            self.head = normal(rngs, (v, d), d, ("vocab", "embed"))

    @property
    def scale(self) -> float | None:
        """What attention scores are multiplied with, where it is not K^-1/2."""
        return None if self.settings.query_scalar is None else self.settings.query_scalar**-0.5

    def embed(self, tokens_BxL: Array, dtype: Any) -> Array:
        """What the first layer reads, [B, L, D]."""
        x_BxLxD = self.embedding[...][tokens_BxL].astype(dtype)
        return x_BxLxD * jnp.asarray(self.settings.d_model**0.5, dtype) if self.settings.scale_embeddings else x_BxLxD

    def unembedding(self) -> Array:
        """The matrix [V, D] that turns hidden states into logits."""
        return self.embedding[...] if self.settings.tie_embeddings else self.head[...]

    def __call__(
        self,
        tokens_BxL: Array,
        segments_BxL: Array,
        positions_BxL: Array,
        *,
        dtype: Any = jnp.float32,
        remat: bool = False,
        keep_keys: bool = False,
    ) -> tuple[Array, Any]:
        """Hidden states [B, L, D] after the last norm, and keys and values [N, B, G, K, L] if kept.

        Args:
          tokens_BxL: token ids.
          segments_BxL: 0 for padding, else which sequence of the row a token belongs to.
          positions_BxL: position within its sequence, from 0.
          dtype: compute type of matrix products (norms, softmax and rotations are float32).
          remat: recompute each layer in the backward pass instead of storing its activations.
          keep_keys: also return what a `Cache` needs.
        """
        graph, stacked = nnx.split(self.layers)
        shared, varied = kinds(self.settings)
        shared_mask_BxLxL = visible(segments_BxL, positions_BxL, shared.window)

        def step(x_BxLxD: Array, scanned: tuple[Any, Kind]) -> tuple[Array, Any]:
            parameters, own = scanned
            mask_BxLxL = shared_mask_BxLxL
            if own.window is not None:
                mask_BxLxL = visible(segments_BxL, positions_BxL, own.window)

            def mix(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
                kept = (slots_last(k), slots_last(v)) if keep_keys else None
                return attend(q, k, v, mask_BxLxL, scale=self.scale, cap=self.settings.attention_cap), kept

            layer = nnx.merge(graph, parameters)
            return layer(x_BxLxD, positions_BxL, join(shared, own).frequencies, mix)

        x_BxLxD = self.embed(tokens_BxL, dtype)
        x_BxLxD, kept = jax.lax.scan(jax.checkpoint(step) if remat else step, x_BxLxD, (stacked, varied))
        return self.norm(x_BxLxD), kept

    def decode(self, tokens_B: Array, cache: Cache, *, dtype: Any = jnp.float32) -> tuple[Array, Cache]:
        """Hidden states [B, D] of one more token of every completion, and the cache with it added."""
        graph, stacked = nnx.split(self.layers)
        shared, varied = kinds(self.settings)
        fan = tokens_B.shape[0] // cache.prompt_lengths_P.shape[0]
        positions_Bx1 = (jnp.repeat(cache.prompt_lengths_P, fan) + cache.step)[:, None]

        def step(carry: tuple[Array, Array, Array], scanned: Any) -> tuple[Any, None]:
            x_Bx1xD, all_k, all_v = carry
            index, parameters, own, prompt_k, prompt_v = scanned
            kind = join(shared, own)

            def mix(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
                # Written in place into the carried cache; handing it through the scan would copy all of it.
                at = (index, 0, 0, 0, cache.step)
                new_k = jax.lax.dynamic_update_slice(all_k, slots_last(k)[None].astype(all_k.dtype), at)
                new_v = jax.lax.dynamic_update_slice(all_v, slots_last(v)[None].astype(all_v.dtype), at)
                past = (new_k[index], new_v[index])
                prompt = (prompt_k, prompt_v, cache.prompt_lengths_P)
                mixed = attend_cached(
                    q[:, 0],
                    *prompt,
                    *past,
                    cache.step + 1,
                    scale=self.scale,
                    cap=self.settings.attention_cap,
                    window=kind.window,
                )
                return mixed[:, None], (new_k, new_v)

            layer = nnx.merge(graph, parameters)
            x_Bx1xD, (all_k, all_v) = layer(x_Bx1xD, positions_Bx1, kind.frequencies, mix)
            return (x_Bx1xD, all_k, all_v), None

        x_Bx1xD = self.embed(tokens_B[:, None], dtype)
        scanned = (
            jnp.arange(self.settings.layers),
            stacked,
            varied,
            cache.prompt_k_NxPxGxKxL,
            cache.prompt_v_NxPxGxKxL,
        )
        carry = (x_Bx1xD, cache.k_NxBxGxKxT, cache.v_NxBxGxKxT)
        (x_Bx1xD, all_k, all_v), _ = jax.lax.scan(step, carry, scanned)
        new = cache._replace(k_NxBxGxKxT=all_k, v_NxBxGxKxT=all_v, step=cache.step + 1)
        return self.norm(x_Bx1xD)[:, 0], new

    def logits(self, hidden: Array) -> Array:
        """Logits [..., V] of hidden states [..., D], float32."""
        columns_VxD = self.unembedding().astype(hidden.dtype)
        logits = jnp.einsum("...D,VD->...V", hidden, columns_VxD, preferred_element_type=jnp.float32)
        return soft_cap(logits, self.settings.logit_cap)


# What training changes is all parameters, or with LoRA the adapters alone: wherever the functions below are given a
# `lora`, they are about its adapters, a tree of their own that `lora.join` puts beside the parameters.


def graph(settings: DecoderSettings, lora: Lora | None = None) -> nnx.GraphDef:
    """The static part of the decoder, with adapters if any, without allocating a parameter."""
    return nnx.split(_abstract(settings, lora))[0]


def initial_parameters(settings: DecoderSettings, key: Array, lora: Lora | None = None) -> Parameters:
    """Fresh random parameters or adapters (float32), as a nested dict."""
    return nnx.to_pure_dict(nnx.state(Decoder(settings, nnx.Rngs(params=key), lora), _kind(lora)))


def abstract_parameters(settings: DecoderSettings, lora: Lora | None = None) -> Parameters:
    """Shapes and types of all parameters or adapters, as `initial_parameters` has them."""
    return nnx.to_pure_dict(nnx.state(_abstract(settings, lora), _kind(lora)))


def logical_axes(settings: DecoderSettings, lora: Lora | None = None) -> Parameters:
    """For each parameter or adapter the names of its axes, which `mesh` maps to the device mesh."""

    def axes(path: tuple[Any, ...], variable: nnx.Variable) -> tuple[str, ...]:
        named = variable.get_metadata()["axes"]
        return ("layers", *named) if path[0] == "layers" else named

    state = nnx.state(_abstract(settings, lora), _kind(lora))
    flat = {path: axes(path, variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def parameter_count(settings: DecoderSettings, lora: Lora | None = None) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_parameters(settings, lora)))


def _kind(lora: Lora | None) -> Any:
    return nnx.Param if lora is None else nnx.LoRAParam


def _abstract(settings: DecoderSettings, lora: Lora | None = None) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(settings, nnx.Rngs(params=0), lora))
