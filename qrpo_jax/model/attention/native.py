"""Attention on a CPU by kernels in C++, `native.cc`, which a compiler of this machine makes for its vector units.

They visit only keys that a query of a tile sees, as `blocks` does, but tiles are small enough that scores never leave
the first-level cache, and whole rows of a matrix product stay in registers. XLA calls them as foreign functions. A head
size is filled up to a multiple of 8. Types other than float32 and bfloat16 are left to `blocks`.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qrpo_jax.devices.cores import core_count
from qrpo_jax.devices.shared_library import NotBuiltError, shared_library
from qrpo_jax.model.attention import blocks
from qrpo_jax.model.attention.key_ranges import key_ranges
from qrpo_jax.model.layout import Layout

SOURCE = Path(__file__).with_suffix(".cc")
FUNCTIONS = "attention_forward", "attention_backward"


class Rule(NamedTuple):
    """What is fixed when a program is compiled.

    Attributes:
      scale: factor of the scores.
      cap: soft cap of the scaled scores; 0 is none.
      threads: of this process that compute for one device.
    """

    scale: float
    cap: float
    threads: int


def attend(
    q_BxLxHxK: Array,
    k_BxMxGxK: Array,
    v_BxMxGxK: Array,
    queries: Layout,
    keys: Layout,
    start: Array | int,
    window: Array | int | None,
    /,
    *,
    scale: float | None,
    cap: float | None,
) -> Array:
    """Attention [B, L, H, K] as `Backend` defines it; a query that sees no key returns 0.

    Raises:
      NotBuiltError: the kernels cannot be compiled here; `missing` says so before.
    """
    _, length, _, k_dim = q_BxLxHxK.shape
    if q_BxLxHxK.dtype not in (jnp.float32, jnp.bfloat16):
        return blocks.attend(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, queries, keys, start, window, scale=scale, cap=cap)
    ranges_4xBxM = jnp.stack(key_ranges(keys, window))
    ranges_4xBxL = jax.lax.dynamic_slice_in_dim(ranges_4xBxM, start, length, 2)
    threads = max(1, core_count() // jax.local_device_count())
    rule = Rule(k_dim**-0.5 if scale is None else scale, cap or 0.0, threads)
    out_BxLxHxK = _attend(rule, *(_filled(x) for x in (q_BxLxHxK, k_BxMxGxK, v_BxMxGxK)), ranges_4xBxL)
    return out_BxLxHxK[..., :k_dim].astype(q_BxLxHxK.dtype)


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot run here, in one line; None if they can. The first call compiles them: some seconds."""
    try:
        targets()
    except NotBuiltError as error:
        return str(error)
    return None


@functools.cache
def targets() -> dict[str, str]:
    """The names under which XLA knows the kernels. They change with the kernels, so no kept program calls other ones.

    Raises:
      NotBuiltError: they cannot be compiled here.
    """
    library, made_from = shared_library(SOURCE)
    names = {function: f"qrpo_jax_{function}_{made_from}" for function in FUNCTIONS}
    for function, name in names.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, function)), platform="cpu")
    return names


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q_BxLxHxK: Array, k_BxMxGxK: Array, v_BxMxGxK: Array, ranges_4xBxL: Array) -> Array:
    return _forward(rule, q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, ranges_4xBxL)[0]


def _forward(
    rule: Rule, q_BxLxHxK: Array, k_BxMxGxK: Array, v_BxMxGxK: Array, ranges_4xBxL: Array
) -> tuple[Array, tuple[Array, ...]]:
    batch, length, heads, _ = q_BxLxHxK.shape
    results = _like(q_BxLxHxK), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    kept = _call(rule, "attention_forward", results, q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, ranges_4xBxL)
    out_BxLxHxK, log_total_BxHxL = (checkpoint_name(x, "attention") for x in kept)
    return out_BxLxHxK, (q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, ranges_4xBxL, out_BxLxHxK, log_total_BxHxL)


def _backward(rule: Rule, residuals: tuple[Array, ...], d_out_BxLxHxK: Array) -> tuple[Array | None, ...]:
    results = tuple(_like(x) for x in residuals[:3])
    return *_call(rule, "attention_backward", results, *residuals, d_out_BxLxHxK), None


_attend.defvjp(_forward, _backward)


def _call(rule: Rule, function: str, results: tuple[jax.ShapeDtypeStruct, ...], *arrays: Array) -> Any:
    return jax.ffi.ffi_call(targets()[function], results)(
        *arrays, scale=np.float32(rule.scale), cap=np.float32(rule.cap), threads=np.int64(rule.threads)
    )


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _filled(x_BxLxHxK: Array) -> Array:
    """In float32, with heads filled up to a multiple of 8."""
    return jnp.pad(x_BxLxHxK.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, -x_BxLxHxK.shape[-1] % 8)))
