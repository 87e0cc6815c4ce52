"""Floating-point types by the names that configs and model folders use."""

from typing import Any

import jax.numpy as jnp

FLOATS: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
# Types for training and matrix products; float16 is not among them, because its gradients would need scaling.
COMPUTE = ("float32", "bfloat16")
SAFETENSORS: dict[str, Any] = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}


def at_least_float32(dtype: Any) -> Any:
    """The type of sums, norms, softmax and rotations in a computation of a type: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)
