"""What was asked for and what was achieved."""

import pytest

from qrpo_jax.evaluation.achieved import achieved

OPTIMUM = {"kl": 0.4, "expected_quantile": 0.75}


@pytest.mark.parametrize(
    "kl, quantile, words",
    [
        (0.4, 0.75, "100% of the rise from 0.5 with 100% of the KL; reached the optimum"),
        (0.1, 0.6, "40% of the rise from 0.5 with 25% of the KL; short of the optimum"),
        (0.8, 0.6, "40% of the rise from 0.5 with 200% of the KL; off the optimum"),
        (0.8, 0.8, "120% of the rise from 0.5 with 200% of the KL; reached the quantile, and went further"),
        (0.1, 0.45, "-20% of the rise from 0.5 with 25% of the KL; short of the optimum"),
        (None, 0.6, "reached 0.600: 40% of the rise from 0.5"),
    ],
)
def test_the_verdict_says_how_much_of_the_rise_came_with_how_much_of_the_kl(
    kl: float | None, quantile: float, words: str
) -> None:
    policy = {"mean_quantile": quantile} | ({} if kl is None else {"kl_to_reference_k1": kl})
    found = achieved(OPTIMUM, policy)
    assert found["verdict"].startswith("asked for quantile 0.750 at KL 0.4 nats") and words in found["verdict"], found
    assert "\n" not in found["verdict"] and found["asked"] == {"kl": 0.4, "quantile": 0.75}
    assert found["reached"] == {"kl": kl, "quantile": quantile}
    assert found["quantile_share"] == pytest.approx((quantile - 0.5) / 0.25)


def test_without_a_known_optimum_nothing_was_asked_for() -> None:
    assert achieved({}, {"mean_quantile": 0.7}) == {} == achieved({"kl": None}, {"mean_quantile": 0.7})
