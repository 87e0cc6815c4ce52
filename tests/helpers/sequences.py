"""Layouts and targets of rows that hold whole sequences, one after the other."""

import numpy as np

from qrpo_jax.model.layout import Layout
from qrpo_jax.model.token_log_probs import NO_TARGET


def layout(numbers_BxL: np.ndarray, positions_BxL: np.ndarray, own_BxL: np.ndarray | None = None) -> Layout:
    """The layout of sequences that share no prompt.

    Args:
      numbers_BxL: which sequence of its row a token belongs to, from 1; 0 is padding.
      own_BxL: whether a token belongs to a completion; by default none does. A completion's segment begins one token
        earlier, at the token that predicts its first.
    """
    own_BxL = np.zeros(numbers_BxL.shape, bool) if own_BxL is None else own_BxL
    segments_BxL = np.where(own_BxL | _before(own_BxL), numbers_BxL, 0)
    return Layout(*(np.asarray(x, np.int32) for x in (numbers_BxL, segments_BxL, positions_BxL)))


def one_a_row(shape: tuple[int, ...]) -> Layout:
    """The layout of rows [B, L] that are one sequence without padding."""
    return layout(np.ones(shape, np.int32), np.broadcast_to(np.arange(shape[1]), shape))


def targets(tokens_BxL: np.ndarray, own_BxL: np.ndarray) -> np.ndarray:
    """The token to predict from each position: the next one, where `own_BxL` says that it is predicted at all."""
    return np.where(_before(own_BxL), np.roll(tokens_BxL, -1, 1), NO_TARGET).astype(np.int32)


def _before(own_BxL: np.ndarray) -> np.ndarray:
    """Whether the next token of the row is one of `own_BxL`; no row begins with one."""
    assert not own_BxL[:, 0].any(), "nothing predicts the first token of a row"
    return np.roll(own_BxL, -1, 1)
