"""Curves go through every step: as a line, under a moving average, or within a band of their neighbours."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from qrpo_jax.report import training_plots


def drawn(count: int) -> tuple[np.ndarray, np.ndarray, Figure]:
    rng = np.random.default_rng(count)
    steps, values = np.arange(1.0, count + 1), rng.normal(size=count)
    figure = Figure()
    training_plots.curve(figure.subplots(), steps.tolist(), values.tolist(), "C0", label="x")
    return steps, values, figure


@pytest.mark.parametrize("count", [3, 24, 25, 59, 60, 399, 400])
def test_a_curve_of_few_steps_has_a_point_for_each(count):
    steps, values, figure = drawn(count)
    line, *average = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([steps, values], 1))
    assert len(average) == (count >= training_plots.SMOOTHED_FROM), count
    if average:
        assert np.std(average[0].get_ydata()) < 0.7 * np.std(values)


@pytest.mark.parametrize("count", [401, 1013, 7919])
def test_a_curve_of_many_steps_has_means_within_a_band_that_holds_every_step(count):
    steps, values, figure = drawn(count)
    axes = figure.axes[0]
    (line,), (band,) = axes.lines, axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == values.max() and corners[:, 1].min() == values.min()
    x, mean = line.get_data()
    assert len(x) == training_plots.MOST_POINTS // 2
    parts = np.array_split(values, len(x))
    weighted = sum(m * len(p) for m, p in zip(mean, parts, strict=True)) / count
    assert weighted == pytest.approx(values.mean(), abs=1e-12), (weighted, values.mean())


def test_steps_without_a_value_leave_no_hole():
    figure = Figure()
    training_plots.curve(figure.subplots(), [1.0, 2.0, 3.0], [0.5, float("nan"), 0.25], "C0")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[1, 0.5], [3, 0.25]])
