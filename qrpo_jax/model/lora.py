"""LoRA: adapters beside their base or merged into it (arXiv 2106.09685).

Adapters are a tree of their own, shaped like the decoder's parameters: where those have `q` [N, D, H, K], adapters have
`q_adapter` with `a` [N, D, r] and `b` [N, r, H, K]. The base never changes, so it is the reference policy: the graph
without adapters, with the base alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.settings import Lora

SUFFIX = "_adapter"


def join(base: Parameters, adapters: Parameters) -> Parameters:
    """Base and adapters as the parameters of a graph that has both; no array is copied."""
    flatten = nnx.traversals.flatten_mapping
    return nnx.traversals.unflatten_mapping({**flatten(base), **flatten(adapters)})


def merge(base: Parameters, adapters: Parameters, lora: Lora, dtype: Any = None) -> Parameters:
    """Parameters of a graph without adapters that computes the same: W + A B · alpha / rank, added up in float32.

    Args:
      dtype: of the adapted matrices (default: that of W); what has no adapter is left as it is.
    """
    merged = nnx.traversals.flatten_mapping(base)
    added = nnx.traversals.flatten_mapping(adapters)
    for *path, name, leaf in added:
        if leaf != "a":
            continue
        where = (*path, name.removesuffix(SUFFIX))
        weight, a, b = merged[where], added[*path, name, "a"], added[*path, name, "b"]
        a_NxIxr, b_NxrxO = a.reshape(a.shape[0], -1, lora.rank), b.reshape(b.shape[0], lora.rank, -1)
        # Full precision: on an accelerator the default would round both factors first.
        product = jnp.matmul(a_NxIxr, b_NxrxO, precision=jax.lax.Precision.HIGHEST).reshape(weight.shape)
        merged[where] = (weight.astype(jnp.float32) + lora.scale * product).astype(dtype or weight.dtype)
    return nnx.traversals.unflatten_mapping(merged)
