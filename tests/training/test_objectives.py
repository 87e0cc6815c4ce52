"""Objectives in a batch: pairs in neighbouring slots, weights, and the losses of `losses` underneath."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import losses, transforms
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.errors import UserError
from qrpo_jax.training.objectives import OBJECTIVES, Length, LogProbs, having, make_objective

VALUES = {"beta": 0.3, "transform": "identity", "loss": "mse", "gamma_beta_ratio": 0.4}
OPTIONS = {
    name: {option: VALUES[option] for option in record.options}
    for name, record in OBJECTIVES.items()
    if not record.tokenwise  # see test_token_objectives
}


def completions(shape=(3, 10), seed=0):
    """Log-probs of completions, of which the objectives here use no tokens, and the numbers beside them."""
    rng = np.random.default_rng(seed)
    log_prob = jnp.asarray(-rng.uniform(2, 20, shape))
    c = PerCompletion(
        reference_log_prob=jnp.asarray(-rng.uniform(2, 20, shape)),
        reward=jnp.asarray(rng.normal(size=shape)),
        quantile=jnp.asarray(rng.uniform(0.1, 0.9, shape)),
        log_z=jnp.asarray(rng.uniform(0.5, 2, shape)),
        reward_scale=jnp.asarray(rng.uniform(0.5, 2, shape)),
        length=jnp.asarray(rng.integers(1, 17, shape)),
        weight=jnp.ones(shape, jnp.float32),
        ties=jnp.zeros(shape),
        references=jnp.full(shape, 7),
        high=jnp.ones(shape, bool),
    )
    return of_completions(log_prob), c


def of_completions(log_prob):
    """Log-probs where one token has all of its completion's."""
    return LogProbs(log_prob, log_prob, jnp.broadcast_to(1 + jnp.arange(log_prob.shape[-1]), log_prob.shape))


def sides(log_probs, c):
    """(log π, numbers) of chosen and of rejected completions."""
    return [(log_probs.completion[:, i::2], jax.tree.map(lambda x, i=i: x[:, i::2], c)) for i in (0, 1)]


def direct(name, log_probs, c):
    """The loss of pairs by `losses`."""
    (policy_w, w), (policy_l, l) = sides(log_probs, c)
    if name == "simpo":
        return losses.simpo(policy_w, policy_l, w.length, l.length, **OPTIONS[name])
    rewards = (w.reward, l.reward) if name == "rebel" else ()
    function = {"dpo": losses.dpo, "rebel": losses.rebel}[name]
    return function(policy_w, policy_l, w.reference_log_prob, l.reference_log_prob, *rewards, **OPTIONS[name])


@pytest.mark.parametrize("name", having("pairwise"))
def test_pairs_in_neighbouring_slots_equal_the_loss_of_pairs(name):
    log_probs, c = completions()
    loss, weight = make_objective(name, **OPTIONS[name])(log_probs, c)
    np.testing.assert_allclose(loss[:, 0::2], direct(name, log_probs, c), rtol=1e-6)
    np.testing.assert_array_equal(weight, np.tile([1.0, 0.0], (3, 5)))


@pytest.mark.parametrize("name", having("pairwise"))
@pytest.mark.parametrize("side", [0, 1])
def test_a_pair_with_a_side_left_out_weighs_nothing(name, side):
    log_probs, c = completions()
    c = c._replace(weight=c.weight.at[1, 4 + side].set(0))
    _, weight = make_objective(name, **OPTIONS[name])(log_probs, c)
    expected = np.tile([1.0, 0.0], (3, 5))
    expected[1, 4] = 0
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
@pytest.mark.parametrize("loss", losses.REGRESSION)
def test_qrpo_is_the_pointwise_loss_of_every_completion(transform, loss):
    log_probs, c = completions()
    got, weight = make_objective("qrpo", beta=0.3, transform=transform, loss=loss)(log_probs, c)
    chosen = transforms.get(transform, reward_scale=c.reward_scale)
    how = {"beta": 0.3, "transform": chosen, "loss": loss}
    want = losses.qrpo(log_probs.completion, c.reference_log_prob, c.quantile, **how, log_z=c.log_z)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(weight, c.weight)


@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
def test_qrpo_where_policy_and_reference_agree_is_the_mean_squared_target(transform):
    """With the population's log Z in the batch, as the transform itself gives it."""
    log_probs, c = completions()
    beta = 1.3  # inside the domain of every transform
    chosen = transforms.get(transform, reward_scale=c.reward_scale)
    c = c._replace(reference_log_prob=log_probs.completion, log_z=jnp.broadcast_to(chosen.log_z(beta), c.reward.shape))
    loss, weight = make_objective("qrpo", beta=beta, transform=transform, loss="mse")(log_probs, c)
    target = losses.calibrated_target(c.quantile, beta, chosen)
    np.testing.assert_allclose((loss * weight).sum() / weight.sum(), jnp.mean(target**2), rtol=1e-6)


def test_sft_is_the_mean_over_tokens():
    log_probs, c = completions()
    c = c._replace(weight=c.weight.at[:, 3].set(0))
    loss, weight = make_objective("sft")(log_probs, c)
    used = np.asarray(c.weight) > 0
    mean = -np.asarray(log_probs.completion)[used].sum() / np.asarray(c.length)[used].sum()
    np.testing.assert_allclose((loss * weight).sum() / weight.sum(), mean, rtol=1e-6)


@pytest.mark.parametrize("transform", ["identity", "scaled-normal-icdf"])
def test_length_normalised_qrpo_regresses_each_completion_at_its_own_beta(transform):
    (log_probs, c), beta, cap = completions(), 1.7, 0.4
    betas = np.minimum(beta / np.asarray(c.length), cap)
    assert (betas == cap).any() and (betas < cap).any()
    got, _ = make_objective("qrpo", Length(True, cap), beta=beta, transform=transform, loss="mse")(log_probs, c)
    f = np.asarray(transforms.get(transform, c.reward_scale).apply(c.quantile))
    ratio = np.asarray(log_probs.completion) - np.asarray(c.reference_log_prob)
    np.testing.assert_allclose(got, (f - betas * np.asarray(c.log_z) - betas * ratio) ** 2, rtol=1e-5)


def test_length_normalised_dpo_and_rebel_compare_mean_log_ratios():
    (log_probs, c), beta = completions(), 0.9
    (policy_w, w), (policy_l, l) = sides(log_probs, c)
    margin = (policy_w - w.reference_log_prob) / w.length - (policy_l - l.reference_log_prob) / l.length
    dpo, _ = make_objective("dpo", Length(True), beta=beta)(log_probs, c)
    np.testing.assert_allclose(dpo[:, 0::2], np.log1p(np.exp(-beta * margin)), rtol=1e-5)
    rebel, _ = make_objective("rebel", Length(True), beta=beta)(log_probs, c)
    np.testing.assert_allclose(rebel[:, 0::2], ((w.reward - l.reward) / beta - margin) ** 2, rtol=1e-5)


@pytest.mark.parametrize("name", having("length_normalisable"))
def test_where_the_cap_decides_every_completion_has_beta_cap(name):
    """REBEL's loss is in units of beta squared, so its residual is compared times beta."""
    (log_probs, c), cap = completions(), 0.05
    beta = 3.0
    capped, _ = make_objective(name, Length(True, cap), **(OPTIONS[name] | {"beta": beta}))(log_probs, c)
    plain, _ = make_objective(name, **(OPTIONS[name] | {"beta": cap}))(log_probs, c)
    factor = (cap / beta) ** 2 if name == "rebel" else 1.0
    np.testing.assert_allclose(capped, plain * factor, rtol=1e-5)


@pytest.mark.parametrize("name", having("length_divisible"))
def test_a_loss_over_length_is_the_loss_divided_by_the_tokens(name):
    log_probs, c = completions()
    (plain, weight), (divided, same) = (
        make_objective(name, Length(divides_loss=divides), **OPTIONS[name])(log_probs, c) for divides in (False, True)
    )
    if name == "sft":  # a mean over tokens becomes a mean over completions of their means
        np.testing.assert_allclose(divided, plain, rtol=1e-6)
        np.testing.assert_allclose(same, c.weight)
        np.testing.assert_allclose(weight, c.weight * c.length)
        return
    length = np.asarray(c.length, float)
    if name in having("pairwise"):
        length = np.repeat((length[:, 0::2] + length[:, 1::2]) / 2, 2, axis=1)
    np.testing.assert_allclose(divided, np.asarray(plain) / length, rtol=1e-6)
    np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_and_weights_have_the_shape_of_the_inputs_and_jit_vmap_grad(name):
    log_probs, c = completions((2, 3, 4))
    objective = make_objective(name, **OPTIONS[name])
    loss, weight = jax.jit(objective)(log_probs, c)
    assert loss.shape == weight.shape == (2, 3, 4)
    for got, want in zip(jax.vmap(jax.vmap(objective))(log_probs, c), (loss, weight), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(jnp.multiply(*objective(of_completions(x), c))))(log_probs.completion)
    assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_along_the_gradient_favours_the_better_completion(name):
    """From π = π_ref every preference objective raises the better one's log-prob relative to the other's."""
    log_probs, c = completions((1, 2))
    reward, quantile = jnp.asarray([[2.0, -2.0]]), jnp.asarray([[0.95, 0.05]])
    c = c._replace(reference_log_prob=log_probs.completion, reward=reward, quantile=quantile)
    objective = make_objective(name, **OPTIONS[name])
    gradient = jax.grad(lambda x: jnp.sum(jnp.multiply(*objective(of_completions(x), c))))(log_probs.completion)
    if name == "sft":
        assert (gradient < 0).all()
    else:
        assert gradient[0, 0] < gradient[0, 1], gradient


@pytest.mark.parametrize(
    "name, change, message, about",
    [
        ("ipo", {}, "'ipo'; allowed: qrpo, dpo", "name"),
        ("qrpo", {"transform": "cube"}, "'cube'; allowed: ", "transform"),
        ("qrpo", {"loss": "huber"}, "'huber'; allowed: mse, mae", "loss"),
        ("qrpo", {"beta": 0.0}, "beta is 0.0", "beta"),
        ("dpo", {"beta": -1.0}, "beta is -1.0", "beta"),
        ("rebel", {"beta": float("nan")}, "beta is nan", "beta"),
        ("qrpo", {"transform": "threshold(2)"}, "threshold is 2; it must lie inside", "transform"),
        ("qrpo", {"length": Length(normalised=True, cap=0.0)}, "cap on beta is 0.0", "cap"),
        (
            "simpo",
            {"length": Length(normalised=True)},
            "'simpo' has no use for length_normalised; only qrpo, dpo, rebel",
            "normalised",
        ),
        ("simpo", {"length": Length(divides_loss=True)}, "'simpo' has no use for loss_over_length", "divides_loss"),
        ("sft", {"length": Length(normalised=True)}, "'sft' has no use for length_normalised", "normalised"),
    ],
)
def test_impossible_objectives_are_refused_in_one_line_about_an_argument(name, change, message, about):
    options = dict(OPTIONS[name]) if name in OPTIONS else {}
    with pytest.raises(UserError, match=message) as caught:
        make_objective(name, **(options | change))
    assert "\n" not in str(caught.value) and "config" not in str(caught.value)
    assert caught.value.about == (about,)


def test_options_of_the_table_are_those_that_the_losses_take():
    for name, objective in OBJECTIVES.items():
        keywords = {p.name for p in inspect.signature(objective.loss).parameters.values() if p.kind == p.KEYWORD_ONLY}
        length = {"length"} if objective.length_divisible or objective.length_normalisable else set()
        assert keywords == {*objective.options} | length, name


def test_the_facts_of_an_objective_go_together():
    for name, record in OBJECTIVES.items():
        assert record.on_policy_only == record.tokenwise == (record.advantage is not None), name
        assert not (record.tokenwise and (record.pairwise or record.ranked)), name
        assert record.needs_value == (record.advantage == "gae"), name
        # The KL is in the reward or in the loss, and in one of them only.
        assert not (record.kl_in_reward and {"beta", "kl_strength"} & {*record.options}), name
    assert having("kl_in_reward") == ("rloo", "reinforce_pp", "ppo")


def test_no_transform_is_imported_or_parsed_while_tracing():
    """`make_objective` parses the name; a trace meets the transform itself."""
    log_probs, c = completions()
    objective = make_objective("qrpo", beta=0.3, transform="power(0.7)", loss="mse")
    before = transforms.parse.cache_info()
    jax.eval_shape(objective, log_probs, c)
    assert transforms.parse.cache_info() == before
