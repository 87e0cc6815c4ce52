"""Rotary position embeddings: frequencies, the ways families stretch them to longer sequences, and the rotation."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """`llama3`: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """`linear`: all wavelengths are stretched by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Yarn:
    """`yarn`: stretches like `llama3`, but interpolates over the indices of frequencies (Peng et al. 2023).

    A frequency that turns `beta_fast` times within the original length is kept, one that turns `beta_slow` times is
    divided by `factor`, and between their indices the share of each grows linearly (arXiv 2309.00071, section 3.2).

    Attributes:
      truncate: the two indices are rounded outwards to whole numbers.
      attention_factor, mscale, mscale_all_dim: values that the stored model sets explicitly, if any.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @property
    def magnitude(self) -> float:
        """Factor of rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        growth = 0.1 * math.log(self.factor) if self.factor > 1 else 0.0
        if self.mscale is None or self.mscale_all_dim is None:
            return 1.0 + growth
        return (1.0 + self.mscale * growth) / (1.0 + self.mscale_all_dim * growth)

    def kept_shares(self, theta: float, dims: int) -> np.ndarray:
        """How much of each frequency is kept as it was, from 1 to 0, [dims/2]."""

        def index(turns: float) -> float:
            """Where the frequency lies that turns so often within the original length."""
            return dims * math.log(self.original_max_positions / (2 * math.pi * turns)) / (2 * math.log(theta))

        first, last = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dims - 1)
        # Equal indices make a step, which transformers rounds off by this much.
        span = last - first if last != first else 0.001
        return 1.0 - np.clip((np.arange(dims // 2) - first) / span, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class LongRope:
    """`longrope`: one stretch factor per wavelength, with a second set beyond the original length (Phi-3).

    Which set applies to a token depends on the final length of its sequence, so keys in a cache would have to be
    rotated again once a sequence passes the original length. Only the short set is used here, and the model's
    `max_positions` is the original length. The other values are kept for export.

    Attributes:
      short_factors, long_factors: one factor per frequency.
      extended_positions: `max_position_embeddings` of the stored model.
      factor, attention_factor: values that the stored model sets explicitly, if any.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    extended_positions: int
    factor: float | None = None
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """Factor of rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        stretch = self.extended_positions / self.original_max_positions if self.factor is None else self.factor
        return math.sqrt(1 + math.log(stretch) / math.log(self.original_max_positions)) if stretch > 1 else 1.0


Scaling = RopeScaling | LinearScaling | Yarn | LongRope


@dataclasses.dataclass(frozen=True)
class QueryGrowth:
    """Queries at position p are multiplied by 1 + rate · log(1 + floor(p / positions)), as in Llama 4.

    Attention over more keys than the model was first trained with then stays as sharp.
    """

    rate: float
    positions: int

    def factor(self, positions_BxL: Array) -> Array:
        """The factor at each position, float32 [B, L]."""
        return 1.0 + self.rate * jnp.log1p((positions_BxL // self.positions).astype(jnp.float32))


def magnitude(scaling: Scaling | None) -> float:
    """Factor of rotated queries and keys."""
    return scaling.magnitude if isinstance(scaling, Yarn | LongRope) else 1.0


def frequencies(theta: float, dims: int, scaling: Scaling | None = None) -> np.ndarray:
    """Rotary frequencies, float32 [dims/2].

    Args:
      theta: base of the geometric series.
      dims: how many dimensions of a head are rotated.
    """
    plain = theta ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    if isinstance(scaling, RopeScaling):
        turns = scaling.original_max_positions * plain / (2 * np.pi)
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        unscaled_share = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
        plain = plain * (unscaled_share + (1 - unscaled_share) / scaling.factor)
    elif isinstance(scaling, LinearScaling):
        plain = plain / scaling.factor
    elif isinstance(scaling, Yarn):
        kept = scaling.kept_shares(theta, dims)
        plain = plain * (kept + (1 - kept) / scaling.factor)
    elif isinstance(scaling, LongRope):
        plain = plain / np.asarray(scaling.short_factors)
    return plain.astype(np.float32)


def turns(positions_BxL: Array, inverse_frequencies: Array, scale: Array | float, dtype: Any) -> tuple[Array, Array]:
    """Cosine and sine of each position's angles, [B, L, R/2] each, times `scale`, a number or []."""

    def directly(positions_BxL: Array, inverse_frequencies: Array) -> tuple[Array, Array]:
        angles = positions_BxL[..., None].astype(dtype) * inverse_frequencies[None, None]
        return jnp.cos(angles), jnp.sin(angles)

    def apart(positions_BxL: Array, inverse_frequencies: Array) -> tuple[Array, Array]:
        """XLA's CPU backend computes a sine again for each head that it multiplies, but does not look into a branch.

        The other branch is never taken: no position is negative.
        """
        shape = *positions_BxL.shape, inverse_frequencies.shape[-1]
        nothing = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
        there = positions_BxL[0, 0] >= 0
        return jax.lax.cond(there, directly, lambda *_: nothing, positions_BxL, inverse_frequencies)

    single = positions_BxL.shape[1] == 1  # a step of decoding, in which a branch costs more than it saves
    of = partial(jax.lax.platform_dependent, cpu=directly if single else apart, default=directly)
    cos, sin = of(positions_BxL, jnp.asarray(inverse_frequencies))
    return (cos, sin) if isinstance(scale, float) and scale == 1.0 else (cos * scale, sin * scale)


def rotate(x_BxLxHxK: Array, turned_by: tuple[Array, Array], *, interleaved: bool = False) -> Array:
    """Rotary position embedding (Su et al. 2021).

    Args:
      turned_by: `turns`, [B, L, R/2]; the first R of the K dimensions are rotated, the others unchanged.
      interleaved: frequency i turns dimensions 2i and 2i + 1, instead of i and i + R/2 as most checkpoints have it.
    """
    cos, sin = (x[:, :, None, :] for x in turned_by)
    rotated_dims = 2 * cos.shape[-1]
    turned = x_BxLxHxK[..., :rotated_dims].astype(cos.dtype)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        parts = [pairs.reshape(turned.shape)]
    else:
        first, second = jnp.split(turned, 2, axis=-1)
        parts = [first * cos - second * sin, second * cos + first * sin]
    if rotated_dims < x_BxLxHxK.shape[-1]:
        parts.append(x_BxLxHxK[..., rotated_dims:].astype(cos.dtype))
    return jnp.concatenate(parts, axis=-1).astype(x_BxLxHxK.dtype)
