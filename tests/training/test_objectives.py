"""Objectives in a batch: pairs in neighbouring slots, weights, and the floor-0 losses underneath."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import losses, transforms
from qrpo_jax.training import objectives
from qrpo_jax.training.objectives import Completions, Length, make_objective

OPTIONS = {
    "qrpo": {"beta": 0.3, "transform": "identity", "loss": "mse"},
    "dpo": {"beta": 0.3},
    "rebel": {"beta": 0.3},
    "simpo": {"beta": 2.0, "gamma_beta_ratio": 0.4},
    "sft": {},
}


def completions(shape=(3, 10), seed=0):
    rng = np.random.default_rng(seed)
    return Completions(
        log_prob=jnp.asarray(-rng.uniform(2, 20, shape)),
        reference_log_prob=jnp.asarray(-rng.uniform(2, 20, shape)),
        reward=jnp.asarray(rng.normal(size=shape)),
        quantile=jnp.asarray(rng.uniform(0.1, 0.9, shape)),
        log_z=jnp.asarray(rng.uniform(0.5, 2, shape)),
        reward_scale=jnp.asarray(rng.uniform(0.5, 2, shape)),
        length=jnp.asarray(rng.integers(1, 17, shape)),
        weight=jnp.ones(shape, jnp.float32),
    )


def direct(name, w, l):
    """The floor-0 loss of pairs, by hand."""
    if name == "simpo":
        return losses.simpo(w.log_prob, l.log_prob, w.length, l.length, **OPTIONS[name])
    rewards = (w.reward, l.reward) if name == "rebel" else ()
    function = {"dpo": losses.dpo, "rebel": losses.rebel}[name]
    return function(w.log_prob, l.log_prob, w.reference_log_prob, l.reference_log_prob, *rewards, **OPTIONS[name])


@pytest.mark.parametrize("name", objectives.PAIRWISE)
def test_pairs_in_neighbouring_slots_equal_the_loss_of_pairs(name):
    c = completions()
    w, l = Completions(*(x[:, 0::2] for x in c)), Completions(*(x[:, 1::2] for x in c))
    loss, weight = make_objective(name, **OPTIONS[name])(c)
    np.testing.assert_allclose(loss[:, 0::2], direct(name, w, l), rtol=1e-6)
    np.testing.assert_array_equal(weight, np.tile([1.0, 0.0], (3, 5)))


@pytest.mark.parametrize("name", objectives.PAIRWISE)
@pytest.mark.parametrize("side", [0, 1])
def test_a_pair_with_a_side_left_out_weighs_nothing(name, side):
    c = completions()
    c = c._replace(weight=c.weight.at[1, 4 + side].set(0))
    _, weight = make_objective(name, **OPTIONS[name])(c)
    expected = np.tile([1.0, 0.0], (3, 5))
    expected[1, 4] = 0
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
@pytest.mark.parametrize("loss", losses.REGRESSION)
def test_qrpo_is_the_pointwise_loss_of_every_completion(transform, loss):
    c = completions()
    got, weight = make_objective("qrpo", beta=0.3, transform=transform, loss=loss)(c)
    chosen = transforms.get(transform, reward_scale=c.reward_scale)
    how = {"beta": 0.3, "transform": chosen, "loss": loss}
    want = losses.qrpo(c.log_prob, c.reference_log_prob, c.quantile, **how, log_z=c.log_z)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(weight, c.weight)


@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
def test_qrpo_where_policy_and_reference_agree_is_the_mean_squared_target(transform):
    """With the population's log Z in the batch, as the transform itself gives it."""
    c = completions()
    beta = 1.3  # inside the domain of every transform
    chosen = transforms.get(transform, reward_scale=c.reward_scale)
    c = c._replace(reference_log_prob=c.log_prob, log_z=jnp.broadcast_to(chosen.log_z(beta), c.log_prob.shape))
    loss, weight = make_objective("qrpo", beta=beta, transform=transform, loss="mse")(c)
    target = losses.calibrated_target(c.quantile, beta, chosen)
    np.testing.assert_allclose((loss * weight).sum() / weight.sum(), jnp.mean(target**2), rtol=1e-6)


def test_sft_is_the_mean_over_tokens():
    c = completions()
    c = c._replace(weight=c.weight.at[:, 3].set(0))
    loss, weight = make_objective("sft")(c)
    used = np.asarray(c.weight) > 0
    mean = -np.asarray(c.log_prob)[used].sum() / np.asarray(c.length)[used].sum()
    np.testing.assert_allclose((loss * weight).sum() / weight.sum(), mean, rtol=1e-6)


@pytest.mark.parametrize("transform", ["identity", "scaled-normal-icdf"])
def test_length_normalised_qrpo_regresses_each_completion_at_its_own_beta(transform):
    c, beta, cap = completions(), 1.7, 0.4
    betas = np.minimum(beta / np.asarray(c.length), cap)
    assert (betas == cap).any() and (betas < cap).any()
    got, _ = make_objective("qrpo", Length(True, cap), beta=beta, transform=transform, loss="mse")(c)
    f = np.asarray(transforms.get(transform, c.reward_scale).apply(c.quantile))
    ratio = np.asarray(c.log_prob) - np.asarray(c.reference_log_prob)
    np.testing.assert_allclose(got, (f - betas * np.asarray(c.log_z) - betas * ratio) ** 2, rtol=1e-5)


def test_length_normalised_dpo_and_rebel_compare_mean_log_ratios():
    c, beta = completions(), 0.9
    w, l = (Completions(*(np.asarray(x)[:, side::2] for x in c)) for side in (0, 1))
    margin = (w.log_prob - w.reference_log_prob) / w.length - (l.log_prob - l.reference_log_prob) / l.length
    dpo, _ = make_objective("dpo", Length(True), beta=beta)(c)
    np.testing.assert_allclose(dpo[:, 0::2], np.log1p(np.exp(-beta * margin)), rtol=1e-5)
    rebel, _ = make_objective("rebel", Length(True), beta=beta)(c)
    np.testing.assert_allclose(rebel[:, 0::2], ((w.reward - l.reward) / beta - margin) ** 2, rtol=1e-5)


@pytest.mark.parametrize("name", objectives.LENGTH_NORMALISABLE)
def test_where_the_cap_decides_every_completion_has_beta_cap(name):
    """REBEL's loss is in units of beta squared, so its residual is compared times beta."""
    c, cap = completions(), 0.05
    beta = 3.0
    capped, _ = make_objective(name, Length(True, cap), **(OPTIONS[name] | {"beta": beta}))(c)
    plain, _ = make_objective(name, **(OPTIONS[name] | {"beta": cap}))(c)
    factor = (cap / beta) ** 2 if name == "rebel" else 1.0
    np.testing.assert_allclose(capped, plain * factor, rtol=1e-5)


@pytest.mark.parametrize("name", objectives.LENGTH_DIVISIBLE)
def test_a_loss_over_length_is_the_loss_divided_by_the_tokens(name):
    c = completions()
    (plain, weight), (divided, same) = (
        make_objective(name, Length(divides_loss=divides), **OPTIONS[name])(c) for divides in (False, True)
    )
    if name == "sft":  # a mean over tokens becomes a mean over completions of their means
        np.testing.assert_allclose(divided, plain, rtol=1e-6)
        np.testing.assert_allclose(same, c.weight)
        np.testing.assert_allclose(weight, c.weight * c.length)
        return
    length = np.asarray(c.length, float)
    if name in objectives.PAIRWISE:
        length = np.repeat((length[:, 0::2] + length[:, 1::2]) / 2, 2, axis=1)
    np.testing.assert_allclose(divided, np.asarray(plain) / length, rtol=1e-6)
    np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_and_weights_have_the_shape_of_the_inputs_and_jit_vmap_grad(name):
    c = completions((2, 3, 4))
    objective = make_objective(name, **OPTIONS[name])
    loss, weight = jax.jit(objective)(c)
    assert loss.shape == weight.shape == (2, 3, 4)
    for got, want in zip(jax.vmap(jax.vmap(objective))(c), (loss, weight), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(jnp.multiply(*objective(c._replace(log_prob=x)))))(c.log_prob)
    assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_along_the_gradient_favours_the_better_completion(name):
    """From π = π_ref every preference objective raises the better one's log-prob relative to the other's."""
    c = completions((1, 2))
    reward, quantile = jnp.asarray([[2.0, -2.0]]), jnp.asarray([[0.95, 0.05]])
    c = c._replace(reference_log_prob=c.log_prob, reward=reward, quantile=quantile)
    objective = make_objective(name, **OPTIONS[name])
    gradient = jax.grad(lambda x: jnp.sum(jnp.multiply(*objective(c._replace(log_prob=x)))))(c.log_prob)
    if name == "sft":
        assert (gradient < 0).all()
    else:
        assert gradient[0, 0] < gradient[0, 1], gradient


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("ppo", {}, "'ppo'; allowed: qrpo, dpo"),
        ("qrpo", {"transform": "cube"}, "'cube'; allowed: "),
        ("qrpo", {"loss": "huber"}, "'huber'; allowed: mse, mae"),
        ("qrpo", {"beta": 0.0}, "beta is 0.0"),
        ("dpo", {"beta": -1.0}, "beta is -1.0"),
        ("rebel", {"beta": float("nan")}, "beta is nan"),
        ("qrpo", {"transform": "threshold(2)"}, "threshold is 2; it must lie inside"),
        ("qrpo", {"length": Length(normalised=True, cap=0.0)}, "cap on beta is 0.0"),
        (
            "simpo",
            {"length": Length(normalised=True)},
            "'simpo' has no use for length_normalised; only qrpo, dpo, rebel",
        ),
        ("simpo", {"length": Length(divides_loss=True)}, "'simpo' has no use for loss_over_length"),
        ("sft", {"length": Length(normalised=True)}, "'sft' has no use for length_normalised"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, change, message):
    options = dict(OPTIONS[name]) if name in OPTIONS else {}
    with pytest.raises(ValueError, match=message) as caught:
        make_objective(name, **(options | change))
    assert "\n" not in str(caught.value) and "config.train" in str(caught.value)
