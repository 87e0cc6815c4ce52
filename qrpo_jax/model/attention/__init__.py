"""Attention between the tokens of packed rows: the backends and the choice of one.

A backend is one file of this folder with a function of type `Backend`, and one line in `BACKENDS`. Decoding with a
cache has its own formula (`cached`), whichever backend is chosen.
"""

from typing import Protocol

from jax import Array

from qrpo_jax.errors import UserError
from qrpo_jax.model.attention import plain


class Backend(Protocol):
    """Causal softmax attention with grouped key-value heads, for rows that pack several sequences.

    No argument has L x L elements: a backend derives from segments, positions and window which keys a query sees
    (`rules.visible` is the definition), so it can skip what is hidden and need not store a score matrix. Arrays may be
    sharded over rows and heads: a backend that the compiler cannot partition by itself has to do it.
    """

    def __call__(
        self,
        q_BxLxHxK: Array,
        k_BxLxGxK: Array,
        v_BxLxGxK: Array,
        segments_BxL: Array,
        positions_BxL: Array,
        window: Array | int | None,
        /,
        *,
        scale: float | None,
        cap: float | None,
    ) -> Array:
        """Attention [B, L, H, K] in the type of q; scores and softmax are float32.

        Args:
          q_BxLxHxK: queries; rotary embeddings are already applied to queries and keys.
          k_BxLxGxK, v_BxLxGxK: keys and values; H is a multiple of G, and query head h reads kv-head h // (H / G).
          segments_BxL: int32, the sequence of the row that a token belongs to, from 1; 0 is padding. A query sees
            keys of its own segment only. A segment's tokens are adjacent and in order; padding may be anywhere between.
          positions_BxL: int32, position within the segment, from 0. A query sees keys up to its own position.
          window: how many tokens back a query sees, its own included; None is no limit. It is a traced int32 scalar
            where layers differ, and then the largest int32 for a layer without a limit.
          scale: factor of the scores (default: K^-1/2).
          cap: soft cap of the scaled scores, or None.

        Returns:
          Padding queries see no key. They may return any finite values: nothing reads them, but a NaN would survive
          multiplication by 0 and reach the gradient.
        """


BACKENDS: dict[str, Backend] = {
    "plain": plain.attend,
}


def choose(name: str) -> Backend:
    """The backend of that name; "auto" picks one for this machine, which today is always the plain formula.

    Raises:
      UserError: an unknown name.
    """
    if name == "auto":
        return BACKENDS["plain"]
    if name not in BACKENDS:
        raise UserError(f"attention is {name!r}; allowed: {', '.join(('auto', *BACKENDS))}", about="attention")
    return BACKENDS[name]
