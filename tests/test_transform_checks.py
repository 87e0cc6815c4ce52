"""Transforms from which nothing can be learned are refused, and those that fall are measured."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import transforms
from qrpo_jax.errors import UserError
from qrpo_jax.transform_checks import check_traceable, check_values

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("name", [*transforms.TRANSFORMS, "power(0.3)", "threshold(0.8)", "gaussian(1, 2)"])
@pytest.mark.parametrize("estimator", ["ecdf", "midpoint"])
def test_every_transform_of_ours_passes_and_falls_nowhere(name, estimator):
    assert check_values(transforms.parse(name), estimator) == 0


@pytest.mark.parametrize(
    "name, falling",
    [("piecewise-linear((0, 1), (1, 0))", 1.0), ("piecewise-linear((0, 0), (0.75, 1), (1, 0))", 0.25)],
)
def test_the_share_of_quantiles_on_which_a_transform_falls(name, falling):
    assert check_values(transforms.parse(name), "ecdf") == pytest.approx(falling, abs=0.01)


def made(f, **changes):
    """A transform of this f without its log Z, which these checks do not read."""
    return transforms.identity._replace(name="mine", apply=f, **changes)


@pytest.mark.parametrize(
    "transform, estimator, message",
    [
        (transforms.parse("affine(identity, 3, 0)"), "ecdf", "is 3 everywhere, so that all completions have the same"),
        (made(lambda t: 0 * t + 0.1), "ecdf", "is 0.1 everywhere"),
        (made(lambda t: t * 1e39), "ecdf", "is inf in float32 inside (0, 1); give it smaller values"),
        (made(jnp.log), "ecdf", "is -inf at quantile 0, which estimator 'ecdf' gives"),
        (made(lambda t: -jnp.log1p(-t), clamp="lower"), "ecdf", "is inf at quantile 1"),
        (made(lambda t: t, clamp="sideways"), "ecdf", "has clamp 'sideways'; allowed: none, lower"),
        (made(jnp.sort), "ecdf", "is not elementwise"),
        (made(lambda t: t - t.mean() + 0.1 * t.shape[0]), "ecdf", "is not elementwise"),
        (made(lambda t: t + RANDOM.random()), "ecdf", "is not elementwise"),
    ],
)
def test_a_transform_that_cannot_order_completions_is_refused(transform, estimator, message):
    with pytest.raises(UserError) as caught:
        check_values(transform, estimator)
    assert message in str(caught.value) and caught.value.about[0] == "transform", str(caught.value)


def test_an_end_at_which_no_quantile_lies_may_be_infinite():
    assert check_values(made(jnp.log), "midpoint") == check_values(made(jnp.log, clamp="lower"), "ecdf") == 0


@pytest.mark.parametrize(
    "f, message",
    [
        (lambda t: np.sqrt(np.asarray(t)), "cannot be traced by JAX"),
        (lambda t: t if t.sum() > 0.5 else 0 * t, "cannot be traced by JAX"),
        (lambda t: {}["x"], "cannot be traced by JAX"),
        (lambda t: t * 1j, "returns complex64; it must return real numbers"),
        (lambda t: t.sum(), r"for shape (7,) it returns ()"),
        (lambda t: [t], "it returns None"),
    ],
)
def test_a_function_that_training_could_not_call_is_refused(f, message):
    with pytest.raises(UserError) as caught:
        check_traceable(f, "mine")
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.about == ("f",)


COUNT = itertools.count()


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit(0)",
        "def f(t): raise SystemExit(0)",
        "import os\ndef f(t): os._exit(0)",
        "def f(t): return {}['x']",
    ],
)
def test_a_users_transform_that_raises_or_exits_is_one_line(tmp_path, monkeypatch, source):
    name = f"a_transform_{next(COUNT)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        transforms.parse(f"{name}:f")
    assert f"'{name}:f'" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.about == ("transform",)
