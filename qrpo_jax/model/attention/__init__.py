"""Attention between the tokens of packed rows: the backends and the choice of one.

A backend is one module of this folder with a function `attend` of type `Backend`, and one line in `BACKENDS`. Decoding
with a cache has its own formula (`cached`), whichever backend is chosen.
"""

import importlib
from typing import Protocol

from jax import Array

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
BEST = {"tpu": "splash", "gpu": "triton"}  # what "auto" picks on a platform; "blocks" on every other


def backend(name: str) -> Backend:
    """The backend of that name. Kernels are imported when they are asked for: their compilers take half a second."""
    return importlib.import_module(f"{__name__}.{name}").attend


def choose(name: str, platform: str) -> Backend:
    """The backend of that name, or for "auto" the best on the platform.

    Args:
      platform: "cpu", "gpu" or "tpu", of the devices that programs are compiled for.

    Raises:
      UserError: an unknown name, or a backend for another platform.
    """
    if name == "auto":
        return backend(BEST.get(platform, "blocks"))
    if name not in BACKENDS:
        raise UserError(f"attention is {name!r}; allowed: {', '.join(('auto', *BACKENDS))}", about="attention")
    needed = BACKENDS[name]
    if needed not in (None, platform):
        raise UserError(
            f"attention is {name!r}, which runs on {needed}; these devices are {platform}", about="attention"
        )
    return backend(name)
