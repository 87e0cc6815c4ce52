"""Credit: numbers of a rollout's tokens, against sums written out."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from qrpo_jax.on_policy.credit import token_numbers
from qrpo_jax.on_policy.rollout import Rollout
from qrpo_jax.training.objectives import OBJECTIVES
from tests.on_policy.test_parts import row

LENGTHS = [[2, 3], [1, 4, 2]]
REWARDS = [[1.0, 0.0], [0.25, 0.5, 0.75]]


def options(**changes: object) -> ConfigDict:
    known = {"advantage_scale": "std", "correction_cap": 2.0, "discount": 0.9, "gae_lambda": 0.8, "whiten": False}
    return ConfigDict(known | changes)


@pytest.fixture
def rollout() -> Rollout:
    rng = np.random.default_rng(5)
    count = sum(map(sum, LENGTHS))
    tokens = {name: -rng.random(count).astype(np.float32) for name in ("sampler", "old", "reference")}
    tokens["sampler"][4] = tokens["old"][4] - 3  # a weight above the cap
    tokens["value"] = rng.random(count).astype(np.float32)
    return Rollout([row(f"p{i}", REWARDS[i], LENGTHS[i]) for i in range(2)], tokens, {})


def parts(values: np.ndarray) -> list[np.ndarray]:
    """Numbers of tokens, one array a completion."""
    return np.split(values, np.cumsum(sum(LENGTHS, []))[:-1])


def test_tokens_of_a_completion_have_its_advantage_in_its_group(rollout: Rollout) -> None:
    found = parts(token_numbers(rollout, OBJECTIVES["grpo"], options(), beta=0.3).advantage)
    wanted = [1, -1, *(np.asarray([-1, 0, 1]) * np.sqrt(1.5))]
    for values, one in zip(found, wanted, strict=True):
        assert values.tolist() == pytest.approx([one] * len(values), abs=1e-6)


def test_rloo_takes_the_kl_term_off_the_reward_first(rollout: Rollout) -> None:
    found = parts(token_numbers(rollout, OBJECTIVES["rloo"], options(), beta=0.3).advantage)
    log_ratio = [x.sum() for x in parts(rollout.tokens["old"].astype(float) - rollout.tokens["reference"])]
    worth = np.asarray(sum(REWARDS, [])) - 0.3 * np.asarray(log_ratio)
    wanted = [worth[0] - worth[1], worth[1] - worth[0]]
    wanted += [worth[i] - (worth[2:].sum() - worth[i]) / 2 for i in (2, 3, 4)]
    for values, one in zip(found, wanted, strict=True):
        assert values.tolist() == pytest.approx([one] * len(values), abs=1e-5)


def rewards_of_tokens(rollout: Rollout, beta: float) -> list[list[float]]:
    ratios = parts(rollout.tokens["old"].astype(float) - rollout.tokens["reference"])
    each = [[-beta * float(x) for x in of] for of in ratios]
    for of, reward in zip(each, sum(REWARDS, []), strict=True):
        of[-1] += reward
    return each


def test_reinforce_pp_sums_what_comes_after_a_token(rollout: Rollout) -> None:
    found = parts(token_numbers(rollout, OBJECTIVES["reinforce_pp"], options(), beta=0.3).advantage)
    for values, rewards in zip(found, rewards_of_tokens(rollout, 0.3), strict=True):
        wanted = [sum(0.9**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
        assert values.tolist() == pytest.approx(wanted, abs=1e-5)


def test_ppo_follows_the_values(rollout: Rollout) -> None:
    found = token_numbers(rollout, OBJECTIVES["ppo"], options(), beta=0.3)
    columns = (parts(found.advantage), parts(found.target_value), parts(rollout.tokens["value"].astype(float)))
    for advantage, target, value, rewards in zip(*columns, rewards_of_tokens(rollout, 0.3), strict=True):
        after = [*value[1:], 0.0]
        delta = [r + 0.9 * b - a for r, a, b in zip(rewards, value, after, strict=True)]
        wanted = [sum((0.9 * 0.8) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(delta))]
        assert advantage.tolist() == pytest.approx(wanted, abs=1e-5)
        assert target.tolist() == pytest.approx([w + v for w, v in zip(wanted, value, strict=True)], abs=1e-5)


def test_whitened_advantages_have_mean_0_and_std_1_over_all_tokens(rollout: Rollout) -> None:
    found = token_numbers(rollout, OBJECTIVES["ppo"], options(whiten=True), beta=0.3).advantage
    assert (found.mean(), found.std()) == pytest.approx((0, 1), abs=1e-6)


def test_corrections_are_ratios_up_to_the_cap(rollout: Rollout) -> None:
    capped, none = (token_numbers(rollout, OBJECTIVES["grpo"], options(correction_cap=c), beta=0) for c in (2.0, 0.0))
    ratio = np.exp(rollout.tokens["old"] - rollout.tokens["sampler"])
    assert ratio.max() > 2 and capped.correction.tolist() == pytest.approx(np.minimum(ratio, 2).tolist(), rel=1e-5)
    assert set(none.correction.tolist()) == {1}


def test_a_completion_that_is_too_long_has_no_part_in_what_others_get(rollout: Rollout) -> None:
    """Its log-probs are not known. Without it the group has one completion less."""
    rollout.tokens["old"][2:5] = np.nan  # of the second completion of the first prompt
    for name in ("rloo", "reinforce_pp", "ppo"):
        found = token_numbers(rollout, OBJECTIVES[name], options(whiten=True), beta=0.3)
        assert all(np.isfinite(column).all() for column in found), name
        assert not found.advantage[2:5].any(), name
    rloo = parts(token_numbers(rollout, OBJECTIVES["rloo"], options(), beta=0.3).advantage)
    assert not rloo[0].any()  # nobody to compare with
    assert rloo[2].any()


def test_other_objectives_have_numbers_for_figures_alone(rollout: Rollout) -> None:
    found = token_numbers(rollout, OBJECTIVES["qrpo"], options(), beta=0.3)
    assert not found.advantage.any() and np.array_equal(found.old_log_prob, rollout.tokens["old"])
