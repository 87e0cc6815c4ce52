"""Settings of a decoder: its shape, its constants, and the constants that differ from layer to layer."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qrpo_jax.errors import UserError
from qrpo_jax.model.rope import QueryGrowth, Scaling, frequencies, magnitude

ACTIVATIONS = ("silu", "gelu_tanh", "xielu")


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """Shape and constants of a decoder (`head_dim` K, `kv_heads` G); the defaults are those of a Llama.

    Attributes:
      family: Hugging Face's name of the architecture, a key of `families.FAMILIES`. Only import and export read it;
        the other settings define the computation.
      activation: "silu" or "gelu_tanh" for a gated feed-forward; "xielu" for a feed-forward without a gate.
      qkv_bias, output_bias, mlp_bias: which linear maps add a bias.
      qk_norm: None, or what queries and keys are normalised over: each "head" or the whole "projection".
      pre_norm, post_norm: whether attention and feed-forward normalise their input, and their output.
      parallel: the feed-forward reads what attention reads, and both are added to the hidden states at once.
      norm_offset: added to the stored scales of norms.
      norm_centres: norms subtract the mean first, which makes them a LayerNorm without bias.
      norm_rounds: normalised values are rounded to the compute type before they are scaled, not only after.
      scale_embeddings: embeddings are multiplied by the square root of d_model.
      embedding_multiplier: embeddings are multiplied by it.
      residual_multiplier: what attention and feed-forward add to the hidden states is multiplied by it.
      query_scalar: attention scores are divided by its square root (default: head_dim).
      attention_multiplier: attention scores are multiplied by it instead.
      logit_scale: logits are multiplied by it, before their soft cap.
      attention_cap, logit_cap: soft caps of attention scores and of logits.
      sliding_window: how many tokens back a token of a sliding layer sees, its own included.
      sliding_layers: which layers have the sliding window (default: all, if there is a window).
      rope_layers: which layers have rotary embeddings (default: all).
      local_rope_theta: `rope_theta` of sliding layers, which then have no rope_scaling either.
      rotary_share: share of each head's dimensions that is rotated.
      query_growth: how queries grow with their position, if they do.
      rope_interleaved: rotary embeddings turn neighbouring dimensions together.

    Raises:
      UserError: sizes or settings that do not go together.
    """

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
    rope_scaling: Scaling | None = None
    tie_embeddings: bool = True
    family: str = "LlamaForCausalLM"
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    norm_offset: float = 0.0
    norm_centres: bool = False
    norm_rounds: bool = True
    scale_embeddings: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    query_scalar: int | None = None
    attention_multiplier: float | None = None
    logit_scale: float = 1.0
    attention_cap: float | None = None
    logit_cap: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    rope_layers: tuple[bool, ...] | None = None
    local_rope_theta: float | None = None
    rotary_share: float = 1.0
    query_growth: QueryGrowth | None = None
    rope_interleaved: bool = False

    def __post_init__(self) -> None:
        mistake = next(self._mistakes(), None)
        if mistake is not None:
            raise UserError(f"model {mistake}", about="model")

    def _mistakes(self) -> Iterator[str]:
        """What is wrong with the settings; later checks rely on earlier ones."""
        sizes = ("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff", "max_positions")
        for name in sizes:
            if getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}; it must be at least 1"
        if self.heads % self.kv_heads:
            yield f"has {self.heads} heads and {self.kv_heads} kv_heads; heads must be a multiple"
        if self.rotary_dims % 2 or not 0 < self.rotary_dims <= self.head_dim:
            yield (
                f"head_dim is {self.head_dim}, of which rotary embeddings turn {self.rotary_dims}; "
                "that must be an even number from 2 to head_dim"
            )
        for name, allowed in {"activation": ACTIVATIONS, "qk_norm": (None, "head", "projection")}.items():
            if getattr(self, name) not in allowed:
                yield f"{name} is {getattr(self, name)!r}; allowed: {allowed}"
        for name in ("sliding_layers", "rope_layers"):
            flags = getattr(self, name)
            if flags is not None and len(flags) != self.layers:
                yield f"{name} speaks of {len(flags)} layers, it has {self.layers}"
        if self.sliding_window is not None and self.sliding_window < 1:
            yield f"sliding_window is {self.sliding_window}; it must be at least 1"
        if self.sliding_layers is not None and self.sliding_window is None:
            yield "sliding_layers is set without a sliding_window"
        if self.parallel and (self.post_norm or not self.pre_norm):
            yield "is parallel, which goes with norms of inputs only"

    @property
    def rotary_dims(self) -> int:
        """How many dimensions of each head are rotated."""
        return int(self.head_dim * self.rotary_share)

    @property
    def slides(self) -> tuple[bool, ...]:
        """For each layer, whether it has the sliding window."""
        return self.sliding_layers or (self.sliding_window is not None,) * self.layers


class Lora(NamedTuple):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); `lora_targets.make_lora` makes it from a user's names.

    Attributes:
      rank: inner size of each adapter.
      alpha: an adapter's output is scaled by alpha / rank.
      matrices: which of "q", "k", "v", "o", "gate", "up", "down" have an adapter, in every layer.
    """

    rank: int
    alpha: float
    matrices: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LayerConstants(NamedTuple):
    """What a layer needs besides parameters: for one layer, or for all with a leading axis N."""

    frequencies: Any  # [K/2] or [N, K/2]
    rotary_scale: Any  # factor of rotated queries and keys: a float, or [] or [N]
    window: Any  # None or an int, or [] or [N] with the largest int32 for layers without a window


def inverse_frequencies(settings: DecoderSettings) -> np.ndarray:
    """Rotary frequencies of a layer without a sliding window, float32 [K/2]."""
    return frequencies(settings.rope_theta, settings.rotary_dims, settings.rope_scaling)


def layer_constants(settings: DecoderSettings) -> tuple[LayerConstants, LayerConstants]:
    """Constants that all layers share, and constants per layer, stacked [N, ...]; `combine` joins them.

    Each constant is in one of the two and None in the other, so that what all layers share is not scanned over.
    """
    everywhere = inverse_frequencies(settings), magnitude(settings.rope_scaling)
    theta = settings.local_rope_theta
    local = everywhere if theta is None else (frequencies(theta, settings.rotary_dims), 1.0)
    rotates = settings.rope_layers or (True,) * settings.layers
    # Frequencies of 0 rotate by 0, so layers without positions need no code path.
    rotations_N = [
        (local if slides else everywhere) if rotate else (np.zeros_like(everywhere[0]), 1.0)
        for slides, rotate in zip(settings.slides, rotates, strict=True)
    ]
    frequencies_N, scales_N = ([each[i] for each in rotations_N] for i in (0, 1))
    unlimited = np.iinfo(np.int32).max
    windows_N = [settings.sliding_window if slides else unlimited for slides in settings.slides]
    same_frequencies = all(np.array_equal(each, frequencies_N[0]) for each in frequencies_N)
    same_scales, same_windows = len(set(scales_N)) == 1, len(set(windows_N)) == 1
    shared = LayerConstants(
        jnp.asarray(frequencies_N[0]) if same_frequencies else None,
        scales_N[0] if same_scales else None,
        settings.sliding_window if all(settings.slides) else None,
    )
    varied = LayerConstants(
        None if same_frequencies else jnp.asarray(np.stack(frequencies_N)),
        None if same_scales else jnp.asarray(scales_N, jnp.float32),
        None if same_windows else jnp.asarray(windows_N, jnp.int32),
    )
    return shared, varied


def combine(shared: LayerConstants, varied: LayerConstants) -> LayerConstants:
    """All constants of one layer, given the shared ones and its slice of the others."""
    return LayerConstants(*(a if b is None else b for a, b in zip(shared, varied, strict=True)))
