"""Attention on a mesh: each device runs the backend on its own rows, heads and part of the row."""

from typing import Any

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
    k_BxMxGxK: Array,
    v_BxMxGxK: Array,
    queries: Layout,
    keys: Layout,
    start: Array | int,
    window: Array | int | None,
    *,
    scale: float | None,
    cap: float | None,
) -> Array:
    """Attention [B, L, H, K], with the arguments of `Backend`.

    Where `context` splits rows, each device computes its part of the queries and gathers the keys and values of the
    whole row, which are smaller than queries by G / H.
    """
    if mesh is None or not spreads(mesh):
        return backend(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, queries, keys, start, window, scale=scale, cap=cap)
    of_queries = spec(mesh, ("rows", "length", "heads", None), q_BxLxHxK.shape)
    of_keys = spec(mesh, ("rows", None, "kv_heads", None), k_BxMxGxK.shape)
    # Numbers that are known stay so in the compiled program.
    traced = {name: x for name, x in (("start", start), ("window", window)) if isinstance(x, Array)}
    known = {name: x for name, x in (("start", start), ("window", window)) if not isinstance(x, Array)}

    def local(q: Array, k: Array, v: Array, queries: Layout, keys: Layout, traced: dict[str, Array]) -> Array:
        both: dict[str, Any] = traced | known
        if q.shape[1] != q_BxLxHxK.shape[1]:
            both["start"] += jax.lax.axis_index("context") * q.shape[1]
        return backend(q, k, v, queries, keys, both["start"], both["window"], scale=scale, cap=cap)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(
            of_queries,
            of_keys,
            of_keys,
            PartitionSpec(*of_queries[:2]),
            PartitionSpec(of_keys[0]),
            PartitionSpec(),
        ),
        out_specs=of_queries,
        check_vma=False,  # Pallas kernels do not say over which axes their results vary
    )(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, queries, keys, traced)
