"""How a forward pass is computed, as opposed to what it computes."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from qrpo_jax.model.attention import BACKENDS, Backend


class Compute(NamedTuple):
    """How a forward pass is computed.

    Attributes:
      dtype: type of activations and matrix products; norms, softmax and rotations are float32.
      remat: the backward pass recomputes each layer instead of storing its activations.
      attention: attention between the tokens of a row; `attention.choose` gives it by name.
    """

    dtype: Any = jnp.float32
    remat: bool = False
    attention: Backend = BACKENDS["plain"]


DEFAULT = Compute()
