"""Views: which completions of a row a run trains on, alone or in pairs, and with which weight."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qrpo_jax import losses
from qrpo_jax.data.rows import Row

VIEWS = ("singles", "best_worst", "random_pairs")
OVER_LONG = ("drop", "truncate_prompt_left")


class View(NamedTuple):
    """Which completions to train on and how to rank them.

    Rows keep every completion, so another view of the same rows needs no copy of them.

    Attributes:
      max_tokens: the most tokens of prompt and completion together.
      over_long: "drop" leaves out a completion above `max_tokens`, with its pair; "truncate_prompt_left" cuts its
        prompt.
      units: "singles" (every completion alone), "best_worst" (one pair: highest and lowest reward) or
        "random_pairs" (disjoint random pairs).
      first: take only the first so many completions of a row; 0 takes all.
      reference_count: rank against the first so many reference completions; 0 for all.
      exclude_own: do not rank a reference completion against its own reward.
      estimator: of quantiles, see `quantiles.ESTIMATORS`.
      ties: rank of a reward among equal ones, see `quantiles.ecdf`.
      partition: "population", "finite_sample" or "empirical", see `partition`.
      side: which completion of a pair has weight, see `losses.SELECTORS`; singles ignore it.
      tied_pairs: keep pairs of equal reward, from which an objective of better and worse learns nothing.
      seed: of random pairs, ties and selectors.
    """

    max_tokens: int
    over_long: str
    units: str = "singles"
    first: int = 0
    reference_count: int = 0
    exclude_own: bool = True
    estimator: str = "ecdf"
    ties: str = "upper"
    partition: str = "population"
    side: str = "both"
    tied_pairs: bool = True
    seed: int = 0


def pick_units(row: Row, view: View, index: int) -> list[tuple[int, ...]]:
    """Units of a row: tuples of one completion, or of two with the higher reward first.

    Pairs of which only the order is known are units as they are, unless all completions have rewards.

    Args:
      index: of the row among all rows; with the view's seed it decides random pairs.

    Returns:
      For each unit the indices of its completions in the row.
    """
    count = len(row.completions) if view.first == 0 else min(view.first, len(row.completions))
    if view.units == "singles":
        return [(i,) for i in range(count)]
    reward = [row.completions[i].reward for i in range(count)]
    if ordered_only(row):
        pairs: list[tuple[int, ...]] = [
            (better, worse) for better, worse in row.preferences if max(better, worse) < count
        ]
        return pairs[:1] if view.units == "best_worst" else pairs
    if view.units == "best_worst":
        best = max(range(count), key=lambda i: (reward[i], -i))
        worst = min(range(count), key=lambda i: (reward[i], -i))
        return [(best, worst)] if best != worst else []
    order = np.random.default_rng([view.seed, index]).permutation(count).tolist()
    drawn = list(zip(order[0::2], order[1::2], strict=False))
    return [(i, j) if reward[i] >= reward[j] else (j, i) for i, j in drawn]


def ordered_only(row: Row) -> bool:
    """Whether a row has preferences in place of rewards."""
    return bool(row.preferences) and any(math.isnan(completion.reward) for completion in row.completions)


def unit_weights(units: Sequence[tuple[int, ...]], view: View) -> np.ndarray:
    """Weight of each completion by the view's side, unit after unit, float32 [C]; a single completion has 1.

    The random selector draws one number a unit from NumPy's generator, so that a seed gives the same draws everywhere.
    """
    if view.side == "random":
        chosen_U = np.random.default_rng([view.seed, 1]).integers(2, size=len(units)).astype(np.float32)
        rejected_U = 1 - chosen_U
    else:
        weights = losses.selector_weights(view.side, ())
        chosen_U, rejected_U = (np.full(len(units), float(weight), np.float32) for weight in weights)
    paired_U = np.asarray([len(unit) == 2 for unit in units], bool)
    weights_Ux2 = np.stack([np.where(paired_U, chosen_U, 1), rejected_U], axis=1)
    return weights_Ux2[np.stack([np.ones_like(paired_U), paired_U], axis=1)].astype(np.float32)
