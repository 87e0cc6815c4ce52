"""Objectives of tokens against float64 computations by hand, finite differences and torch; what clipping does."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.training.objectives import OBJECTIVES, having, make_objective
from tests.helpers.token_cases import OPTIONS, VARIANTS, B, L, S, by_hand, token_case

IDS = [f"{name}-{'-'.join(map(str, change.values())) or 'plain'}" for name, change in VARIANTS]
every_variant = pytest.mark.parametrize(("name", "change"), VARIANTS, ids=IDS)
ONE_ADVANTAGE = "group", "leave_one_out"


def case_of(name, seed, spread=0.3):
    return token_case(seed, spread, one_advantage=OBJECTIVES[name].advantage in ONE_ADVANTAGE)


def total(objective, case, token, value):
    loss, weight = objective.loss(*case.arguments(token, value))
    return jnp.sum(loss * weight), jnp.sum(weight)


def gradients(objective, case):
    """Of Σ loss · weight with respect to the log-probs and the values of tokens."""
    return jax.grad(lambda token, value: total(objective, case, token, value)[0], (0, 1))(
        jnp.asarray(case.token), jnp.asarray(case.value)
    )


def test_every_objective_of_tokens_is_checked_with_its_options():
    assert set(OPTIONS) == set(having("tokenwise")) == {name for name, _ in VARIANTS}
    for name, options in OPTIONS.items():
        assert set(options) == set(OBJECTIVES[name].options), name
        keywords = inspect.signature(OBJECTIVES[name].clipped).parameters
        assert {p for p in keywords if keywords[p].kind == inspect.Parameter.KEYWORD_ONLY} == {"clip_low", "clip_high"}


@every_variant
@pytest.mark.parametrize("seed", [2, 3, 5])
def test_the_loss_is_that_of_the_papers_token_by_token(name, change, seed):
    options = OPTIONS[name] | change
    with jax.enable_x64(True):
        case = case_of(name, seed)
        got = total(make_objective(name, **options), case, case.token, case.value)
        np.testing.assert_allclose(got, by_hand(case, name, options), rtol=1e-12)


@every_variant
def test_gradients_are_finite_differences_of_the_computation_by_hand(name, change):
    """Central differences in float64 at every token; none of them is near a kink."""
    options, step = OPTIONS[name] | change, 1e-5
    with jax.enable_x64(True):
        case = case_of(name, 7)
        found = [np.asarray(g) for g in gradients(make_objective(name, **options), case)]
        for argument in range(2):
            want = np.zeros((B, L))
            for b, l in np.argwhere(case.segment > 0):
                ends = []
                for sign in (1, -1):
                    moved = [case.token.copy(), case.value.copy()]
                    moved[argument][b, l] += sign * step
                    ends.append(by_hand(case, name, options, *moved)[0])
                want[b, l] = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(found[argument], want, rtol=1e-6, atol=1e-8)
            assert (np.abs(want) > 1e-3).any() == (argument == 0 or name == "ppo"), want


@pytest.mark.parity
@every_variant
def test_loss_and_gradients_are_those_of_torch(name, change):
    torch = pytest.importorskip("torch")
    options = OPTIONS[name] | change
    with jax.enable_x64(True):
        for seed in (11, 13, 17):
            case = case_of(name, seed)
            objective = make_objective(name, **options)
            token, value = (torch.tensor(x, requires_grad=True) for x in (case.token, case.value))
            loss, _ = by_hand(case, name, options, token, value, torch.exp)
            loss.backward()
            np.testing.assert_allclose(total(objective, case, case.token, case.value)[0], loss.item(), rtol=1e-12)
            for got, leaf in zip(gradients(objective, case), (token, value), strict=True):
                want = np.zeros((B, L)) if leaf.grad is None else leaf.grad.numpy()
                np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)


@every_variant
def test_before_the_first_update_the_gradient_is_that_of_minus_advantage_times_log_prob(name, change):
    """At ratio 1, with the KL term and the values left out."""
    options = OPTIONS[name] | change | ({"kl_strength": 0.0} if name == "grpo" else {})
    with jax.enable_x64(True):
        case = case_of(name, 19, spread=0.0)
        objective = make_objective(name, **options)
        found, _ = gradients(objective, case)
        per_token = case.t.correction * case.t.advantage
        want = np.zeros((B, L))
        for b, l in np.argwhere(case.segment > 0):
            s = case.segment[b, l] - 1
            here = case.segment[b] == s + 1
            if name == "rloo":
                product = min(np.prod(case.t.correction[b, here]), options["correction_cap"] or np.inf)
                want[b, l] = -product * case.t.advantage[b, l]
            else:
                divisor = {"completion": here.sum(), "constant": 13}.get(options.get("token_average"), 1)
                want[b, l] = -per_token[b, l] / divisor
            want[b, l] *= case.weight[b, s]
        np.testing.assert_allclose(found, want, rtol=1e-12)


@every_variant
def test_clipped_tokens_have_no_gradient_and_all_others_have(name, change):
    options = OPTIONS[name] | change | ({"kl_strength": 0.0} if name == "grpo" else {})
    with jax.enable_x64(True):
        case = case_of(name, 53, spread=0.4)
        objective = make_objective(name, **options)
        clipped = np.asarray(objective.clipped(*case.arguments()))
        found, _ = gradients(objective, case)
        here = case.segment > 0
        assert not clipped[~here].any() and 0.1 < clipped[here].mean() < 0.9, clipped[here].mean()
        np.testing.assert_array_equal(np.asarray(found)[here] == 0, clipped[here])
        # By the rule itself, with the method's own ratio.
        difference = case.token - case.t.old_log_prob
        if name == "rloo":
            for b, s in np.argwhere(case.length > 0):
                own = case.segment[b] == s + 1
                difference[b, own] = difference[b, own].sum()
        ratio, advantage = np.exp(difference), case.t.advantage
        rule = np.where(advantage > 0, ratio > 1 + options["clip_high"], ratio < 1 - options["clip_low"]) & here
        np.testing.assert_array_equal(clipped, rule)


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_and_weights_jit_and_vmap_over_rows(name):
    with jax.enable_x64(True):
        case = case_of(name, 29)
        objective = make_objective(name, **OPTIONS[name])
        loss, weight = jax.jit(objective.loss)(*case.arguments())
        assert loss.shape == weight.shape == (B, S)
        assert (np.asarray(weight)[case.length == 0] == 0).all()
        for got, want in zip(jax.vmap(objective.loss)(*case.arguments()), (loss, weight), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)
        rows = jax.vmap(objective.clipped)(*case.arguments())
        np.testing.assert_array_equal(rows, objective.clipped(*case.arguments()))


def test_the_three_averages_of_grpo_weigh_completions_differently():
    """With a loss of 1 a token: 1 for each completion, 1 for each token, length / limit for each completion."""
    case = token_case(31, 0.0)
    ones = case.t._replace(advantage=-1.0 * (case.segment > 0), correction=1.0 * (case.segment > 0))
    case = case._replace(t=ones, weight=1.0 * (case.length > 0))
    sums = {}
    for average in ("completion", "token", "constant"):
        objective = make_objective("grpo", **(OPTIONS["grpo"] | {"kl_strength": 0.0, "token_average": average}))
        sums[average] = [float(x) for x in total(objective, case, case.token, case.value)]
    count, tokens = (case.length > 0).sum(), case.length.sum()
    np.testing.assert_allclose(sums["completion"], [count, count], rtol=1e-6)
    np.testing.assert_allclose(sums["token"], [tokens, tokens], rtol=1e-6)
    np.testing.assert_allclose(sums["constant"], [tokens / 13, count], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("grpo", {"kl_strength": -0.1}, "kl_strength is -0.1; it must be at least 0"),
        ("grpo", {"clip_low": 0.0}, "clip_low is 0.0; it must be above 0, at most 1"),
        ("grpo", {"clip_low": 1.1}, "clip_low is 1.1; it must be above 0, at most 1"),
        ("rloo", {"clip_high": 0.0}, "clip_high is 0.0; it must be above 0"),
        ("rloo", {"correction_cap": float("nan")}, "correction_cap is nan; it must be at least 0"),
        ("grpo", {"token_average": "mean"}, "token_average is 'mean'; allowed: completion, token, constant"),
        ("grpo", {"token_limit": 0}, "token_limit is 0; it must be at least 1"),
        ("ppo", {"value_coefficient": -1.0}, "value_coefficient is -1.0; it must be at least 0"),
        ("ppo", {"value_clip": -1.0}, "value_clip is -1.0; it must be at least 0"),
    ],
)
def test_impossible_options_are_refused_in_one_line_about_an_argument(name, change, message):
    with pytest.raises(UserError, match=message) as caught:
        make_objective(name, **(OPTIONS[name] | change))
    assert caught.value.about == tuple(change)


def test_ppo_without_a_value_head_is_a_mistake_of_the_caller():
    log_probs, c, t = token_case(37).arguments()
    with pytest.raises(ValueError, match="value head"):
        make_objective("ppo", **OPTIONS["ppo"]).loss(log_probs._replace(value=None), c, t)
