"""Rotary position embeddings: frequencies, the ways families stretch them to longer sequences, and the rotation."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from qrpo_jax.devices.dtypes import at_least_float32


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """`llama3`: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """`linear`: all wavelengths are stretched by `factor` (Gemma 3)."""

    factor: float


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


Scaling = RopeScaling | LinearScaling | LongRope


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
    elif isinstance(scaling, LongRope):
        plain = plain / np.asarray(scaling.short_factors)
    return plain.astype(np.float32)


def rotate(x_BxLxHxK: Array, positions_BxL: Array, inverse_frequencies: Array, scale: float = 1.0) -> Array:
    """Rotary position embedding in the half-split layout of Hugging Face checkpoints (Su et al. 2021).

    Args:
      inverse_frequencies: [R/2]; the first R of the K dimensions are rotated, the others unchanged.
      scale: factor of the rotated dimensions.
    """
    wide = at_least_float32(x_BxLxHxK.dtype)
    angles = positions_BxL[..., None].astype(wide) * inverse_frequencies[None, None]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    rotated_dims = 2 * inverse_frequencies.shape[-1]
    first, second = jnp.split(x_BxLxHxK[..., :rotated_dims].astype(wide), 2, axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rotated_dims < x_BxLxHxK.shape[-1]:
        parts.append(x_BxLxHxK[..., rotated_dims:].astype(wide))
    return jnp.concatenate(parts, axis=-1).astype(x_BxLxHxK.dtype)
