"""The policy: one decoder-only transformer whose settings say which family it is.

The module is plain Flax NNX and is used functionally: `graph(settings)` gives its static graph,
`parameters` live outside as a nested dict of arrays, and `nnx.merge(graph, parameters)` joins the two
inside a jitted function. Layers are stacked on a leading axis and scanned, so compile time does not
grow with depth.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from qrpo_jax.attention import attend, attend_cached, rotate, visible

Parameters = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The `llama3` frequency rescaling of Llama 3.1 and 3.2."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """Shape and constants of a Llama-architecture decoder (`head_dim` K, `kv_heads` G)."""

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    max_positions: int
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff", "max_positions")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}; it must be at least 1 (config.model)")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model has {self.heads} heads and {self.kv_heads} kv_heads; heads must be a multiple (config.model)"
            )
        if self.head_dim % 2:
            raise ValueError(f"model head_dim is {self.head_dim}; rotary embeddings need an even one (config.model)")


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


def inverse_frequencies(settings: DecoderSettings) -> np.ndarray:
    """Rotary frequencies [K/2], rescaled where the settings say so."""
    exponents = np.arange(0, settings.head_dim, 2, dtype=np.float64) / settings.head_dim
    frequencies = settings.rope_theta**-exponents
    scaling = settings.rope_scaling
    if scaling is not None:
        # Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
        turns = scaling.original_max_positions * frequencies / (2 * np.pi)
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        kept = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    return frequencies.astype(np.float32)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, axes: tuple[str, ...]) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5, axes=axes)


def linear(x: Array, weight: Array, inputs: int = 1) -> Array:
    """x [B, L, *inputs] times weight [*inputs, *outputs], in the type of x.

    One plain matrix product over all B·L tokens: XLA's CPU backend is slow at the gradient of a product that
    contracts two axes, and elsewhere it makes no difference.
    """
    rows, outputs = x.shape[:2], weight.shape[inputs:]
    flat = x.reshape(x.shape[0] * x.shape[1], -1) @ weight.astype(x.dtype).reshape(-1, int(np.prod(outputs)))
    return flat.reshape(*rows, *outputs)


class RMSNorm(nnx.Module):
    def __init__(self, settings: DecoderSettings):
        self.scale = nnx.Param(jnp.ones((settings.d_model,), jnp.float32), axes=("embed",))
        self.epsilon = settings.norm_epsilon

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs):
        d, h, g, k = settings.d_model, settings.heads, settings.kv_heads, settings.head_dim
        self.q = _normal(rngs, (d, h, k), d, ("embed", "heads", "head_dim"))
        self.k = _normal(rngs, (d, g, k), d, ("embed", "kv_heads", "head_dim"))
        self.v = _normal(rngs, (d, g, k), d, ("embed", "kv_heads", "head_dim"))
        self.o = _normal(rngs, (h, k, d), h * k * 2 * settings.layers, ("heads", "head_dim", "embed"))

    def project(self, x_BxLxD: Array) -> tuple[Array, Array, Array]:
        """Queries [B, L, H, K], keys and values [B, L, G, K]."""
        return linear(x_BxLxD, self.q[...]), linear(x_BxLxD, self.k[...]), linear(x_BxLxD, self.v[...])

    def output(self, mixed_BxLxHxK: Array) -> Array:
        return linear(mixed_BxLxHxK, self.o[...], inputs=2)


class MLP(nnx.Module):
    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs):
        d, f = settings.d_model, settings.d_ff
        self.gate = _normal(rngs, (d, f), d, ("embed", "feed_forward"))
        self.up = _normal(rngs, (d, f), d, ("embed", "feed_forward"))
        self.down = _normal(rngs, (f, d), f * 2 * settings.layers, ("feed_forward", "embed"))

    def __call__(self, x_BxLxD: Array) -> Array:
        gate_BxLxF = jax.nn.silu(linear(x_BxLxD, self.gate[...]))
        return linear(gate_BxLxF * linear(x_BxLxD, self.up[...]), self.down[...])


class Layer(nnx.Module):
    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(settings)
        self.attention = Attention(settings, rngs)
        self.mlp_norm = RMSNorm(settings)
        self.mlp = MLP(settings, rngs)

    def __call__(
        self, x_BxLxD: Array, positions_BxL: Array, frequencies: Array, mix: Callable[[Array, Array, Array], Any]
    ) -> tuple[Array, Any]:
        """One residual block; `mix` attends from queries to keys and returns what else it wants kept."""
        q, k, v = self.attention.project(self.attention_norm(x_BxLxD))
        mixed, kept = mix(rotate(q, positions_BxL, frequencies), rotate(k, positions_BxL, frequencies), v)
        x_BxLxD = x_BxLxD + self.attention.output(mixed)
        return x_BxLxD + self.mlp(self.mlp_norm(x_BxLxD)), kept


class Decoder(nnx.Module):
    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs):
        self.settings = settings
        v, d = settings.vocab_size, settings.d_model
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (v, d)) * 0.02, axes=("vocab", "embed"))

        @nnx.split_rngs(splits=settings.layers)
        @nnx.vmap
        def stack(layer_rngs: nnx.Rngs) -> Layer:
            return Layer(settings, layer_rngs)

        self.layers = stack(rngs)
        self.norm = RMSNorm(settings)
        if not settings.tie_embeddings:
            self.head = _normal(rngs, (v, d), d, ("vocab", "embed"))

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
        frequencies = jnp.asarray(inverse_frequencies(self.settings))
        graph, stacked = nnx.split(self.layers)
        mask_BxLxL = visible(segments_BxL, positions_BxL)

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            kept = (slots_last(k), slots_last(v)) if keep_keys else None
            return attend(q, k, v, mask_BxLxL), kept

        def step(x_BxLxD: Array, parameters: Any) -> tuple[Array, Any]:
            return nnx.merge(graph, parameters)(x_BxLxD, positions_BxL, frequencies, mix)

        x_BxLxD = self.embedding[...][tokens_BxL].astype(dtype)
        x_BxLxD, kept = jax.lax.scan(jax.checkpoint(step) if remat else step, x_BxLxD, stacked)
        return self.norm(x_BxLxD), kept

    def decode(self, tokens_B: Array, cache: Cache, *, dtype: Any = jnp.float32) -> tuple[Array, Cache]:
        """Hidden states [B, D] of one more token of every completion, and the cache with it added."""
        frequencies = jnp.asarray(inverse_frequencies(self.settings))
        graph, stacked = nnx.split(self.layers)
        fan = tokens_B.shape[0] // cache.prompt_lengths_P.shape[0]
        positions_Bx1 = (jnp.repeat(cache.prompt_lengths_P, fan) + cache.step)[:, None]

        def step(carry: tuple[Array, Array, Array], scanned: Any) -> tuple[Any, None]:
            x_Bx1xD, all_k, all_v = carry
            index, parameters, prompt_k, prompt_v = scanned

            def mix(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
                # Written in place into the carried cache; handing it through the scan would copy all of it.
                at = (index, 0, 0, 0, cache.step)
                new_k = jax.lax.dynamic_update_slice(all_k, slots_last(k)[None].astype(all_k.dtype), at)
                new_v = jax.lax.dynamic_update_slice(all_v, slots_last(v)[None].astype(all_v.dtype), at)
                past = (new_k[index], new_v[index])
                mixed = attend_cached(q[:, 0], prompt_k, prompt_v, cache.prompt_lengths_P, *past, cache.step + 1)
                return mixed[:, None], (new_k, new_v)

            layer = nnx.merge(graph, parameters)
            x_Bx1xD, (all_k, all_v) = layer(x_Bx1xD, positions_Bx1, frequencies, mix)
            return (x_Bx1xD, all_k, all_v), None

        x_Bx1xD = self.embedding[...][tokens_B[:, None]].astype(dtype)
        scanned = (jnp.arange(self.settings.layers), stacked, cache.prompt_k_NxPxGxKxL, cache.prompt_v_NxPxGxKxL)
        carry = (x_Bx1xD, cache.k_NxBxGxKxT, cache.v_NxBxGxKxT)
        (x_Bx1xD, all_k, all_v), _ = jax.lax.scan(step, carry, scanned)
        new = cache._replace(k_NxBxGxKxT=all_k, v_NxBxGxKxT=all_v, step=cache.step + 1)
        return self.norm(x_Bx1xD)[:, 0], new

    def logits(self, hidden: Array) -> Array:
        """Logits [..., V] of hidden states [..., D], float32."""
        columns_VxD = self.unembedding().astype(hidden.dtype)
        return jnp.einsum("...D,VD->...V", hidden, columns_VxD, preferred_element_type=jnp.float32)


def graph(settings: DecoderSettings) -> nnx.GraphDef:
    """The static part of the decoder, without allocating a parameter."""
    return nnx.split(_abstract(settings))[0]


def initial_parameters(settings: DecoderSettings, key: Array) -> Parameters:
    """Fresh random parameters (float32), as a nested dict."""
    return nnx.to_pure_dict(nnx.state(Decoder(settings, nnx.Rngs(params=key))))


def abstract_parameters(settings: DecoderSettings) -> Parameters:
    """Shapes and types of all parameters, as `initial_parameters` has them."""
    return nnx.to_pure_dict(nnx.state(_abstract(settings)))


def logical_axes(settings: DecoderSettings) -> Parameters:
    """For each parameter the names of its axes, which `mesh` maps to the device mesh."""

    def axes(path: tuple[Any, ...], variable: nnx.Variable) -> tuple[str, ...]:
        named = variable.get_metadata()["axes"]
        return ("layers", *named) if path[0] == "layers" else named

    state = nnx.state(_abstract(settings))
    flat = {path: axes(path, variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def parameter_count(settings: DecoderSettings) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract_parameters(settings)))


def _abstract(settings: DecoderSettings) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(settings, nnx.Rngs(params=0)))
