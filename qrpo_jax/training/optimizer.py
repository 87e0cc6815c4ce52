"""AdamW with warm-up and decay, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

SCHEDULES = ("cosine", "linear", "constant")


def make_optimizer(
    *,
    learning_rate: float,
    schedule: str,
    warmup_share: float,
    steps: int,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and its learning-rate schedule over `steps` updates.

    Args:
      schedule: what follows the linear warm-up: "cosine" or "linear" to zero, or "constant".
      warmup_share: share of the steps spent warming up.
      clip_norm: global gradient norm above which gradients are scaled down; 0 for never.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)} (config.*.schedule)")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; it must be above 0 (config.*.learning_rate)")
    if not 0 <= warmup_share < 1:
        raise ValueError(f"warmup_share is {warmup_share}; it must be in [0, 1) (config.*.warmup_share)")
    warmup = round(warmup_share * steps)
    rest = max(steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(learning_rate, rest),
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
        "constant": optax.constant_schedule(learning_rate),
    }[schedule]
    # The first update already moves: warm-up step k of w uses k / w of the peak.
    rise = optax.linear_schedule(learning_rate / max(warmup, 1), learning_rate, max(warmup - 1, 1))
    rate = optax.join_schedules([rise, after], [warmup]) if warmup else after
    adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_matrices)
    return (optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm > 0 else adamw), rate


def _matrices(parameters: Any) -> Any:
    """Weight decay is for matrices; norm scales, biases and activations, stacked over layers, are left alone."""

    def matrix(path: Any, _: Any) -> bool:
        name = path[-1].key
        return name != "scale" and not name.endswith("_bias") and not name.startswith("alpha_")

    return jax.tree.map_with_path(matrix, parameters)


def wide(tree: Any) -> Any:
    """Float32 copies: moments of bfloat16 would not move, as a step of a running mean is less than their last digit."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def apply_updates(parameters: Any, updates: Any, key: Array) -> Any:
    """Parameters plus float32 updates, in the type of the parameters.

    bfloat16 keeps 8 bits, and most updates are less than the last of them. Sums are therefore rounded up or down by
    chance, so that their mean is right and many small updates add up to what they are.

    Args:
      key: of the chance; float32 parameters do not need it.
    """
    leaves, structure = jax.tree.flatten(parameters)
    sums = [p.astype(jnp.float32) + u for p, u in zip(leaves, jax.tree.leaves(updates), strict=True)]
    rounded = [
        stochastically_rounded(x, jax.random.fold_in(key, i)) if p.dtype == jnp.bfloat16 else x.astype(p.dtype)
        for i, (p, x) in enumerate(zip(leaves, sums, strict=True))
    ]
    return jax.tree.unflatten(structure, rounded)


def stochastically_rounded(x: Array, key: Array) -> Array:
    """bfloat16 numbers whose mean is x: one of the two neighbours of x, the nearer one more often.

    >>> x = jnp.full(100_000, 1 + 1 / 512)  # a quarter of the way to the next bfloat16, 1 + 1 / 128
    >>> rounded = stochastically_rounded(x, jax.random.key(0)).astype(jnp.float32)
    >>> round(float((rounded > 1).mean()), 2)
    0.25
    """
    # A bfloat16 is the upper half of a float32: adding noise to the lower half carries over as often as it should.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
