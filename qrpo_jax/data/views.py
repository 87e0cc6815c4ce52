"""Views: which completions of a row a run trains on, alone or in pairs, and with which weight."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from qrpo_jax import losses
from qrpo_jax.data import ragged
from qrpo_jax.data.ragged import Ragged
from qrpo_jax.data.rows import COMPLETION_SOURCES, Row

OVER_LONG = ("drop", "truncate_prompt_left")
DRAWN_ROWS = 4096  # rows whose random pairs are drawn at a time


class Selection(NamedTuple):
    """How a view makes units.

    Attributes:
      pairing: None for single completions, or "extremes", "disjoint" or "all", see `PAIRINGS`.
      references: only of completions that were sampled from the reference policy.
      first: of the first so many of these; 0 for all.
    """

    pairing: str | None
    references: bool = False
    first: int = 0


# The last four are the off-policy sets of the published runs.
VIEWS = {
    "singles": Selection(None),
    "best_worst": Selection("extremes"),
    "random_pairs": Selection("disjoint"),
    "all_pairs": Selection("all"),
    "offpolicy2best": Selection("extremes", references=True, first=6),
    "offpolicy2random": Selection("disjoint", references=True, first=2),
    "offpolicy6random": Selection("disjoint", references=True, first=6),
    "offpolicy10random": Selection("disjoint", references=True, first=20),
}


class View(NamedTuple):
    """Which completions to train on and how to rank them.

    Rows keep every completion, so another view of the same rows needs no copy of them.

    Attributes:
      max_tokens: the most tokens of prompt and completion together.
      over_long: "drop" leaves out a completion above `max_tokens`, with its pair; "truncate_prompt_left" cuts its
        prompt.
      units: a key of `VIEWS`: "singles" (every completion alone), "best_worst" (one pair: highest and lowest reward),
        "random_pairs" (disjoint random pairs), "all_pairs", or an off-policy set.
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


class Units(NamedTuple):
    """The units of rows, row after row.

    Attributes:
      completions_E: int32, indices of completions; of a pair the one with the higher reward first.
      sizes_U: int8, completions of each unit: 1 or 2.
      row_U: int32, the row of each unit.
    """

    completions_E: np.ndarray
    sizes_U: np.ndarray
    row_U: np.ndarray


def pick(rewards: Ragged, sources_K: np.ndarray, preferences: Ragged, view: View, index_R: np.ndarray) -> Units:
    """The units of rows.

    Pairs of which only the order is known are units as they are, unless all completions have rewards.

    Args:
      rewards, sources_K, preferences: as in `corpus.Corpus`.
      index_R: of each row among all rows; with the view's seed it decides random pairs.
    """
    chosen = candidates(rewards, sources_K, view)
    how = VIEWS[view.units].pairing
    if how is None:
        return Units(chosen.values, np.ones(len(chosen.values), np.int8), chosen.row_V)
    ordered_R = ordered_rows(rewards, preferences)
    parts = [_stated_pairs(rewards, preferences, chosen, ordered_R, how)]
    counts_R = np.where(ordered_R, 0, chosen.counts_R)
    for count in np.unique(counts_R[counts_R > 1]).tolist():
        rows_Q = np.flatnonzero(counts_R == count)
        completions_QxN = chosen.values[chosen.first_R1[rows_Q][:, None] + np.arange(count)]
        better_QxM, worse_QxM = PAIRINGS[how](rewards.values[completions_QxN], view.seed, index_R[rows_Q])
        rows_QxM = np.broadcast_to(rows_Q[:, None], better_QxM.shape)
        columns = (np.take_along_axis(completions_QxN, i, 1) for i in (better_QxM, worse_QxM))
        parts.append(np.stack([rows_QxM, *columns], -1).reshape(-1, 3))
    pairs_Ux3 = np.concatenate(parts)
    pairs_Ux3 = pairs_Ux3[np.argsort(pairs_Ux3[:, 0], kind="stable")].astype(np.int32)
    return Units(pairs_Ux3[:, 1:].reshape(-1), np.full(len(pairs_Ux3), 2, np.int8), pairs_Ux3[:, 0])


def candidates(rewards: Ragged, sources_K: np.ndarray, view: View) -> Ragged:
    """The completions of each row that may be in units, as indices."""
    selection = VIEWS[view.units]
    may_K = np.ones(len(sources_K), bool)
    if selection.references:
        may_K = sources_K == COMPLETION_SOURCES.index("reference")
    limits = [limit for limit in (selection.first, view.first) if limit]
    if limits:
        before_K1 = ragged.true_before(may_K)  # candidates before each completion
        may_K &= before_K1[:-1] - before_K1[rewards.first_R1[:-1]][rewards.row_V] < min(limits)
    return Ragged(np.flatnonzero(may_K).astype(np.int32), ragged.true_before(may_K)[rewards.first_R1].astype(np.int64))


def ordered_rows(rewards: Ragged, preferences: Ragged) -> np.ndarray:
    """Whether each row has preferences in place of rewards, bool [R]."""
    unknown_K1 = ragged.true_before(np.isnan(rewards.values))
    return (preferences.counts_R > 0) & (np.diff(unknown_K1[rewards.first_R1]) > 0)


def _stated_pairs(rewards: Ragged, preferences: Ragged, chosen: Ragged, ordered_R: np.ndarray, how: str) -> np.ndarray:
    """Row and completions of the pairs whose order was stated, int64 [U, 3]; "extremes" takes one of a row."""
    rows_P = preferences.row_V.astype(np.int64)
    pairs_Px2 = preferences.values.astype(np.int64).reshape(-1, 2) + rewards.first_R1[rows_P][:, None]
    may_K = np.zeros(len(rewards.values), bool)
    may_K[chosen.values] = True
    kept_P = ordered_R[rows_P] & may_K[pairs_Px2].all(1)
    table_Ux3 = np.concatenate([rows_P[:, None], pairs_Px2], 1)[kept_P]
    if how == "extremes":
        table_Ux3 = table_Ux3[np.unique(table_Ux3[:, 0], return_index=True)[1]]
    return table_Ux3


Pairs = tuple[np.ndarray, np.ndarray]  # better and worse [Q, M], as indices among a row's N completions


def _extremes(rewards_QxN: np.ndarray, seed: int, index_Q: np.ndarray) -> Pairs:
    """The highest and the lowest reward; of equal ones the first is best and the last is worst."""
    last = rewards_QxN.shape[1] - 1
    best_Q, worst_Q = rewards_QxN.argmax(1), last - rewards_QxN[:, ::-1].argmin(1)
    return best_Q[:, None], worst_Q[:, None]


def _disjoint(rewards_QxN: np.ndarray, seed: int, index_Q: np.ndarray) -> Pairs:
    """Random pairs, each completion in one at most."""
    count = rewards_QxN.shape[1]
    order_QxN = _permutations(seed, index_Q, count)
    pairs = count // 2 * 2
    return _sorted(rewards_QxN, order_QxN[:, 0:pairs:2], order_QxN[:, 1:pairs:2])


def _all(rewards_QxN: np.ndarray, seed: int, index_Q: np.ndarray) -> Pairs:
    """Every pair."""
    first_M, second_M = np.triu_indices(rewards_QxN.shape[1], 1)
    shape = len(rewards_QxN), len(first_M)
    return _sorted(rewards_QxN, np.broadcast_to(first_M, shape), np.broadcast_to(second_M, shape))


PAIRINGS: dict[str, Callable[[np.ndarray, int, np.ndarray], Pairs]] = {
    "extremes": _extremes,
    "disjoint": _disjoint,
    "all": _all,
}


def _sorted(rewards_QxN: np.ndarray, a_QxM: np.ndarray, b_QxM: np.ndarray) -> Pairs:
    """Pairs with the higher reward first; of equal rewards `a` is."""
    swap_QxM = np.take_along_axis(rewards_QxN, a_QxM, 1) < np.take_along_axis(rewards_QxN, b_QxM, 1)
    return np.where(swap_QxM, b_QxM, a_QxM), np.where(swap_QxM, a_QxM, b_QxM)


def _permutations(seed: int, index_Q: np.ndarray, count: int) -> np.ndarray:
    """A random order of `count` things for each index, [Q, count]; it depends on seed, index and count alone."""
    orders = []
    for start in range(0, len(index_Q), DRAWN_ROWS):
        part = index_Q[start : start + DRAWN_ROWS]
        padded = np.zeros(DRAWN_ROWS, np.int32)
        padded[: len(part)] = part
        orders.append(np.argsort(_draws(seed, padded, count)[: len(part)], axis=1, kind="stable"))
    return np.concatenate(orders)


def _draws(seed: int, index_Q: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(_draw(jax.random.key(seed), index_Q, 1 << (count - 1).bit_length()))[:, :count]


@functools.partial(jax.jit, static_argnums=2)
def _draw(key: jax.Array, index_Q: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda index: jax.random.bits(jax.random.fold_in(key, index), (count,)))(index_Q)


def pick_units(row: Row, view: View, index: int) -> list[tuple[int, ...]]:
    """The units of one row as `pick` chooses them: tuples of indices of its completions."""
    rewards = ragged.ragged([[completion.reward for completion in row.completions]], np.float32)
    sources_K = np.asarray([COMPLETION_SOURCES.index(c.source) for c in row.completions], np.int8)
    pairs = np.asarray(row.preferences, np.int32).reshape(-1, 2)
    units = pick(rewards, sources_K, Ragged(pairs, ragged.starts([len(pairs)])), view, np.asarray([index]))
    return [tuple(unit.tolist()) for unit in np.split(units.completions_E, np.cumsum(units.sizes_U)[:-1]) if len(unit)]


def unit_count(completions: int, view: View, references: int | None = None) -> int:
    """Number of units of a row with so many completions, all scored.

    Args:
      references: how many of them were sampled from the reference policy; by default all.
    """
    selection = VIEWS[view.units]
    count = completions if not selection.references or references is None else references
    count = min([count, *(limit for limit in (view.first, selection.first) if limit)])
    return {None: count, "extremes": int(count > 1), "disjoint": count // 2, "all": count * (count - 1) // 2}[
        selection.pairing
    ]


def ordered_only(row: Row) -> bool:
    """Whether a row has preferences in place of rewards."""
    return bool(row.preferences) and any(math.isnan(completion.reward) for completion in row.completions)


def unit_weights(sizes_U: np.ndarray, view: View) -> np.ndarray:
    """Weight of each completion by the view's side, unit after unit, float32 [C]; a single completion has 1.

    The random selector draws one number a unit from NumPy's generator, so that a seed gives the same draws everywhere.
    """
    if view.side == "random":
        chosen_U = np.random.default_rng([view.seed, 1]).integers(2, size=len(sizes_U)).astype(np.float32)
        rejected_U = 1 - chosen_U
    else:
        weights = losses.selector_weights(view.side, ())
        chosen_U, rejected_U = (np.full(len(sizes_U), float(weight), np.float32) for weight in weights)
    paired_U = np.asarray(sizes_U) == 2
    weights_Ux2 = np.stack([np.where(paired_U, chosen_U, np.float32(1)), rejected_U], axis=1)
    return weights_Ux2[np.stack([np.ones_like(paired_U), paired_U], axis=1)]
