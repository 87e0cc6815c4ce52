"""Answers: the completions of one side to one prompt, as numbers."""

from typing import NamedTuple

import numpy as np

NOTHING = np.zeros(0)


class Answers(NamedTuple):
    """The S completions with which one side answers one prompt.

    Attributes:
      reward_S: [S].
      length_S: [S] tokens.
      finished_S: [S] bool; false for completions cut by the length limit.
      log_ratio_S: [S] log-prob of the other side minus that of this one, nats; NaN where unknown, [0] if all are.
      token_k3_S: [S] see `kl.LogRatios`; [0] if unknown.
      graded_S: [S] shares of tests that completions passed; [0] where rewards are of another kind.
      stored_N: [N] rewards of reference completions that the data set brings with the prompt.
    """

    reward_S: np.ndarray
    length_S: np.ndarray
    finished_S: np.ndarray
    log_ratio_S: np.ndarray = NOTHING
    token_k3_S: np.ndarray = NOTHING
    graded_S: np.ndarray = NOTHING
    stored_N: np.ndarray = NOTHING


def joined(parts: list[Answers]) -> Answers:
    """The answers of several seeds to one prompt, as one. Stored rewards are those of the prompt, and not repeated."""
    fields = [np.concatenate(each) for each in zip(*(part[:-1] for part in parts), strict=True)]
    return Answers._make([*fields, parts[0].stored_N])
