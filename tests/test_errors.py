"""A user's mistake names the config key: the innermost place that knows it decides."""

import pytest

from qrpo_jax.errors import UserError, located


def raised(*otherwise: str, about: str | tuple[str, ...] = (), **keys: str) -> str:
    with pytest.raises(UserError) as caught, located(*otherwise, **keys):
        raise UserError("beta is -1; it must be above 0", about=about)
    return str(caught.value)


@pytest.mark.parametrize(
    "otherwise, about, keys, suffix",
    [
        ((), "beta", {"beta": "train.beta"}, " (config.train.beta)"),
        ((), "beta", {"transform": "train.transform"}, ""),
        (("train",), "beta", {"transform": "train.transform"}, " (config.train)"),
        (("train",), "beta", {"beta": "train.beta"}, " (config.train.beta)"),
        (("model.path",), (), {"beta": "train.beta"}, " (config.model.path)"),
        (
            (),
            ("beta", "cap"),
            {"beta": "train.beta", "cap": "train.beta_cap"},
            " (config.train.beta, config.train.beta_cap)",
        ),
        ((), (), {}, ""),
    ],
)
def test_the_key_of_the_argument_is_named_and_else_the_general_one(otherwise, about, keys, suffix) -> None:
    assert raised(*otherwise, about=about, **keys) == "beta is -1; it must be above 0" + suffix


def test_the_innermost_place_that_knows_the_key_decides() -> None:
    with pytest.raises(UserError) as caught, located("outer"), located(path="reward.path"), located(beta="train.beta"):
        raise UserError("no such folder", about="path")
    assert str(caught.value) == "no such folder (config.reward.path)"


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(ValueError) as caught, located("train.beta", beta="train.beta"):
        raise ValueError("operands could not be broadcast")
    assert not isinstance(caught.value, UserError) and str(caught.value) == "operands could not be broadcast"
