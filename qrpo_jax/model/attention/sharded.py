"""Attention on a mesh: each device runs the backend on its own rows, heads and part of the row."""

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from qrpo_jax.devices.constraints import spreads
from qrpo_jax.devices.mesh import spec
from qrpo_jax.model.attention import Backend
from qrpo_jax.model.layout import Layout


def attend(
    backend: Backend,
    mesh: Mesh | None,
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    layout: Layout,
    window: Array | int | None,
    *,
    scale: float | None,
    cap: float | None,
) -> Array:
    """Attention [B, L, H, K] of whole rows, with the arguments of `Backend`.

    Where `context` splits rows, each device computes its part of the queries and gathers the keys and values of the
    whole row, which are smaller than queries by G / H.
    """
    if mesh is None or not spreads(mesh):
        return backend(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layout, layout, 0, window, scale=scale, cap=cap)
    queries = spec(mesh, ("rows", "length", "heads", None), q_BxLxHxK.shape)
    keys = spec(mesh, ("rows", None, "kv_heads", None), k_BxLxGxK.shape)
    traced = window if isinstance(window, Array) else None

    def local(q: Array, k: Array, v: Array, of_queries: Layout, of_keys: Layout, traced: Array | None) -> Array:
        start = 0 if q.shape[1] == k.shape[1] else jax.lax.axis_index("context") * q.shape[1]
        back = window if traced is None else traced
        return backend(q, k, v, of_queries, of_keys, start, back, scale=scale, cap=cap)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(queries, keys, keys, PartitionSpec(*queries[:2]), PartitionSpec(keys[0]), PartitionSpec()),
        out_specs=queries,
        check_vma=False,  # Pallas kernels do not say over which axes their results vary
    )(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, layout, layout, traced)
