"""FLOPs that a pass must compute, counted from the model's shape; recomputation and padding earn no credit.

A matrix product of N parameters costs 2N per token forward, 2N for the gradient of its input and 2N for that of its
weights. Frozen weights, LoRA's base, need no gradient. Embeddings are looked up and cost nothing; the unembedding is a
product. Attention costs 4 H K per pair of a query and a key that it sees, in each layer, and twice that backward.
Norms, activations and the optimizer, below 1 % together, are left out.
"""

from typing import NamedTuple

import numpy as np

from qrpo_jax.model.layout import Layout
from qrpo_jax.model.settings import DecoderSettings, Lora


class Flops(NamedTuple):
    """FLOPs on all devices together."""

    matmul: float
    attention: float

    @property
    def total(self) -> float:
        return self.matmul + self.attention


def layer_matrices(settings: DecoderSettings) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's linear maps, by the names that `Lora.matrices` uses."""
    d, q = settings.d_model, settings.heads * settings.head_dim
    kv = settings.kv_heads * settings.head_dim
    shapes = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)}
    shapes |= {"up": (d, settings.d_ff), "down": (settings.d_ff, d)}
    # XIELU stands alone; the other activations have a gate.
    return shapes if settings.activation == "xielu" else {**shapes, "gate": (d, settings.d_ff)}


def matmul_parameters(settings: DecoderSettings, lora: Lora | None = None) -> tuple[int, int]:
    """Parameters of the products that every token passes: of all layers, and of the unembedding.

    Args:
      lora: with it, those of the adapters, which have none in the unembedding.
    """
    shapes = layer_matrices(settings)
    if lora is None:
        return settings.layers * sum(i * o for i, o in shapes.values()), settings.vocab_size * settings.d_model
    adapted = [shapes[name] for name in lora.matrices if name in shapes]
    return settings.layers * sum(lora.rank * (i + o) for i, o in adapted), 0


def forward_flops(
    settings: DecoderSettings, tokens: float, pairs: "Pairs", *, lora: Lora | None = None, targets: float | None = None
) -> Flops:
    """One forward pass.

    Args:
      tokens: of all rows, without padding.
      pairs: see `Pairs`.
      lora: adapters that are computed beside the model.
      targets: tokens whose log-probs are needed (default: all); the unembedding is computed for these.
    """
    layers, head = matmul_parameters(settings)
    adapters = matmul_parameters(settings, lora)[0] if lora else 0
    targets = tokens if targets is None else targets
    seen = sum(pairs.sliding if slides else pairs.all for slides in settings.slides)
    return Flops(
        2.0 * (layers + adapters) * tokens + 2.0 * head * targets, 4.0 * settings.heads * settings.head_dim * seen
    )


def step_flops(
    settings: DecoderSettings,
    tokens: float,
    pairs: "Pairs",
    *,
    lora: Lora | None = None,
    targets: float | None = None,
    with_reference: bool = False,
) -> Flops:
    """One update: forward and backward.

    Args:
      tokens, pairs, targets: as in `forward_flops`.
      lora: the adapters that are trained; None if all parameters are.
      with_reference: the step also computes the log-probs of the reference.
    """
    forward = forward_flops(settings, tokens, pairs, lora=lora, targets=targets)
    base = forward_flops(settings, tokens, pairs, targets=targets)
    # Everything needs the gradient of its input, and only what is trained that of its weights.
    weights = forward.matmul if lora is None else forward.matmul - base.matmul
    reference = base if with_reference else Flops(0.0, 0.0)
    return Flops(2 * forward.matmul + weights + reference.matmul, 3 * forward.attention + reference.attention)


class Pairs(NamedTuple):
    """Pairs of a query and a key that it sees, summed over all rows, for one layer.

    all: in a layer without a window.
    sliding: in a layer with the model's sliding window.
    """

    all: float
    sliding: float


def causal_pairs(rows: int, length: int, window: int | None = None) -> Pairs:
    """Pairs of rows that are one sequence each.

    >>> causal_pairs(rows=1, length=4, window=2)
    Pairs(all=10.0, sliding=7.0)
    """
    seen = [length if limit is None else min(limit, length) for limit in (None, window)]
    # The first `most` queries see 1, 2, ..., most keys, the others as many as the window has.
    return Pairs(*(float(rows * (most * (most + 1) // 2 + (length - most) * most)) for most in seen))


def layout_pairs(layout: Layout, window: int | None = None) -> Pairs:
    """Pairs of packed rows with shared prompts, as `attention.rules.visible` defines them."""
    groups, segments, positions = (np.asarray(x) for x in layout)
    totals = [0, 0]
    for group_L, segment_L, position_L in zip(groups, segments, positions, strict=True):
        for group in np.unique(group_L[group_L > 0]):
            member = group_L == group
            segment_M, position_M = segment_L[member], position_L[member]
            prompt = np.sort(position_M[segment_M == 0])
            for segment in np.unique(segment_M):
                queries = position_M[segment_M == segment]
                keys = prompt if segment == 0 else np.sort(np.concatenate([prompt, queries]))
                seen = np.searchsorted(keys, queries, side="right")
                totals[0] += int(seen.sum())
                hidden = 0 if window is None else np.searchsorted(keys, queries - window, side="right")
                totals[1] += int((seen - hidden).sum())
    return Pairs(float(totals[0]), float(totals[1]))
