"""What a run says before it trains: what the optimum of its setting is, ties, and what finite samples change."""

import jax
import numpy as np
import pytest

from qrpo_jax import optimum, partition, transforms
from qrpo_jax.report import forecast
from tests.helpers import tiny


def figures(transform="identity", beta=0.3, n=7, partition_name="population", estimator="ecdf", tied=0.1):
    table = tiny.examples(30)
    table = tiny.with_numbers(
        table, references=np.broadcast_to(np.asarray(n, np.int32), (30,)), ties=np.full(30, tied, np.float32)
    )
    chosen = transforms.parse(transform)
    beta_C = np.broadcast_to(np.asarray(beta, np.float32), 30)
    return forecast.figures(table, chosen, beta_C, partition_name=partition_name, estimator=estimator), chosen


def test_figures_are_those_of_the_optimum():
    made, chosen = figures()
    with jax.enable_x64(True):
        beta = float(np.float32(0.3))
        assert made["kl"] == pytest.approx(float(optimum.kl(beta, chosen)), rel=1e-9)
        assert made["expected_quantile"] == pytest.approx(float(optimum.expected_quantile(beta, chosen)), rel=1e-9)
        assert made["effective_best_of_n"] == pytest.approx(float(optimum.best_of_n(beta, chosen)), rel=1e-9)
        gap = float(partition.gap(chosen, beta, [7])[0])
    assert made["gap"] == pytest.approx(gap) and made["gap_in_f"] == pytest.approx(beta * gap)
    assert made["tied"] == pytest.approx(0.1) and made["comparisons"] == 210


def test_where_lengths_decide_beta_figures_are_means_over_completions():
    beta = np.repeat([0.1, 0.5], 15)
    made, chosen = figures(beta=beta)
    each = [figures(beta=b)[0]["kl"] for b in (0.1, 0.5)]
    assert made["kl"] == pytest.approx(np.mean(each), rel=1e-6)
    assert made["beta"] == pytest.approx([0.1, 0.3, 0.5])
    assert "beta 0.1 to 0.5 (median 0.3)" in forecast.lines(made, chosen, "upper")[0]


def test_the_gap_is_that_of_each_completions_beta_and_references_together():
    beta, n = np.repeat([0.1, 0.5], 15), np.repeat([3, 9], 15)
    made, chosen = figures(beta=beta, n=n)
    each = [float(partition.gap(chosen, float(np.float32(b)), [k])[0]) for b, k in ((0.1, 3), (0.5, 9))]
    assert made["gap"] == pytest.approx(np.mean(each), rel=1e-5)
    assert made["gap_in_f"] == pytest.approx(np.mean([0.1 * each[0], 0.5 * each[1]]), rel=1e-5)


def test_many_different_beta_are_looked_at_by_quantiles(monkeypatch):
    beta = np.linspace(0.1, 0.5, 30)
    whole, _ = figures(beta=beta)
    monkeypatch.setattr(forecast, "MOST_BETAS", 15)
    assert figures(beta=beta)[0]["kl"] == pytest.approx(whole["kl"], rel=0.02)


def test_the_three_lines():
    made, chosen = figures()
    first, second, third = forecast.lines(made, chosen, "mid")
    assert "KL 0.364 nats" in first and "Best-of-2.8" in first and "identity, beta 0.3" in first
    assert second == "10.0% of 210 comparisons with references are ties, ranked 'mid'"
    assert third.startswith("with n = 7 references log Z differs by +0.109 from") and third.endswith(
        "the exact one is used"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"beta": 0.003}, r"WARNING: 7 references cannot single out better than the best of 8, and Best-of-332"),
        ({"transform": "normal-icdf", "n": 6}, "WARNING: the exact log Z shifts every target by"),
        ({"tied": 0.8}, "WARNING: more comparisons tie than not"),
    ],
)
def test_what_cannot_be_reached_is_warned_of(change, message):
    made, chosen = figures(**change)
    told = forecast.lines(made, chosen, "upper")
    assert message in "\n".join(told[3:]), told
    assert not any("WARNING" in line for line in told[:3])


def test_the_remedy_named_for_a_beta_out_of_reach_is_in_reach():
    made, chosen = figures(beta=0.003)
    line = forecast.lines(made, chosen, "upper")[3]
    beta = float(line.rpartition("about ")[2])
    assert len(forecast.lines(figures(beta=beta)[0], chosen, "upper")) == 3, line


def test_a_transform_without_an_exact_optimum_says_so():
    made, chosen = figures("logit", beta=0.5, partition_name="finite_sample")
    told = forecast.lines(made, chosen, "upper")
    assert "no optimum in exact quantiles (beta must be above 1)" in told[0] and "finite_sample" in told[2]


def test_objectives_without_quantiles_say_what_there_is():
    table = tiny.examples(10, pairs=True)._replace(counts={"pairs of equal reward": 3})
    told = forecast.baseline_lines(table, "dpo")
    assert len(told) == 3 and "3 pairs have equal rewards" in told[1]


def test_of_a_falling_f_the_low_quantiles_gain(monkeypatch):
    monkeypatch.setattr(transforms, "parse", lambda name: transforms.from_function(lambda t: -t, name))
    made, _ = figures(transform="falling")
    level = float(optimum.crossing_share(float(np.float32(0.3)), transforms.identity))
    assert made["losing_share"] == pytest.approx(level, abs=1e-4)  # the mirror image of identity


def test_a_scaled_transform_is_said_to_be_told_for_the_average_prompt():
    made, chosen = figures(transform="scaled-normal-icdf", estimator="midpoint")
    assert "(scaled-normal-icdf, beta 0.3, for a prompt of average spread)" in forecast.lines(made, chosen, "upper")[0]


def test_rounding_is_no_gap():
    made, chosen = figures(transform="affine(log, 0.5, 0)", beta=0.5, n=6)
    assert made["spread"] == 0 and len(forecast.lines(made, chosen, "upper")) == 3, forecast.lines(
        made, chosen, "upper"
    )
