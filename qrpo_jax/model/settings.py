"""What a decoder is: its shape, its constants, and what differs from layer to layer."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qrpo_jax.model.rope import Scaling, frequencies

ACTIVATIONS = ("silu", "gelu_tanh", "xielu")


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """Shape and constants of a decoder (`head_dim` K, `kv_heads` G); by default those of a Llama.

    Attributes:
      family: the architecture that Hugging Face calls it by, a key of `families.FAMILIES`; only import and export
        read it, what is computed stands in the other settings.
      activation: "silu" or "gelu_tanh" of a gated feed-forward; "xielu" of one without a gate.
      qkv_bias, output_bias, mlp_bias: which linear maps add a bias.
      qk_norm: None, or what queries and keys are normalised over: each "head" or the whole "projection".
      pre_norm, post_norm: whether attention and feed-forward normalise what they read, and what they add.
      norm_offset: what is added to the stored scales of norms.
      norm_rounds: normalised values are rounded to the compute type before they are scaled, not only after.
      scale_embeddings: embeddings are multiplied by the root of d_model.
      query_scalar: attention scores are divided by its root (default: head_dim).
      attention_cap, logit_cap: soft caps of attention scores and of logits.
      sliding_window: how many tokens, its own included, a token of a sliding layer sees.
      sliding_layers: which layers slide (default: all, if there is a window).
      rope_layers: which layers know positions (default: all).
      local_rope_theta: `rope_theta` of sliding layers, which then have no rope_scaling either.
      rotary_share: share of each head's dimensions that is rotated.
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
    norm_offset: float = 0.0
    norm_rounds: bool = True
    scale_embeddings: bool = False
    query_scalar: int | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    rope_layers: tuple[bool, ...] | None = None
    local_rope_theta: float | None = None
    rotary_share: float = 1.0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff", "max_positions")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}; it must be at least 1 (config.model)")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model has {self.heads} heads and {self.kv_heads} kv_heads; heads must be a multiple (config.model)"
            )
        if self.rotary_dims % 2 or not 0 < self.rotary_dims <= self.head_dim:
            raise ValueError(
                f"model head_dim is {self.head_dim}, of which rotary embeddings turn {self.rotary_dims}; "
                "they need an even number (config.model)"
            )
        for name, allowed in {"activation": ACTIVATIONS, "qk_norm": (None, "head", "projection")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model {name} is {getattr(self, name)!r}; allowed: {allowed} (config.model)")
        for name in ("sliding_layers", "rope_layers"):
            given = getattr(self, name)
            if given is not None and len(given) != self.layers:
                raise ValueError(f"model {name} speaks of {len(given)} layers, it has {self.layers} (config.model)")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"model sliding_window is {self.sliding_window}; it must be at least 1 (config.model)")
        if self.sliding_layers is not None and self.sliding_window is None:
            raise ValueError("model sliding_layers is set without a sliding_window (config.model)")

    @property
    def rotary_dims(self) -> int:
        return int(self.head_dim * self.rotary_share)

    @property
    def slides(self) -> tuple[bool, ...]:
        """For each layer, whether it sees only the window."""
        return self.sliding_layers or (self.sliding_window is not None,) * self.layers


class Lora(NamedTuple):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); `lora_targets.make_lora` makes one from what a user names.

    matrices: which of "q", "k", "v", "o", "gate", "up", "down" are adapted, in every layer.
    alpha: what an adapter adds is scaled by alpha / rank.
    """

    rank: int
    alpha: float
    matrices: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Kind(NamedTuple):
    """What a layer is beside its parameters: an array for one layer, with a leading axis N for all of them."""

    frequencies: Any  # [K/2] or [N, K/2]
    window: Any  # None, or [] or [N]


def inverse_frequencies(settings: DecoderSettings) -> np.ndarray:
    """Rotary frequencies of a layer that does not slide, float32 [K/2]."""
    return frequencies(settings.rope_theta, settings.rotary_dims, settings.rope_scaling)


def kinds(settings: DecoderSettings) -> tuple[Kind, Kind]:
    """What all layers share, and what differs, stacked [N, ...]; each thing stands in one and is None in the other."""
    everywhere = inverse_frequencies(settings)
    theta = settings.local_rope_theta
    local = everywhere if theta is None else frequencies(theta, settings.rotary_dims)
    roped = settings.rope_layers or (True,) * settings.layers
    # A frequency of 0 turns nothing, so a layer without positions needs no code of its own.
    turned = [
        (local if slides else everywhere) * np.float32(rope)
        for slides, rope in zip(settings.slides, roped, strict=True)
    ]
    unlimited = np.iinfo(np.int32).max
    windows = [settings.sliding_window if slides else unlimited for slides in settings.slides]
    same_turns = all(np.array_equal(each, turned[0]) for each in turned)
    same_windows = len(set(windows)) == 1
    shared = Kind(
        jnp.asarray(turned[0]) if same_turns else None, settings.sliding_window if all(settings.slides) else None
    )
    varied = Kind(
        None if same_turns else jnp.asarray(np.stack(turned)),
        None if same_windows else jnp.asarray(windows, jnp.int32),
    )
    return shared, varied


def join(shared: Kind, varied: Kind) -> Kind:
    return Kind(*(a if b is None else b for a, b in zip(shared, varied, strict=True)))
