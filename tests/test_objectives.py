"""Objectives in a batch: pairs in neighbouring slots, weights, and the floor-0 losses underneath."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import losses, objectives, transforms
from qrpo_jax.objectives import Completions, make_objective

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
    want = losses.qrpo(c.log_prob, c.reference_log_prob, c.quantile, beta=0.3, transform=chosen, loss=loss)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(weight, c.weight)


@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
def test_qrpo_where_policy_and_reference_agree_is_the_mean_squared_target(transform):
    c = completions()
    c = c._replace(reference_log_prob=c.log_prob)
    loss, weight = make_objective("qrpo", beta=0.3, transform=transform, loss="mse")(c)
    target = losses.calibrated_target(c.quantile, 0.3, transforms.get(transform, reward_scale=c.reward_scale))
    np.testing.assert_allclose((loss * weight).sum() / weight.sum(), jnp.mean(target**2), rtol=1e-6)


def test_sft_is_the_mean_over_tokens():
    c = completions()
    c = c._replace(weight=c.weight.at[:, 3].set(0))
    loss, weight = make_objective("sft")(c)
    used = np.asarray(c.weight) > 0
    mean = -np.asarray(c.log_prob)[used].sum() / np.asarray(c.length)[used].sum()
    np.testing.assert_allclose((loss * weight).sum() / weight.sum(), mean, rtol=1e-6)


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
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, change, message):
    options = dict(OPTIONS[name]) if name in OPTIONS else {}
    with pytest.raises(ValueError, match=message) as caught:
        make_objective(name, **(options | change))
    assert "\n" not in str(caught.value) and "config.train" in str(caught.value)
