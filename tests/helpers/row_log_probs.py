"""Log-probs of rows by one forward pass, where a test has no use for values."""

from typing import Any

from jax import Array

from qrpo_jax.model.log_probs import log_probs_and_values


def row_log_probs(*arguments: Any, **settings: Any) -> Array:
    """The first result of `log_probs_and_values`, float32 [B, L]."""
    return log_probs_and_values(*arguments, **settings)[0]
