"""Advantages against sums written out, with rewards that are missing, and what a baseline may not change."""

import itertools

import numpy as np
import pytest

from qrpo_jax import advantages

K, T = 7, 11


def rewards_with_holes(seed, prompts=13, n=5):
    """[P, n], about a quarter of it NaN; the first prompt has none at all, the second equal ones."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(prompts, n))
    rewards[rng.random(rewards.shape) < 0.25] = np.nan
    rewards[0], rewards[1] = np.nan, 0.1
    return rewards


def tokens(seed, width=T):
    """Rewards [K], log π_old, log π_ref and values [K, T], with garbage beyond the lengths [K]."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, K)
    lengths[0] = width
    return rng.normal(size=K), *rng.normal(size=(3, K, width)), lengths


@pytest.mark.parametrize("scale", advantages.SCALES)
def test_group_advantages_are_those_of_each_group_without_its_missing_rewards(scale):
    rewards = rewards_with_holes(2)
    got = advantages.group_normalised(rewards, scale=scale)
    for row, found in zip(rewards, got, strict=True):
        known = [r for r in row if r == r]
        mean = sum(known) / max(len(known), 1)
        std = (sum((r - mean) ** 2 for r in known) / max(len(known), 1)) ** 0.5
        divisor = std if scale == "std" and len(set(known)) > 1 else 1.0
        want = [(r - mean) / divisor if r == r and len(set(known)) > 1 else 0.0 * r for r in row]
        np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-15)
    signal = advantages.has_signal(rewards)
    assert not signal[:2].any() and signal[2:].sum() > 5
    np.testing.assert_array_equal(np.nan_to_num(got[~signal]), 0)
    if scale == "std":
        np.testing.assert_allclose(np.nanmean(got[signal] ** 2, 1), 1, rtol=1e-12)


def test_equal_rewards_have_advantages_of_exactly_zero():
    """The mean of three times 0.1 is not 0.1, and its std is not 0."""
    rewards = np.full((1, 3), 0.1)
    assert rewards.mean() != 0.1 and rewards.std() != 0
    for got in (advantages.group_normalised(rewards), advantages.leave_one_out(rewards)):
        assert (got == 0).all(), got


def test_leave_one_out_is_the_reward_over_the_mean_of_the_others():
    rewards = rewards_with_holes(3)
    got = advantages.leave_one_out(rewards)
    for p, i in np.ndindex(rewards.shape):
        others = [r for j, r in enumerate(rewards[p]) if j != i and r == r]
        want = rewards[p, i] - sum(others) / len(others) if others else 0.0 * rewards[p, i]
        np.testing.assert_allclose(got[p, i], want, rtol=1e-12, atol=1e-15, err_msg=str((p, i, rewards[p])))


def test_a_missing_reward_changes_nothing_for_the_others():
    whole = np.random.default_rng(5).normal(size=(3, 5))
    holed = np.insert(whole, 2, np.nan, axis=1)
    for function in (advantages.group_normalised, advantages.leave_one_out):
        got = function(holed)
        assert np.isnan(got[:, 2]).all()
        np.testing.assert_allclose(np.delete(got, 2, 1), function(whole), rtol=1e-13)


def softmax_table(seed, size):
    """Probabilities, and ∇ log π of each completion with respect to the logits, [size, size]."""
    logits = np.random.default_rng(seed).normal(size=size)
    policy = np.exp(logits) / np.exp(logits).sum()
    return policy, np.eye(size) - policy


def expected_gradient(estimate, policy, scores, rewards, n):
    """E of the gradient estimate over all groups of n completions, by enumeration."""
    mean = np.zeros(len(policy))
    for group in itertools.product(range(len(policy)), repeat=n):
        drawn = list(group)
        mean += policy[drawn].prod() * (estimate(rewards[drawn])[:, None] * scores[drawn]).mean(0)
    return mean


def test_the_leave_one_out_baseline_leaves_the_expected_gradient_unchanged():
    """Exact, over all groups; the mean of the whole group, which contains the completion, shrinks it by (n - 1) / n."""
    policy, scores = softmax_table(7, 7)
    rewards = np.random.default_rng(11).normal(size=7)
    exact = scores.T @ (policy * rewards)
    for n in (2, 3):
        arguments = policy, scores, rewards, n
        plain = expected_gradient(lambda r: r, *arguments)
        left_out = expected_gradient(lambda r: advantages.leave_one_out(r[None])[0], *arguments)
        centred = expected_gradient(lambda r: advantages.group_normalised(r[None], scale="none")[0], *arguments)
        np.testing.assert_allclose(plain, exact, atol=1e-14)
        np.testing.assert_allclose(left_out, exact, atol=1e-14)
        np.testing.assert_allclose(centred, exact * (n - 1) / n, atol=1e-14)


def test_the_leave_one_out_baseline_lowers_the_variance():
    policy, scores = softmax_table(13, 7)
    rewards = 3 + np.random.default_rng(17).normal(size=7)
    squares = policy, scores**2, rewards, 3
    plain = expected_gradient(lambda r: r**2, *squares).sum()
    left_out = expected_gradient(lambda r: advantages.leave_one_out(r[None])[0] ** 2, *squares).sum()
    assert left_out < plain / 2, (left_out, plain)


def test_token_rewards_add_up_to_the_reward_minus_the_kl_term():
    reward, old, reference, _, lengths = tokens(19)
    got = advantages.token_rewards(reward, old, reference, lengths, beta=0.3)
    for k, length in enumerate(lengths):
        log_ratio = (old - reference)[k, :length]
        np.testing.assert_allclose(got[k].sum(), reward[k] - 0.3 * log_ratio.sum(), rtol=1e-12)
        np.testing.assert_allclose(got[k, : length - 1], -0.3 * log_ratio[:-1], rtol=1e-12)
        assert (got[k, length:] == 0).all()


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.95), (0.0, 0.5)])
def test_advantages_are_the_sums_of_their_definitions(discount, gae_lambda):
    reward, old, reference, value, lengths = tokens(23)
    each = advantages.token_rewards(reward, old, reference, lengths, beta=0.2)
    sums = advantages.returns(each, lengths, discount=discount)
    got, target = advantages.gae(each, value, lengths, discount=discount, gae_lambda=gae_lambda)
    for k, length in enumerate(lengths):
        v = [*value[k, :length], 0.0]
        for t in range(length):
            rest = range(t, length)
            np.testing.assert_allclose(sums[k, t], sum(discount ** (i - t) * each[k, i] for i in rest), atol=1e-12)
            delta = [each[k, i] + discount * v[i + 1] - v[i] for i in rest]
            want = sum((discount * gae_lambda) ** i * d for i, d in enumerate(delta))
            np.testing.assert_allclose(got[k, t], want, atol=1e-12)
        assert (got[k, length:] == 0).all() and (target[k, length:] == 0).all() and (sums[k, length:] == 0).all()
        np.testing.assert_allclose(target[k, :length], got[k, :length] + value[k, :length], rtol=1e-12)


def test_without_values_and_discounts_the_advantage_is_the_return():
    reward, old, reference, value, lengths = tokens(29)
    each = advantages.token_rewards(reward, old, reference, lengths, beta=0.2)
    got, target = advantages.gae(each, 0 * value, lengths, discount=1.0, gae_lambda=1.0)
    np.testing.assert_array_equal(got, advantages.returns(each, lengths))
    np.testing.assert_array_equal(target, got)


def test_values_shift_advantages_at_lambda_one_and_leave_their_targets():
    """Σ δ telescopes: A_t = G_t - V_t for any values."""
    reward, old, reference, value, lengths = tokens(31)
    each = advantages.token_rewards(reward, old, reference, lengths, beta=0.2)
    _, target = advantages.gae(each, value, lengths, discount=1.0, gae_lambda=1.0)
    np.testing.assert_allclose(target, advantages.returns(each, lengths), atol=1e-12)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_tokens_have_unit_std_and_completions_without_reward_stay_out(shift_mean):
    reward, old, reference, _, lengths = tokens(37)
    reward[2] = np.nan
    sums = advantages.returns(advantages.token_rewards(reward, old, reference, lengths, beta=0.2), lengths)
    got = advantages.whiten(sums, lengths, shift_mean=shift_mean)
    here = advantages.inside(lengths, T)
    known = here.copy()
    known[2] = False
    assert np.isnan(got[2][here[2]]).all() and (got[~here] == 0).all()
    mean = 0.0 if shift_mean else sums[known].mean()
    np.testing.assert_allclose([got[known].mean(), got[known].std()], [mean, 1], atol=1e-12)
    without = advantages.whiten(np.delete(sums, 2, 0), np.delete(lengths, 2), shift_mean=shift_mean)
    np.testing.assert_allclose(np.delete(got, 2, 0), without, rtol=1e-12, atol=1e-14)


def test_whitening_equal_values_divides_by_nothing():
    lengths = np.asarray([2, 3])
    values = np.where(advantages.inside(lengths, 3), 0.1, 7.0)
    np.testing.assert_allclose(advantages.whiten(values, lengths), 0, atol=1e-15)
    np.testing.assert_allclose(advantages.whiten(values, lengths, shift_mean=False)[advantages.inside(lengths, 3)], 0.1)
    assert np.isnan(advantages.whiten(np.full((2, 3), np.nan), [3, 0])[0]).all()


def test_the_adaptive_strength_holds_the_kl_at_its_target():
    """A policy whose KL is 1 / β: β must end where that is the target."""
    beta, target = 1.0, 5.0
    for _ in range(400):
        beta = advantages.adapted_beta(beta, 1 / beta, target)
    np.testing.assert_allclose(1 / beta, target, rtol=1e-6)
    assert advantages.adapted_beta(2.0, 1e9, target) == pytest.approx(2.04)
    assert advantages.adapted_beta(2.0, 0.0, target) == pytest.approx(1.96)


def test_an_unknown_scale_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="'var'; allowed: std, none"):
        advantages.group_normalised([[1.0, 2.0]], scale="var")
