"""Layout of packed rows: which tokens of a row belong to one prompt, to one completion, and in which order."""

from typing import Any, NamedTuple

Array = Any  # NumPy on the host, jax on the mesh


class Layout(NamedTuple):
    """Where each token of B packed rows of L tokens stands, int32 [B, L] each.

    A group is a prompt with the completions that share it. Its tokens are adjacent: first the shared prompt, then the
    completions one after another, each in order of position. Padding may be anywhere between groups.

    The prompt's last token is not shared: each completion begins with a copy of it, which predicts the completion's
    first token. So the target of every token is the next token of its own completion.

    Attributes:
      groups_BxL: from 1; 0 is padding.
      segments_BxL: s >= 1 for the completion in slot s - 1 of the row; 0 for a shared prompt, and for padding.
      positions_BxL: position within prompt and completion, from 0. All completions of a group go on at the same one.
    """

    groups_BxL: Array
    segments_BxL: Array
    positions_BxL: Array


def one_sequence(lengths_B: Array, positions_BxL: Array) -> Layout:
    """The layout of rows that hold one sequence each, from the first token on.

    Args:
      lengths_B: tokens of each row's sequence; the rest is padding.
      positions_BxL: 0, 1, ... in every row.
    """
    groups_BxL = (positions_BxL < lengths_B[:, None]).astype(positions_BxL.dtype)
    return Layout(groups_BxL, groups_BxL * 0, positions_BxL)
