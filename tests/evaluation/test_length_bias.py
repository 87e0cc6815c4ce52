"""Length bias: Spearman's ρ of log-ratios and lengths is that of scipy, and is known only where log-ratios are."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from qrpo_jax.evaluation import length_bias
from qrpo_jax.evaluation.answers import Answers

PROMPTS = 59


def answered(slope: float, side: str, noise: float = 3.0) -> list[Answers]:
    """Log-ratios that rise with length by `slope` a token; 3 to 7 completions a prompt, lengths with ties."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(PROMPTS):
        length_S = rng.integers(1, 13, rng.integers(3, 8))
        ratio_S = slope * length_S + rng.normal(0, noise, len(length_S))
        sign = length_bias.SIGN[side]
        found.append(Answers(np.zeros(len(length_S)), length_S, np.ones(len(length_S), bool), sign * ratio_S))
    return found


@pytest.mark.parametrize("side", ["policy", "reference"])
@pytest.mark.parametrize("slope", [0.7, 0.0, -0.2])
def test_the_correlation_is_spearmans_and_its_interval_holds_it(slope, side):
    answers = answered(slope, side)
    rho, (low, high) = length_bias.figures(answers, side)["length_correlation"]
    expected = spearmanr(
        np.concatenate(length_bias.policy_log_ratios(answers, side)), np.concatenate([a.length_S for a in answers])
    ).statistic
    assert rho == pytest.approx(expected, abs=1e-12), (rho, expected)
    assert low < rho < high and 0.02 < high - low < 0.6, (low, rho, high)
    assert (low > 0) == (slope > 0) and (high < 0) == (slope < 0), (slope, low, high)


def test_the_sign_is_that_of_the_policy_over_the_reference():
    """Both sides have the same log π − log π_ref here, so the same ρ, although each stores the other's log-ratio."""
    of_sides = [length_bias.figures(answered(0.5, side), side)["length_correlation"][0] for side in length_bias.SIGN]
    assert of_sides[0] == of_sides[1] > 0.3, of_sides


def test_without_log_ratios_or_with_one_length_there_is_none():
    unknown = [a._replace(log_ratio_S=np.zeros(0)) for a in answered(0.5, "policy")]
    equal = [a._replace(length_S=np.full(len(a.length_S), 7)) for a in answered(0.5, "policy")]
    for answers in (unknown, equal):
        assert length_bias.figures(answers, "policy") == {}
    assert length_bias.points(unknown, "policy") == {"length": [], "log_ratio": [], "completions": 0}


def test_a_plot_has_some_of_many_completions_and_says_of_how_many(monkeypatch):
    monkeypatch.setattr(length_bias, "MOST", 17)
    answers = answered(0.5, "policy")
    found, total = length_bias.points(answers, "policy"), sum(len(a.length_S) for a in answers)
    assert len(found["length"]) == len(found["log_ratio"]) == 17 and found["completions"] == total
    assert found["length"][0] == answers[0].length_S[0] and found["length"][-1] == answers[-1].length_S[-1]
