"""Wins against the other side."""

import numpy as np
import pytest

from qrpo_jax.evaluation.ranks import mid_rank_quantile
from qrpo_jax.evaluation.wins import outcomes


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, 7) / 3, rng.integers(0, 4, 5) / 3


@pytest.mark.parametrize("seed", range(5))
def test_what_one_side_wins_the_other_loses(seed: int) -> None:
    first, second = draw(seed)
    there, back = outcomes(first, second), outcomes(second, first)
    assert there.tied == back.tied > 0 and there.rate + back.rate == pytest.approx(1)
    assert there.won + back.won + there.tied == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_the_win_rate_is_that_of_all_pairs_and_the_mean_quantile(seed: int) -> None:
    first, second = draw(seed)
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second]
    rate = outcomes(first, second).rate
    assert rate == pytest.approx(np.mean(points)) == pytest.approx(mid_rank_quantile(first, second).mean())


def test_a_side_wins_half_against_itself() -> None:
    first, _ = draw(11)
    assert outcomes(first, first).rate == pytest.approx(0.5)
