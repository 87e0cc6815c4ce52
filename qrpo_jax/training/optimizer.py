"""AdamW with warm-up and decay, from optax, and updates of parameters in low precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from qrpo_jax.devices.dtypes import COMPUTE
from qrpo_jax.errors import UserError
from qrpo_jax.model.value_head import is_of_head

SCHEDULES = ("cosine", "linear", "constant")


class Optimization(NamedTuple):
    """Options of AdamW and of its learning rate.

    learning_rate: the peak, which the warm-up ends at.
    schedule: after the linear warm-up: "cosine" or "linear" to zero, or "constant".
    warmup_share: share of the steps spent warming up, in [0, 1).
    clip_norm: global gradient norm above which gradients are scaled down; 0 never clips.
    moment_dtype: of Adam's moments in memory, "float32" or "bfloat16".
    """

    learning_rate: float
    schedule: str
    warmup_share: float
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float
    moment_dtype: str = "float32"


def make_optimizer(options: Optimization, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer, and its learning rate as a function of the number of updates already made.

    Args:
      steps: updates of the whole run.

    Raises:
      UserError: about `schedule`, `learning_rate`, `warmup_share` or `moment_dtype`.
    """
    learning_rate, schedule, warmup_share = options.learning_rate, options.schedule, options.warmup_share
    if schedule not in SCHEDULES:
        raise UserError(f"schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)}", about="schedule")
    if not learning_rate > 0:
        raise UserError(f"learning_rate is {learning_rate}; it must be above 0", about="learning_rate")
    if not 0 <= warmup_share < 1:
        raise UserError(f"warmup_share is {warmup_share}; it must be in [0, 1)", about="warmup_share")
    if options.moment_dtype not in COMPUTE:
        raise UserError(
            f"moment_dtype is {options.moment_dtype!r}; allowed: {', '.join(COMPUTE)}", about="moment_dtype"
        )
    warmup = round(warmup_share * steps)
    rest = max(steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(learning_rate, rest),
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
        "constant": optax.constant_schedule(learning_rate),
    }[schedule]
    # Warm-up step k of w uses k / w of the peak, so that the first update is not zero.
    rise = optax.linear_schedule(learning_rate / max(warmup, 1), learning_rate, max(warmup - 1, 1))
    rate = optax.join_schedules([rise, after], [warmup]) if warmup else after
    adam = optax.scale_by_adam(b1=options.b1, b2=options.b2)
    adamw = optax.chain(
        adam if options.moment_dtype == "float32" else stored_in_bfloat16(adam),
        optax.add_decayed_weights(options.weight_decay, _matrices),
        optax.scale_by_learning_rate(rate),
    )
    if options.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(options.clip_norm), adamw), rate
    return adamw, rate


def stored_in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam with float32 arithmetic, whose moments are bfloat16 between steps: 4 bytes a weight instead of 8.

    They are rounded stochastically. A second moment changes by a thousandth of itself in a step, which rounding to
    the nearest of 8 bits would lose.
    """

    def stored(state: Any, moments: Callable[[Array, Array], Array]) -> Any:
        key = jax.random.fold_in(jax.random.key(0), state.count)
        leaves, structure = jax.tree.flatten((state.mu, state.nu))
        leaves = [moments(x, jax.random.fold_in(key, i)) for i, x in enumerate(leaves)]
        mu, nu = jax.tree.unflatten(structure, leaves)
        return state._replace(mu=mu, nu=nu)

    def init(parameters: Any) -> Any:
        return stored(adam.init(parameters), lambda x, _: x.astype(jnp.bfloat16))

    def update(gradient: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        state = stored(state, lambda x, _: x.astype(jnp.float32))
        updates, state = adam.update(gradient, state, parameters)
        return updates, stored(state, stochastically_rounded)

    return optax.GradientTransformation(init, update)


def _matrices(parameters: Any) -> Any:
    """Which arrays weight decay applies to: matrices, but no norm scale, bias or parameter of an activation.

    Nor a value head: decay would pull all values towards 0, whatever the rewards. Names decide, not the number of
    axes: every array is stacked over layers.
    """

    def matrix(path: Any, _: Any) -> bool:
        name = path[-1].key
        vector = name == "scale" or name.endswith("_bias") or name.startswith("alpha_")
        return not vector and not is_of_head(path)

    return jax.tree.map_with_path(matrix, parameters)


def wide(tree: Any) -> Any:
    """Float32 copies. In bfloat16 Adam's moments would not move: each change is smaller than their last digit."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def apply_updates(parameters: Any, updates: Any, key: Array) -> Any:
    """Parameters plus float32 updates, in the type of the parameters.

    bfloat16 keeps 8 bits, and most updates are smaller than the last of them. Sums are therefore rounded up or down at
    random, so that they are right on average and small updates accumulate.

    Args:
      key: PRNG key for the rounding; unused for float32 parameters.
    """
    leaves, structure = jax.tree.flatten(parameters)
    sums = [p.astype(jnp.float32) + u for p, u in zip(leaves, jax.tree.leaves(updates), strict=True)]
    rounded = [
        stochastically_rounded(x, jax.random.fold_in(key, i)) if p.dtype == jnp.bfloat16 else x.astype(p.dtype)
        for i, (p, x) in enumerate(zip(leaves, sums, strict=True))
    ]
    return jax.tree.unflatten(structure, rounded)


def stochastically_rounded(x: Array, key: Array) -> Array:
    """Rounds float32 to one of the two neighbouring bfloat16 numbers at random, so that the mean is `x`.

    >>> x = jnp.full(100_000, 1 + 1 / 512)  # a quarter of the way to the next bfloat16, 1 + 1 / 128
    >>> rounded = stochastically_rounded(x, jax.random.key(0)).astype(jnp.float32)
    >>> round(float((rounded > 1).mean()), 2)
    0.25
    """
    # A bfloat16 is the upper half of a float32. Noise added to the lower half carries into the upper half with a
    # probability equal to the fraction that the lower half stores.
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
