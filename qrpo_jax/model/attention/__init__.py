"""Attention between the tokens of packed rows: the backends and the choice of one.

A backend is one module of this folder with a function `attend` of type `Backend`, and one line in `BACKENDS`. Decoding
with a cache has its own formula (`cached`), whichever backend is chosen.
"""

import importlib
from typing import Any, NamedTuple, Protocol

from jax import Array

from qrpo_jax.devices.processes import from_all
from qrpo_jax.errors import UserError
from qrpo_jax.model.layout import Layout


class Backend(Protocol):
    """Causal softmax attention with grouped key-value heads, for rows that pack several sequences.

    It runs on one device, on that device's rows and heads; `sharded` splits the arrays. No argument has L x M
    elements: a backend derives from layouts and window which keys a query sees (`rules.visible` is the definition), so
    it can skip what is hidden and need not store a score matrix.
    """

    def __call__(
        self,
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
        """Attention [B, L, H, K] in the type of q; scores and softmax are float32.

        Args:
          q_BxLxHxK: queries; rotary embeddings are already applied to queries and keys.
          k_BxMxGxK, v_BxMxGxK: keys and values of whole rows; H is a multiple of G, and query head h reads kv-head
            h // (H / G).
          queries, keys: layouts [B, L] of the queries and [B, M] of the keys.
          start: where in the rows of keys the queries begin, 0 if L = M. It is a traced int32 scalar where rows are
            split over the mesh, or read piece by piece.
          window: how many tokens back a query sees, its own included; None is no limit. It is a traced int32 scalar
            where layers differ, and then the largest int32 for a layer without a limit.
          scale: factor of the scores (default: K^-1/2).
          cap: soft cap of the scaled scores, or None.

        Returns:
          Padding queries see no key. They may return any finite values: nothing reads them, but a NaN would survive
          multiplication by 0 and reach the gradient.
        """


# Each backend is a module of this folder with a function `attend`, and runs on these platforms; None is any.
BACKENDS: dict[str, str | None] = {
    "plain": None,
    "blocks": None,
    "native": "cpu",
    "splash": "tpu",
    "triton": "gpu",
}
# What "auto" picks on a platform; FALLBACK on others, and where the one for the platform cannot run.
BEST = {"tpu": "splash", "gpu": "triton", "cpu": "native"}
FALLBACK = "blocks"


def backend(name: str) -> Backend:
    """The backend of that name. Kernels are imported when they are asked for: their compilers take half a second."""
    return _module(name).attend


def missing(name: str) -> str | None:
    """Why a backend of this machine's platform cannot run on this machine, in one line; None if it can."""
    missing = getattr(_module(name), "missing", None)
    return missing() if missing else None


class Best(NamedTuple):
    """What "auto" picks.

    Attributes:
      name: of the backend.
      reason: why the faster one for the platform cannot run on this machine; None if it is this one.
    """

    name: str
    reason: str | None


def best(platform: str) -> Best:
    """What "auto" picks on the platform, which is "cpu", "gpu" or "tpu"."""
    name = BEST.get(platform, FALLBACK)
    reason = missing(name)
    return Best(FALLBACK if reason else name, reason)


def check_processes(name: str, platform: str) -> None:
    """Refuses processes of one job of which "auto" picks different backends. Every process must call it.

    Raises:
      UserError: on all processes.
    """
    if name != "auto":
        return
    reasons = from_all(best(platform).reason or "")
    lacking = [index for index, reason in enumerate(reasons) if reason]
    if 0 < len(lacking) < len(reasons):
        raise UserError(
            f"attention is 'auto', which is {BEST[platform]!r} on some processes and {FALLBACK!r} on {len(lacking)} "
            f"of {len(reasons)} (process {lacking[0]}: {reasons[lacking[0]]}); allowed for all of them: {FALLBACK}",
            about="attention",
        )


def choose(name: str, platform: str) -> Backend:
    """The backend of that name, or for "auto" the best on the platform.

    Args:
      platform: "cpu", "gpu" or "tpu", of the devices that programs are compiled for.

    Raises:
      UserError: an unknown name, or a backend for another platform, or one that this machine cannot run.
    """
    if name == "auto":
        return backend(best(platform).name)
    if name not in BACKENDS:
        raise UserError(f"attention is {name!r}; allowed: {', '.join(('auto', *BACKENDS))}", about="attention")
    needed = BACKENDS[name]
    if needed not in (None, platform):
        raise UserError(
            f"attention is {name!r}, which runs on {needed}; these devices are {platform}", about="attention"
        )
    if reason := missing(name):
        raise UserError(f"attention is {name!r}, but {reason}; allowed here: auto, {FALLBACK}", about="attention")
    return backend(name)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
