"""The policy: one decoder-only transformer for all families; its settings say which.

The module is plain Flax NNX and is used functionally: `graph(settings)` gives its static graph,
`parameters` are a nested dict of arrays outside of it, and `nnx.merge(graph, parameters)` joins the two
inside a jitted function. Layers are stacked on a leading axis and scanned, so compile time does not
grow with depth.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.attention import sharded
from qrpo_jax.model.attention.cached import attend_cached, block_count
from qrpo_jax.model.attention.rules import soft_cap
from qrpo_jax.model.cache import Cache, as_rows, extended, ring_layers, stored, with_tokens
from qrpo_jax.model.compute import DEFAULT, LAYER_INPUT, Compute
from qrpo_jax.model.layers import Layer, RMSNorm, normal, scaled, split_by_token
from qrpo_jax.model.layout import Layout
from qrpo_jax.model.settings import DecoderSettings, LayerConstants, Lora, combine, layer_constants

Parameters = dict[str, Any]


class Past(NamedTuple):
    """Keys and values of the tokens before those that a pass computes.

    Attributes:
      k, v: [N, B, ...] of whole rows, as the cache has them; what is there from `start` on does not matter.
      start: [] int32, the place in the rows of the first token that the pass computes.
    """

    k: Array
    v: Array
    start: Array


class Decoder(nnx.Module):
    """Embedding, stacked layers, last norm and head; with adapters if `lora` is given."""

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
        """Factor of attention scores; None for the default K^-1/2."""
        if self.settings.attention_multiplier is not None:
            return self.settings.attention_multiplier
        return None if self.settings.query_scalar is None else self.settings.query_scalar**-0.5

    def embed(self, tokens_BxL: Array, compute: Compute) -> Array:
        """Input of the first layer, [B, L, D]."""
        split = compute.stored is None  # along the model dimension
        tokens_BxL = compute.constrain(tokens_BxL, "looked_up_rows" if split else "rows", None)
        x_BxLxD = self.embedding[...].astype(compute.dtype)[tokens_BxL]
        if split:
            x_BxLxD = compute.constrain(x_BxLxD, "looked_up_rows", None, "embed")
        x_BxLxD = split_by_token(x_BxLxD, compute)
        if self.settings.scale_embeddings:
            x_BxLxD = x_BxLxD * jnp.asarray(self.settings.d_model**0.5, compute.dtype)
        return scaled(x_BxLxD, self.settings.embedding_multiplier)

    def unembedding(self) -> Array:
        """The matrix [V, D] from hidden states to logits."""
        return self.embedding[...] if self.settings.tie_embeddings else self.head[...]

    def __call__(
        self,
        tokens_BxL: Array,
        layout: Layout,
        *,
        compute: Compute = DEFAULT,
        keep_keys: bool = False,
        past: Past | None = None,
    ) -> tuple[Array, Any]:
        """Hidden states [B, L, D] after the last norm; and keys and values of all layers if kept, else None.

        Args:
          tokens_BxL: token ids.
          layout: which tokens belong to one prompt and completion; of whole rows, also where these have a past.
          compute: how the pass is computed.
          keep_keys: also return the keys and values of these tokens, from which `start_cache` makes a cache.
          past: of the rows whose tokens from `past.start` on these are; None: the tokens are whole rows.
        """
        graph, stacked = nnx.split(self.layers)
        shared, varied = layer_constants(self.settings)
        order, queries, start = compute.cache_order, layout, 0 if past is None else past.start
        if past is not None:
            queries = Layout(*(jax.lax.dynamic_slice_in_dim(x, start, tokens_BxL.shape[1], 1) for x in layout))

        def step(x_BxLxD: Array, scanned: tuple[Any, LayerConstants, Any]) -> tuple[Array, Any]:
            parameters, constants, before = scanned
            layer, constants = nnx.merge(graph, compute.gathered(parameters)), combine(shared, constants)
            x_BxLxD = checkpoint_name(x_BxLxD, LAYER_INPUT)
            q, k, v = layer.project(x_BxLxD, queries.positions_BxL, constants, compute)
            own = stored(k, order), stored(v, order)
            if past is not None:
                k, v = (
                    as_rows(with_tokens(x, new, past.start, order), order) for x, new in zip(before, own, strict=True)
                )
            mixed_BxLxHxK = sharded.attend(
                compute.attention,
                compute.mesh,
                q,
                k,
                v,
                queries,
                layout,
                start,
                constants.window,
                scale=self.scale,
                cap=self.settings.attention_cap,
            )
            return layer.residual(x_BxLxD, mixed_BxLxHxK, compute), own if keep_keys else None

        x_BxLxD = self.embed(tokens_BxL, compute)
        unroll = min(compute.unroll, self.settings.layers)
        body = compute.checkpointed(step, looped=unroll < self.settings.layers)
        before = None if past is None else (past.k, past.v)
        x_BxLxD, kept = jax.lax.scan(body, x_BxLxD, (stacked, varied, before), unroll=unroll)
        return self._normed(x_BxLxD, compute), kept

    def _normed(self, x_BxLxD: Array, compute: Compute) -> Array:
        """Hidden states after the last norm."""
        graph, parameters = nnx.split(self.norm)
        return split_by_token(nnx.merge(graph, compute.gathered(parameters))(x_BxLxD), compute)

    def decode(self, tokens_B: Array, cache: Cache, *, compute: Compute = DEFAULT) -> tuple[Array, Cache]:
        """Hidden states [B, D] of one more token of every completion, and the cache with that token added."""
        graph, stacked = nnx.split(self.layers)
        shared, varied = layer_constants(self.settings)
        group = tokens_B.shape[0] // cache.prompt_lengths_Q.shape[0]
        positions_Bx1 = (jnp.repeat(cache.prompt_lengths_Q, group) + cache.ages_B)[:, None]
        windows = None, self.settings.sliding_window
        blocks = [block_count(cache, window) for window in windows]

        def step(x_Bx1xD: Array, scanned: Any) -> tuple[Array, tuple[Array, Array]]:
            (index, slides), parameters, constants, prompt_k, prompt_v = scanned
            layer, constants = nnx.merge(graph, compute.gathered(parameters)), combine(shared, constants)
            q, k, v = layer.project(x_Bx1xD, positions_Bx1, constants, compute)

            def attended(which: int) -> Array:
                ring = cache.rings[which]
                assert ring is not None, "there are such layers"
                return attend_cached(
                    q[:, 0],
                    k[:, 0],
                    v[:, 0],
                    cache,
                    ring,
                    index,
                    prompt_k,
                    prompt_v,
                    blocks[which],
                    slots_last=compute.cache_order.slots_last,
                    scale=self.scale,
                    cap=self.settings.attention_cap,
                    window=windows[which],
                )

            if None in cache.rings:
                mixed_BxHxK = attended(0 if cache.rings[1] is None else 1)
            else:
                mixed_BxHxK = jax.lax.cond(slides, lambda: attended(1), lambda: attended(0))
            return layer.residual(x_Bx1xD, mixed_BxHxK[:, None], compute), (k[:, 0], v[:, 0])

        places_N = jnp.asarray(ring_layers(self.settings)), jnp.asarray(self.settings.slides)
        scanned = (places_N, stacked, varied, cache.prompt_k, cache.prompt_v)
        x_Bx1xD, kept = jax.lax.scan(step, self.embed(tokens_B[:, None], compute), scanned)
        return self._normed(x_Bx1xD, compute)[:, 0], extended(cache, *kept, self.settings, compute.cache_order)

    def logits(self, hidden: Array) -> Array:
        """Logits [..., V] of hidden states [..., D], float32."""
        columns_VxD = self.unembedding().astype(hidden.dtype)
        wide = at_least_float32(hidden.dtype)
        logits = jnp.einsum("...D,VD->...V", hidden, columns_VxD, preferred_element_type=wide)
        return soft_cap(scaled(logits, self.settings.logit_scale), self.settings.logit_cap)


# Training changes either all parameters or only LoRA's adapters. Without `lora` the functions below return the tree of
# all parameters, with `lora` the tree of its adapters; `lora.join` makes one tree of both. `graph` includes both.


def graph(settings: DecoderSettings, lora: Lora | None = None) -> nnx.GraphDef:
    """The static part of the decoder, with adapters if any; allocates no parameter."""
    return nnx.split(_abstract(settings, lora))[0]


def initial_parameters(settings: DecoderSettings, key: Array, lora: Lora | None = None) -> Parameters:
    """Random parameters or adapters, float32, as a nested dict."""
    return nnx.to_pure_dict(nnx.state(Decoder(settings, nnx.Rngs(params=key), lora), _variable_type(lora)))


def abstract_parameters(settings: DecoderSettings, lora: Lora | None = None) -> Parameters:
    """Shapes and types of the tree that `initial_parameters` returns."""
    return nnx.to_pure_dict(nnx.state(_abstract(settings, lora), _variable_type(lora)))


def logical_axes(settings: DecoderSettings, lora: Lora | None = None) -> Parameters:
    """The logical axes of each parameter or adapter, names from `devices.mesh.LOGICAL`."""

    def axes(path: tuple[Any, ...], variable: nnx.Variable) -> tuple[str, ...]:
        named = variable.get_metadata()["axes"]
        return ("layers", *named) if path[0] == "layers" else named

    state = nnx.state(_abstract(settings, lora), _variable_type(lora))
    flat = {path: axes(path, variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def parameter_count(settings: DecoderSettings, lora: Lora | None = None) -> int:
    """How many numbers the tree that `initial_parameters` returns has."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_parameters(settings, lora)))


def _variable_type(lora: Lora | None) -> Any:
    return nnx.Param if lora is None else nnx.LoRAParam


# A run asks for the same few shapes hundreds of times, and each is traced for 40 ms. Nobody changes what this returns.
@functools.lru_cache(maxsize=64)
def _abstract(settings: DecoderSettings, lora: Lora | None) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(settings, nnx.Rngs(params=0), lora))
