"""LoRA: adapters beside their base or merged into it (arXiv 2106.09685).

Adapters are a tree of their own, shaped like the decoder's parameters: where those have `q` [N, D, H, K], adapters have
`q_adapter` with `a` [N, D, r] and `b` [N, r, H, K]. The base never changes, so it is the reference policy: the graph
without adapters, with the parameters of the base.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.settings import Lora

SUFFIX = "_adapter"


def join(base: Parameters, adapters: Parameters) -> Parameters:
    """Parameters of the graph with adapters: those of the base and the adapters, without copying an array."""
    flatten = nnx.traversals.flatten_mapping
    return nnx.traversals.unflatten_mapping({**flatten(base), **flatten(adapters)})


def merge(base: Parameters, adapters: Parameters, lora: Lora, dtype: Any = None) -> Parameters:
    """Parameters with which the graph without adapters computes the same: W + A B · alpha / rank, summed in float32.

    Args:
      dtype: type of the matrices that had an adapter (default: that of W); all other parameters stay as they are.
    """
    merged = nnx.traversals.flatten_mapping(base)
    flat_adapters = nnx.traversals.flatten_mapping(adapters)
    for *path, name, leaf in flat_adapters:
        if leaf != "a":
            continue
        target = (*path, name.removesuffix(SUFFIX))
        weight, a, b = merged[target], flat_adapters[*path, name, "a"], flat_adapters[*path, name, "b"]
        a_NxIxr, b_NxrxO = a.reshape(a.shape[0], -1, lora.rank), b.reshape(b.shape[0], lora.rank, -1)
        # On an accelerator the default precision would round both factors first.
        product = jnp.matmul(a_NxIxr, b_NxrxO, precision=jax.lax.Precision.HIGHEST).reshape(weight.shape)
        merged[target] = (weight.astype(jnp.float32) + lora.scale * product).astype(dtype or weight.dtype)
    return nnx.traversals.unflatten_mapping(merged)
