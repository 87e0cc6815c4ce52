"""Rotary position embeddings: the frequencies, and the ways families stretch them to longer sequences."""

import dataclasses
import math

import numpy as np


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
    """`longrope`: one stretch per wavelength (Phi-3), another set of them beyond the original length.

    Which set applies to a token depends on how long its sequence will become, so keys in a cache would have to be
    turned anew when that length is passed. Only the short set is used here, and the model's `max_positions` is the
    original length. The rest is kept for export.

    Attributes:
      short_factors, long_factors: one per frequency.
      extended_positions: `max_position_embeddings` of the stored model.
      factor, attention_factor: explicit values where the stored model has them.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    extended_positions: int
    factor: float | None = None
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        stretch = self.extended_positions / self.original_max_positions if self.factor is None else self.factor
        return math.sqrt(1 + math.log(stretch) / math.log(self.original_max_positions)) if stretch > 1 else 1.0


Scaling = RopeScaling | LinearScaling | LongRope


def frequencies(theta: float, dims: int, scaling: Scaling | None = None) -> np.ndarray:
    """Rotary frequencies [dims/2], float32."""
    plain = theta ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    if isinstance(scaling, RopeScaling):
        turns = scaling.original_max_positions * plain / (2 * np.pi)
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        kept = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
        plain = plain * (kept + (1 - kept) / scaling.factor)
    elif isinstance(scaling, LinearScaling):
        plain = plain / scaling.factor
    elif isinstance(scaling, LongRope):
        plain = plain / np.asarray(scaling.short_factors)
    return plain.astype(np.float32)
