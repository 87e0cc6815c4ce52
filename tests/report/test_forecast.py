"""The forecast before training: the optimum of the settings, ties, log Z of finite samples, and warnings."""

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
    summary, chosen = figures()
    with jax.enable_x64(True):
        beta = float(np.float32(0.3))
        assert summary["kl"] == pytest.approx(float(optimum.kl(beta, chosen)), rel=1e-9)
        assert summary["expected_quantile"] == pytest.approx(float(optimum.expected_quantile(beta, chosen)), rel=1e-9)
        assert summary["effective_best_of_n"] == pytest.approx(float(optimum.best_of_n(beta, chosen)), rel=1e-9)
        gap = float(partition.gap(chosen, beta, [7])[0])
    assert summary["gap"] == pytest.approx(gap) and summary["gap_in_f"] == pytest.approx(beta * gap)
    assert summary["tied"] == pytest.approx(0.1) and summary["comparisons"] == 210


def test_where_beta_depends_on_length_figures_are_means_over_completions():
    beta = np.repeat([0.1, 0.5], 15)
    summary, chosen = figures(beta=beta)
    each = [figures(beta=b)[0]["kl"] for b in (0.1, 0.5)]
    assert summary["kl"] == pytest.approx(np.mean(each), rel=1e-6)
    assert summary["beta"] == pytest.approx([0.1, 0.3, 0.5])
    assert "beta 0.1 to 0.5 (median 0.3)" in forecast.lines(summary, chosen, "upper")[0]


def test_the_gap_is_that_of_each_completions_beta_and_references_together():
    beta, n = np.repeat([0.1, 0.5], 15), np.repeat([3, 9], 15)
    summary, chosen = figures(beta=beta, n=n)
    each = [float(partition.gap(chosen, float(np.float32(b)), [k])[0]) for b, k in ((0.1, 3), (0.5, 9))]
    assert summary["gap"] == pytest.approx(np.mean(each), rel=1e-5)
    assert summary["gap_in_f"] == pytest.approx(np.mean([0.1 * each[0], 0.5 * each[1]]), rel=1e-5)


def test_quantiles_represent_many_different_beta(monkeypatch):
    beta = np.linspace(0.1, 0.5, 30)
    whole, _ = figures(beta=beta)
    monkeypatch.setattr(forecast, "MOST_BETAS", 15)
    assert figures(beta=beta)[0]["kl"] == pytest.approx(whole["kl"], rel=0.02)


def test_the_three_lines():
    summary, chosen = figures()
    first, second, third = forecast.lines(summary, chosen, "mid")
    assert first == (
        "optimum: KL 0.364 nats, mean quantile 0.737 (like Best-of-2.8); 63% of reference completions lose probability "
        "(identity, beta 0.3)"
    )
    assert second == "10.0% of 210 comparisons with references are ties, ranked 'mid'"
    assert third == (
        "log Z of 7 references differs from the exact one by +0.109 (+0.0327 in units of f, estimator 'ecdf'); "
        "training uses the exact log Z"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"beta": 0.003},
            "WARNING: the optimum is like Best-of-332, but ranks among 7 references resolve no more than the best of 8",
        ),
        ({"transform": "normal-icdf", "n": 6}, "WARNING: the exact log Z shifts every target by"),
        ({"tied": 0.8}, "WARNING: more than half of the comparisons are ties"),
    ],
)
def test_an_optimum_out_of_reach_a_large_gap_and_many_ties_are_warned_of(change, message):
    summary, chosen = figures(**change)
    lines = forecast.lines(summary, chosen, "upper")
    assert message in "\n".join(lines[3:]), lines
    assert not any("WARNING" in line for line in lines[:3])


def test_the_beta_that_the_warning_proposes_is_in_reach():
    summary, chosen = figures(beta=0.003)
    line = forecast.lines(summary, chosen, "upper")[3]
    beta = float(line.rpartition("about ")[2])
    assert len(forecast.lines(figures(beta=beta)[0], chosen, "upper")) == 3, line


def test_a_beta_with_infinite_z_has_no_optimum():
    summary, chosen = figures("logit", beta=0.5, partition_name="finite_sample")
    lines = forecast.lines(summary, chosen, "upper")
    assert "Z is infinite for logit at beta 0.5 (beta must be above 1)" in lines[0] and "finite_sample" in lines[2]


def test_objectives_without_quantiles_have_no_forecast():
    table = tiny.examples(10, pairs=True)._replace(counts={"pairs of equal reward": 3})
    lines = forecast.baseline_lines(table, "dpo")
    assert len(lines) == 3 and "no forecast" in lines[0] and "3 pairs have equal rewards" in lines[1]


def test_of_a_falling_f_the_low_quantiles_gain(monkeypatch):
    monkeypatch.setattr(transforms, "parse", lambda name: transforms.from_function(lambda t: -t, name))
    summary, _ = figures(transform="falling")
    level = float(optimum.crossing_share(float(np.float32(0.3)), transforms.identity))
    assert summary["losing_share"] == pytest.approx(level, abs=1e-4)  # the mirror image of identity


def test_the_forecast_of_a_scaled_transform_is_for_the_average_prompt():
    summary, chosen = figures(transform="scaled-normal-icdf", estimator="midpoint")
    assert "(scaled-normal-icdf, beta 0.3, prompt of average spread)" in forecast.lines(summary, chosen, "upper")[0]


def test_rounding_is_no_gap():
    summary, chosen = figures(transform="affine(log, 0.5, 0)", beta=0.5, n=6)
    assert summary["spread"] == 0 and len(forecast.lines(summary, chosen, "upper")) == 3, forecast.lines(
        summary, chosen, "upper"
    )
