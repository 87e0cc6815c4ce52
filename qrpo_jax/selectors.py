"""Sample selectors: which completion of a pair a pointwise loss is taken on."""

import jax
import jax.numpy as jnp
from jax import Array

SELECTORS = {"both": 0.5, "chosen": 1.0, "rejected": 0.0, "random": None}


def selector_weights(selector: str, shape: tuple[int, ...], key: Array | None = None) -> tuple[Array, Array]:
    """Weights (w_chosen, w_rejected) of a pair's two losses.

    A pair's loss is w_chosen loss_chosen + w_rejected loss_rejected. The published code has half of
    it where it selects one completion: there a weight is 1/2 or 0, here they add up to 1.

    Args:
      selector: "both" (1/2, 1/2), "chosen" (1, 0), "rejected" (0, 1), or "random", one of the two
        by a fair coin for each pair.
      shape: of the pairs.
      key: PRNG key, for "random".

    Returns:
      Two arrays of that shape, float32 (every weight is exact in it), adding up to 1.

    Raises:
      ValueError: unknown selector, or no key for "random".

    >>> chosen, rejected = selector_weights("both", (2,))
    >>> chosen.tolist(), rejected.tolist()
    ([0.5, 0.5], [0.5, 0.5])
    """
    if selector not in SELECTORS:
        raise ValueError(f"unknown selector {selector!r}: set the selector to one of {sorted(SELECTORS)}")
    weight = SELECTORS[selector]
    if weight is not None:
        chosen = jnp.full(shape, weight, jnp.float32)
    elif key is not None:
        chosen = jax.random.bernoulli(key, shape=shape).astype(jnp.float32)
    else:
        raise ValueError(
            "selector 'random' tosses a coin for each pair and needs a key: pass key, or set "
            f"another selector of {sorted(SELECTORS)}"
        )
    return chosen, 1 - chosen
