"""Steps on numbers of tokens: split batches, devices and masks change nothing, and figures are means over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.data.per_token import PerToken
from qrpo_jax.model import value_head
from qrpo_jax.training.objective import LogProbs
from qrpo_jax.training.objectives import make_objective
from qrpo_jax.training.state import initial_state
from qrpo_jax.training.step import BatchLoss, LogProbSettings, batch_log_probs, make_step, tokens_in_use
from qrpo_jax.training.token_diagnostics import token_diagnostics
from tests.helpers import tiny
from tests.helpers.row_log_probs import row_log_probs
from tests.helpers.samples import sampled
from tests.helpers.steps import (
    BATCH,
    OPTIMIZER,
    OPTIONS,
    assert_same_update,
    moments,
    plain,
    update,
    with_tokens,
)
from tests.helpers.token_cases import TokenCase, by_hand, token_case
from tests.helpers.value_heads import with_head

TOKENS = with_tokens(BATCH)
SEGMENTS = np.asarray(BATCH.layout.segments_BxL)
WEIGHT = np.where(BATCH.present_BxS, BATCH.completions_BxS.weight, 0)
# Positions of completions with a weight; there are others.
USED = (SEGMENTS > 0) & (np.take_along_axis(WEIGHT, np.maximum(SEGMENTS - 1, 0), 1) > 0)
NAMES = "grpo", "rloo"  # ratios of tokens, and of completions
FIGURES = ("ratio_mean", "kl_to_old", "kl_to_reference", "entropy_estimate")


@pytest.fixture(scope="module")
def whole():
    """The update of the whole batch on one device, for each objective."""
    return {name: update(TOKENS, name) for name in NAMES}


def test_some_tokens_are_in_use_and_some_are_not():
    assert USED.any() and ((SEGMENTS > 0) & ~USED).any() and (SEGMENTS == 0).any()


@pytest.mark.parametrize(("name", "microbatches"), sampled([("grpo", 2), ("grpo", 4), ("rloo", 2), ("rloo", 8)]))
def test_microbatches_change_neither_the_update_nor_the_figures_of_tokens(name, microbatches, whole):
    assert_same_update(update(TOKENS, name, microbatches=microbatches), whole[name], reordered=True)


@pytest.mark.parametrize(("name", "mesh_sizes"), [("grpo", (2, 2, 2)), ("rloo", (8, 1, 1))])
def test_eight_devices_are_one_device(name, mesh_sizes, whole):
    assert_same_update(update(TOKENS, name, mesh_sizes=mesh_sizes), whole[name])


def test_microbatches_on_eight_devices_are_one_device(whole):
    assert_same_update(update(TOKENS, "grpo", microbatches=2, mesh_sizes=(2, 2, 2)), whole["grpo"], reordered=True)


@pytest.mark.parametrize("name", NAMES)
def test_nan_at_tokens_without_a_part_in_the_loss_does_not_leak(name, whole):
    filled = PerToken(*(np.where(USED, x, np.nan).astype(np.float32) for x in TOKENS.per_token_BxL))
    (new, metrics), (want, others) = update(TOKENS._replace(per_token_BxL=filled), name), whole[name]
    tiny.assert_trees_equal(new.parameters, want.parameters)
    for figure in ("loss", "clip_share", *FIGURES):
        assert metrics[figure] == others[figure], figure


def test_a_policy_far_from_zero_at_unused_tokens_does_not_leak():
    """exp(log π_ref - log π_θ) of a log-prob of -200 is infinite where log π_ref is unknown and counts as 0."""
    t = PerToken(*(jnp.asarray(x) for x in TOKENS.per_token_BxL))
    batch = TOKENS._replace(per_token_BxL=t)
    objective = make_objective("grpo", **OPTIONS["grpo"])
    start = jnp.where(USED, t.old_log_prob, -200.0)

    def total(token):
        found = tokens_in_use(batch, LogProbs(jnp.zeros(WEIGHT.shape), token, jnp.asarray(SEGMENTS)))
        c = batch.completions_BxS._replace(weight=jnp.asarray(WEIGHT))
        return jnp.sum(jnp.multiply(*objective.loss(found.log_probs, c, found.numbers)))

    value, gradient = jax.value_and_grad(total)(start)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~USED], 0)


def hand_case():
    """The batch as `by_hand` reads it, with the policy's log-probs."""
    log_prob_BxL = np.asarray(row_log_probs(tiny.GRAPH, tiny.parameters(), *BATCH[:3]), np.float64)
    t = PerToken(*(np.asarray(x, np.float64) for x in TOKENS.per_token_BxL))
    return TokenCase(log_prob_BxL, SEGMENTS, 0 * log_prob_BxL, BATCH.completions_BxS.length, WEIGHT, t)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_figures_are_means_over_the_batch(name, whole):
    case, metrics = hand_case(), whole[name][1]
    numerator, denominator = by_hand(case, name, OPTIONS[name])
    np.testing.assert_allclose(metrics["loss"], numerator / denominator, rtol=1e-4)
    new, old, reference = (x[USED] for x in (case.token, case.t.old_log_prob, case.t.reference_log_prob))
    ratio = np.exp(new - old)
    for figure, values in {
        "ratio_mean": ratio,
        "kl_to_old": ratio - 1 - (new - old),
        "kl_to_reference": np.exp(reference - new) - 1 - (reference - new),
        "entropy_estimate": -old,
    }.items():
        np.testing.assert_allclose(metrics[figure], values.mean(), rtol=1e-4, err_msg=figure)
    difference = np.where(USED, case.token - case.t.old_log_prob, 0.0)
    if name == "rloo":
        for b, s in np.argwhere(WEIGHT > 0):
            own = SEGMENTS[b] == s + 1
            difference[b, own] = difference[b, own].sum()
    ratio, up = np.exp(difference[USED]), case.t.advantage[USED] > 0
    clipped = np.where(up, ratio > 1 + OPTIONS[name]["clip_high"], ratio < 1 - OPTIONS[name]["clip_low"])
    np.testing.assert_allclose(metrics["clip_share"], clipped.mean(), rtol=1e-6)
    assert 0.05 < clipped.mean() < 0.95, clipped.mean()


def test_an_objective_of_completions_on_sampled_tokens_has_their_figures_and_the_same_update():
    got, want = update(TOKENS), plain()
    assert set(got[1]) - set(want[1]) == set(FIGURES)
    assert_same_update((got[0], {name: got[1][name] for name in want[1]}), want)


def test_the_error_of_values_is_a_mean_over_tokens_and_nan_at_others_does_not_leak():
    case = token_case(41)
    log_probs, c, t = case.arguments()
    batch = tiny.batch(tiny.examples(3))._replace(
        present_BxS=c.length > 0, completions_BxS=c._replace(weight=c.weight.at[0, 0].set(0.0)), per_token_BxL=t
    )
    used = (case.segment > 0) & ~((case.segment == 1) & (np.arange(3) == 0)[:, None])
    log_probs = log_probs._replace(value=jnp.where(used, log_probs.value, jnp.nan))
    found = tokens_in_use(batch, log_probs)
    np.testing.assert_array_equal(found.used_BxL, used)
    objective = make_objective("ppo", **OPTIONS["ppo"])
    sums = token_diagnostics(found.log_probs, batch.completions_BxS, found.numbers, found.used_BxL, objective)
    error = ((case.value - case.t.target_value)[used] ** 2).sum()
    np.testing.assert_allclose(sums["value_error"], [error, used.sum()], rtol=1e-5)
    loss, weight = objective.loss(found.log_probs, batch.completions_BxS, found.numbers)
    assert np.isfinite(loss).all() and weight[0, 0] == 0


def ppo_update(microbatches):
    """One step of the tiny policy with a filled value head."""
    objective, settings = make_objective("ppo", **OPTIONS["ppo"]), LogProbSettings(vocab_chunk=7)
    step = make_step(tiny.GRAPH, objective, OPTIMIZER, log_prob_settings=settings, microbatches=microbatches)
    return jax.device_get(jax.jit(step)(initial_state(with_head(), OPTIMIZER, seed=0), TOKENS))


def test_a_step_of_ppo_trains_head_and_policy_on_the_loss_computed_by_hand():
    state, metrics = one = ppo_update(1)
    of_policy, of_head = value_head.split(moments(state))
    assert tiny.largest(of_policy) > 1e-3 and tiny.largest(of_head) > 1e-3
    assert_same_update(ppo_update(2), one, reordered=True)
    value = np.asarray(batch_log_probs(tiny.GRAPH, with_head(), BATCH, LogProbSettings()).value, np.float64)
    case = hand_case()._replace(value=value)
    numerator, denominator = by_hand(case, "ppo", OPTIONS["ppo"])
    np.testing.assert_allclose(metrics["loss"], numerator / denominator, rtol=1e-4)
    error = (value - case.t.target_value)[USED] ** 2
    np.testing.assert_allclose(metrics["value_error"], error.mean(), rtol=1e-4)


def test_the_reference_on_the_fly_gives_its_log_probs_to_tokens_and_completions():
    unknown = TOKENS.per_token_BxL._replace(reference_log_prob=np.full(SEGMENTS.shape, np.nan, np.float32))
    objective = make_objective("grpo", **OPTIONS["grpo"])
    loss = BatchLoss(tiny.GRAPH, objective, LogProbSettings(), reference_graph=tiny.GRAPH)
    batch = jax.jit(loss.with_reference)(tiny.parameters(), TOKENS._replace(per_token_BxL=unknown))
    want = row_log_probs(tiny.GRAPH, tiny.parameters(), *BATCH[:3])
    np.testing.assert_allclose(batch.per_token_BxL.reference_log_prob, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        batch.completions_BxS.reference_log_prob.sum(), np.asarray(want)[SEGMENTS > 0].sum(), rtol=1e-5
    )


def test_a_batch_without_numbers_of_tokens_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="per_token_BxL"):
        update(BATCH, "grpo")
