"""The parts of one layer: linear maps with their adapters, norms, projections of attention, feed-forward."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.lax import broadcast_to_rank

from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.norm_gradients import times_scale, unit_mean_square
from qrpo_jax.model.rope import rotate, turns
from qrpo_jax.model.settings import DecoderSettings, LayerConstants, Lora


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, axes: tuple[str, ...]) -> nnx.Param:
    """A weight matrix with entries of variance 1 / fan_in; `axes` are names from `devices.mesh.LOGICAL`."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5, axes=axes)


class Adapter(nnx.Module):
    """LoRA adapter of a matrix [*inputs, *outputs]: adds x A B · alpha / rank, with A [*inputs, r] and B [r, *outputs].

    A starts uniform within ± 1 / sqrt(inputs), as in PEFT (Kaiming uniform with a = sqrt 5). B starts at 0, so that an
    adapter adds nothing before its first update. Both are float32.
    """

    def __init__(self, lora: Lora, weight: nnx.Param, inputs: int, rngs: nnx.Rngs):
        shape, axes = weight[...].shape, weight.get_metadata()["axes"]
        bound = float(np.prod(shape[:inputs])) ** -0.5
        a = jax.random.uniform(rngs.params(), (*shape[:inputs], lora.rank), jnp.float32, -bound, bound)
        self.a = nnx.LoRAParam(a, axes=(*axes[:inputs], "rank"))
        self.b = nnx.LoRAParam(jnp.zeros((lora.rank, *shape[inputs:]), jnp.float32), axes=("rank", *axes[inputs:]))
        self.rank, self.scale = lora.rank, lora.scale

    def __call__(self, x: Array) -> Array:
        """[..., outputs] of x [..., inputs], without computing A B, which is as large as the matrix."""
        inner = x @ self.a[...].astype(x.dtype).reshape(-1, self.rank)
        return inner * self.scale @ self.b[...].astype(x.dtype).reshape(self.rank, -1)


def _adapter(lora: Lora | None, name: str, weight: nnx.Param | None, rngs: nnx.Rngs, inputs: int = 1) -> Adapter | None:
    if lora is None or weight is None or name not in lora.matrices:
        return None
    return Adapter(lora, weight, inputs, rngs)


def linear(
    x: Array,
    weight: Array,
    compute: Compute,
    inputs: int = 1,
    bias: nnx.Param | None = None,
    adapter: Adapter | None = None,
) -> Array:
    """x [B, L, *inputs] times weight [*inputs, *outputs], plus adapter and bias [*outputs] if any, in the type of x.

    The axes are flattened to one plain matrix product: XLA's CPU backend is slow at the gradient of a product that
    contracts two axes. Other backends compile both forms to the same product. Where the mesh splits B and L both, B·L
    has no split of its own, and the two stay apart.
    """
    rows, outputs = x.shape[:2], weight.shape[inputs:]
    x = x.reshape(*rows, -1) if compute.splits_length else x.reshape(rows[0] * rows[1], -1)
    product = x @ weight.astype(x.dtype).reshape(-1, int(np.prod(outputs)))
    if adapter is not None:
        product = product + adapter(x)
    product = product.reshape(*rows, *outputs)
    return product if bias is None else product + broadcast_to_rank(bias[...].astype(x.dtype), product.ndim)


def _bias(wanted: bool, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param | None:
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes) if wanted else None


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axes, computed in float32 (Zhang & Sennrich 2019); `norm_centres` as set."""

    def __init__(self, settings: DecoderSettings, shape: tuple[int, ...] = (), axes: tuple[str, ...] = ("embed",)):
        shape = shape or (settings.d_model,)
        self.scale = nnx.Param(jnp.full(shape, 1.0 - settings.norm_offset, jnp.float32), axes=axes)
        self.epsilon, self.offset, self.rounds = settings.norm_epsilon, settings.norm_offset, settings.norm_rounds
        self.centres = settings.norm_centres

    def __call__(self, x: Array) -> Array:
        wide = at_least_float32(x.dtype)
        x32, scale = x.astype(wide), self.scale[...].astype(wide)
        if self.centres:
            x32 = x32 - jnp.mean(x32, axis=tuple(range(-scale.ndim, 0)), keepdims=True)
        x32 = unit_mean_square(x32, scale.ndim, self.epsilon)
        if self.rounds and x.dtype != wide:
            # Not by casting to x.dtype and back: the compiler may remove such a pair of casts.
            low = jnp.finfo(x.dtype)
            x32 = jax.lax.reduce_precision(x32, low.nexp, low.nmant)
        return times_scale(x32, scale + self.offset if self.offset else scale).astype(x.dtype)


class XIELU(nnx.Module):
    """Trainable activation (Huang & Schlag 2025): quadratic above 0, an integral of ELU below; float32 inside."""

    BETA, EPSILON = 0.5, -1e-6

    def __init__(self) -> None:
        start = {"alpha_p": 0.8, "alpha_n": 0.8 - self.BETA}
        for name, value in start.items():
            setattr(self, name, nnx.Param(jnp.full((1,), np.log(np.expm1(value)), jnp.float32), axes=("scalar",)))

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(at_least_float32(x.dtype))
        alpha_p, alpha_n = (broadcast_to_rank(a[...].astype(x32.dtype), x.ndim) for a in (self.alpha_p, self.alpha_n))
        above = jax.nn.softplus(alpha_p) * x32 * x32
        below = self.BETA + jax.nn.softplus(alpha_n)
        below = below * (jnp.expm1(jnp.minimum(x32, self.EPSILON)) - x32)
        return (jnp.where(x32 > 0, above, below) + self.BETA * x32).astype(x.dtype)


class Attention(nnx.Module):
    """The linear maps and norms around attention; attention itself is computed by the caller, between them."""

    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs, lora: Lora | None = None):
        d, h, g, k = settings.d_model, settings.heads, settings.kv_heads, settings.head_dim
        self.q = normal(rngs, (d, h, k), d, ("embed", "heads", "head_dim"))
        self.k = normal(rngs, (d, g, k), d, ("embed", "kv_heads", "head_dim"))
        self.v = normal(rngs, (d, g, k), d, ("embed", "kv_heads", "head_dim"))
        self.o = normal(rngs, (h, k, d), h * k * 2 * settings.layers, ("heads", "head_dim", "embed"))
        self.q_bias = _bias(settings.qkv_bias, (h, k), ("heads", "head_dim"))
        self.k_bias = _bias(settings.qkv_bias, (g, k), ("kv_heads", "head_dim"))
        self.v_bias = _bias(settings.qkv_bias, (g, k), ("kv_heads", "head_dim"))
        self.o_bias = _bias(settings.output_bias, (d,), ("embed",))
        self.q_adapter = _adapter(lora, "q", self.q, rngs)
        self.k_adapter = _adapter(lora, "k", self.k, rngs)
        self.v_adapter = _adapter(lora, "v", self.v, rngs)
        self.o_adapter = _adapter(lora, "o", self.o, rngs, inputs=2)
        over = {None: 0, "head": 1, "projection": 2}[settings.qk_norm]  # how many of the last axes are normalised
        self.q_norm = RMSNorm(settings, (h, k)[-over:], ("heads", "head_dim")[-over:]) if over else None
        self.k_norm = RMSNorm(settings, (g, k)[-over:], ("kv_heads", "head_dim")[-over:]) if over else None

    def project(self, x_BxLxD: Array, compute: Compute) -> tuple[Array, Array, Array]:
        """Queries [B, L, H, K], keys and values [B, L, G, K]."""
        q = linear(x_BxLxD, self.q[...], compute, bias=self.q_bias, adapter=self.q_adapter)
        k = linear(x_BxLxD, self.k[...], compute, bias=self.k_bias, adapter=self.k_adapter)
        v = linear(x_BxLxD, self.v[...], compute, bias=self.v_bias, adapter=self.v_adapter)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def output(self, mixed_BxLxHxK: Array, compute: Compute) -> Array:
        """Attention's values as an update of the hidden states, [B, L, D]."""
        return linear(mixed_BxLxHxK, self.o[...], compute, inputs=2, bias=self.o_bias, adapter=self.o_adapter)


class MLP(nnx.Module):
    """Feed-forward with a gate, or with xIELU and no gate."""

    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs, lora: Lora | None = None):
        d, f = settings.d_model, settings.d_ff
        gated = settings.activation != "xielu"
        self.gate = normal(rngs, (d, f), d, ("embed", "feed_forward")) if gated else None
        self.up = normal(rngs, (d, f), d, ("embed", "feed_forward"))
        self.down = normal(rngs, (f, d), f * 2 * settings.layers, ("feed_forward", "embed"))
        self.gate_bias = _bias(settings.mlp_bias and gated, (f,), ("feed_forward",))
        self.up_bias = _bias(settings.mlp_bias, (f,), ("feed_forward",))
        self.down_bias = _bias(settings.mlp_bias, (d,), ("embed",))
        self.gate_adapter = _adapter(lora, "gate", self.gate, rngs)
        self.up_adapter = _adapter(lora, "up", self.up, rngs)
        self.down_adapter = _adapter(lora, "down", self.down, rngs)
        self.activation = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}[settings.activation] if gated else XIELU()

    def __call__(self, x_BxLxD: Array, compute: Compute) -> Array:
        up_BxLxF = linear(x_BxLxD, self.up[...], compute, bias=self.up_bias, adapter=self.up_adapter)
        if self.gate is None:
            inner_BxLxF = self.activation(up_BxLxF)
        else:
            gate_BxLxF = linear(x_BxLxD, self.gate[...], compute, bias=self.gate_bias, adapter=self.gate_adapter)
            inner_BxLxF = self.activation(gate_BxLxF) * up_BxLxF
        inner_BxLxF = compute.constrain(inner_BxLxF, "rows", "length", "feed_forward")
        return linear(inner_BxLxF, self.down[...], compute, bias=self.down_bias, adapter=self.down_adapter)


class Layer(nnx.Module):
    """One decoder layer in two halves, `project` and `residual`; its caller computes attention between them."""

    def __init__(self, settings: DecoderSettings, rngs: nnx.Rngs, lora: Lora | None = None):
        self.interleaved, self.multiplier = settings.rope_interleaved, settings.residual_multiplier
        self.parallel, self.query_growth = settings.parallel, settings.query_growth
        self.attention_norm = RMSNorm(settings) if settings.pre_norm else None
        self.attention = Attention(settings, rngs, lora)
        self.attention_post_norm = RMSNorm(settings) if settings.post_norm else None
        self.mlp_norm = RMSNorm(settings) if settings.pre_norm and not settings.parallel else None
        self.mlp = MLP(settings, rngs, lora)
        self.mlp_post_norm = RMSNorm(settings) if settings.post_norm else None

    def project(
        self, x_BxLxD: Array, positions_BxL: Array, constants: LayerConstants, compute: Compute
    ) -> tuple[Array, Array, Array]:
        """Rotated queries [B, L, H, K] and keys [B, L, G, K], and values [B, L, G, K]."""
        q, k, v = self.attention.project(self._read(self.attention_norm, x_BxLxD, compute), compute)
        turned_by = turns(positions_BxL, constants.frequencies, constants.rotary_scale, at_least_float32(q.dtype))
        q = rotate(q, turned_by, interleaved=self.interleaved)
        k = rotate(k, turned_by, interleaved=self.interleaved)
        if self.query_growth is not None:
            factor_BxLx1x1 = self.query_growth.factor(positions_BxL)[..., None, None]
            q = (q.astype(at_least_float32(q.dtype)) * factor_BxLx1x1).astype(q.dtype)
        return q, k, v

    def residual(self, x_BxLxD: Array, mixed_BxLxHxK: Array, compute: Compute) -> Array:
        """Hidden states [B, L, D] after the layer, given those before it and the result of attention."""
        attended_BxLxD = split_by_token(self.attention.output(mixed_BxLxHxK, compute), compute)
        y_BxLxD = x_BxLxD + self._update(self.attention_post_norm, attended_BxLxD)
        inner_BxLxD = (
            self._read(self.attention_norm, x_BxLxD, compute)
            if self.parallel
            else self._read(self.mlp_norm, y_BxLxD, compute)
        )
        return y_BxLxD + self._update(self.mlp_post_norm, split_by_token(self.mlp(inner_BxLxD, compute), compute))

    def _read(self, norm: RMSNorm | None, x_BxLxD: Array, compute: Compute) -> Array:
        """What attention or the feed-forward reads of the hidden states."""
        return compute.constrain(normed(norm, x_BxLxD), "rows", "length", None)

    def _update(self, norm: RMSNorm | None, x_BxLxD: Array) -> Array:
        """What is added to the hidden states."""
        return scaled(normed(norm, x_BxLxD), self.multiplier)


def split_by_token(x_BxLxD: Array, compute: Compute) -> Array:
    """Hidden states between layers, where every token is computed alone and all axes of the mesh can split rows."""
    return compute.constrain(x_BxLxD, "rows", "residual_length", None)


def normed(norm: RMSNorm | None, x: Array) -> Array:
    """x after the norm; x itself without one."""
    return x if norm is None else norm(x)


def scaled(x: Array, factor: float) -> Array:
    """x times a factor, which is not rounded to the type of x first."""
    return x if factor == 1.0 else (x.astype(at_least_float32(x.dtype)) * factor).astype(x.dtype)
