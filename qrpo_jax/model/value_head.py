"""The value head of PPO: V of the state before each token, from the hidden states that also give its log-prob.

    V(x, y_<t) = kernel · h_t + bias

with h_t [D] the hidden state after the last norm at the position that predicts token t. The head is a branch of the
parameter tree beside the decoder's own; with LoRA it is beside the adapters. Decoder and head share their trunk: the
gradient of a loss of values reaches the decoder. The head is float32 beside parameters of any type, is computed in
float32, and starts at 0, so that V = 0 before the first update.

What leaves training has no head: see `split`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from qrpo_jax.devices.constraints import gathered
from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.token_log_probs import NO_TARGET

BRANCH = "value_head"  # of the parameter tree
AXES: dict[str, tuple[str, ...]] = {"kernel": ("embed",), "bias": ()}  # names from `devices.mesh.LOGICAL`


def initial_head(d_model: int) -> Parameters:
    """The head before the first update: zeros, `kernel` [D] and `bias` [], float32."""
    return {"kernel": jnp.zeros(d_model, jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def abstract_head(d_model: int) -> Parameters:
    """Shapes and types of `initial_head`."""
    return jax.eval_shape(lambda: initial_head(d_model))


def join(policy: Parameters, head: Parameters) -> Parameters:
    """One tree of a policy's parameters, or of its adapters, and a value head."""
    return {**policy, BRANCH: head}


def split(parameters: Parameters) -> tuple[Parameters, Parameters | None]:
    """The policy's parameters, or its adapters, alone; and the value head, None if there is none."""
    policy = {name: branch for name, branch in parameters.items() if name != BRANCH}
    return policy, parameters.get(BRANCH)


def is_of_head(path: tuple[Any, ...]) -> bool:
    """Whether the leaf at this path of a tree of parameters belongs to the value head."""
    return path[0].key == BRANCH


def values(head: Parameters, hidden_BxLxD: Array, targets_BxL: Array, compute: Compute) -> Array:
    """V of the state before each target, float32 [B, L]; 0 where nothing is predicted.

    Args:
      hidden_BxLxD: hidden states after the last norm.
      targets_BxL: token ids, or `NO_TARGET`.
      compute: how the hidden states were computed.
    """
    wide = at_least_float32(hidden_BxLxD.dtype)
    kernel_D = gathered(head["kernel"], compute.mesh, AXES["kernel"], wide)
    # A sum and not a matrix product, which on a CPU rounds a row as its place among the others has it.
    values_BxL = jnp.sum(hidden_BxLxD.astype(wide) * kernel_D[None, None], -1)
    # Each device computes the values of the hidden states that it has, and only then they travel along the row.
    values_BxL = compute.constrain(values_BxL, "rows", "residual_length")
    values_BxL = compute.constrain(values_BxL, "rows", "length")
    return jnp.where(targets_BxL == NO_TARGET, 0.0, values_BxL + head["bias"].astype(wide)[None, None])
