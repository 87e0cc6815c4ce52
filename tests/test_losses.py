"""Laws of the objectives: the published losses and gradients, and the minimum of each loss."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import losses, quantiles, transforms
from qrpo_jax.errors import UserError
from qrpo_jax.training import objectives

VECTORS = json.loads((pathlib.Path(__file__).parent / "vectors" / "objectives.json").read_text())


def arrays(case: dict) -> dict:
    return {key: jnp.asarray(value) for key, value in case.items() if isinstance(value, list)}


# The authors' trainer rounds quantiles, and with them f, log Z and the target, to float32, whatever the precision of
# the log-probabilities. So their losses are compared twice: with this package's float64 transforms, to the accuracy
# that this rounding allows, and with the same roundings, to 1e-9. Below is Phi^{-1}(k / 6) as PyTorch 2 rounds it in
# float32; every quantile in the file is such a k / 6.
ICDF_OF_SIXTHS = [
    -jnp.inf,
    -0.9674214720726013,
    -0.4307272434234619,
    0.0,
    0.4307273328304291,
    0.9674214720726013,
    jnp.inf,
]


def rounded_as_published(name: str, beta: float, scale) -> transforms.Transform:
    """f and log Z with the roundings of the published code, in which beta is float64."""

    def icdf(quantile):
        return jnp.asarray(ICDF_OF_SIXTHS, jnp.float32)[jnp.round(6 * quantile).astype(int)]

    single = jnp.float32

    def log(x):
        # Rounded once, from float64: XLA's float32 logarithm depends on its flags.
        return jnp.log(jnp.asarray(single(x), jnp.float64)).astype(single)

    f, log_z = {
        "identity": (lambda q: q, log(beta) + 1 / single(beta)),
        "log": (log, log(beta / (1 + beta))),
        "normal-icdf": (icdf, single(1 / (2 * beta**2))),
        "scaled-normal-icdf": (lambda q: scale * icdf(q), scale**2 / (2 * beta**2)),
    }[name]
    clamp = transforms.get(name, scale).clamp
    return transforms.Transform(name, lambda q: f(q.astype(single)), lambda _: log_z, clamp)


def qrpo_of_pair(case: dict, chosen, rejected, rounded: bool):
    """The published loss of a pair, composed from this package's functions."""
    data, options = arrays(case), case["options"]
    name, beta, references = options["qrpo_transform_type"], options["beta"], data["ref_rewards"]
    # The published code keeps the mean std in a float32 tensor.
    mean_std = float(np.float32(options["mean_std_ref_rewards"]))
    scale = jax.vmap(quantiles.reward_std)(references) / mean_std
    transform = transforms.get(name, scale)
    if rounded:
        transform = rounded_as_published(name, beta, scale)

    def one(log_prob, side):
        quantile = jax.vmap(quantiles.ecdf)(data[f"{side}_rewards"], references)
        quantile = quantiles.clamp(quantile, references.shape[1], transform.clamp)
        return losses.qrpo(
            log_prob,
            data[f"ref_{side}_logps"],
            quantile,
            beta=beta,
            transform=transform,
            loss=options["qrpo_loss_type"],
            parity=not rounded,
        )

    weights = losses.selector_weights(options["qrpo_sample_selector"], chosen.shape)
    if options["qrpo_sample_selector"] != "both":
        # The published code halves the loss if a selector picks one completion of the pair.
        weights = weights[0] / 2, weights[1] / 2
    return weights[0] * one(chosen, "chosen") + weights[1] * one(rejected, "rejected")


def loss_of_pair(case: dict, chosen, rejected, rounded: bool):
    data, beta = arrays(case), case["options"]["beta"]
    references = data["ref_chosen_logps"], data["ref_rejected_logps"]
    if case["method"] == "qrpo_loss":
        return qrpo_of_pair(case, chosen, rejected, rounded)
    if case["method"] == "dpo_loss":
        return losses.dpo(chosen, rejected, *references, beta=beta)
    if case["method"] == "rebel_loss":
        rewards = data["chosen_rewards"], data["rejected_rewards"]
        return losses.rebel(chosen, rejected, *references, *rewards, beta=beta)
    assert case["method"] == "simpo_loss"
    lengths = data["chosen_lengths"], data["rejected_lengths"]
    ratio = case["options"]["simpo_gamma_beta_ratio"]
    return losses.simpo(chosen, rejected, *lengths, beta=beta, gamma_beta_ratio=ratio)


def compare_with_published(method: str, rounded: bool, rtol: float, atol: float):
    checked = 0
    with jax.enable_x64(True):
        for case in (case for case in VECTORS if case["method"] == method):
            data = arrays(case)

            def total(chosen, rejected, case=case):
                loss = loss_of_pair(case, chosen, rejected, rounded)
                return loss.sum(), loss

            point = data["chosen_logps"], data["rejected_logps"]
            gradients, loss = jax.grad(total, argnums=(0, 1), has_aux=True)(*point)
            actual = (loss, *gradients)
            expected = [data[k] for k in ("losses", "grad_chosen_logps", "grad_rejected_logps")]
            for got, want in zip(actual, expected, strict=True):
                np.testing.assert_allclose(got, want, rtol, atol, err_msg=str(case["options"]))
            checked += 1
    assert checked == (72 if method == "qrpo_loss" else 3)


@pytest.mark.parametrize("method", sorted({case["method"] for case in VECTORS}))
def test_losses_and_gradients_are_the_published_ones(method):
    """In float64, all 81 cases, with the float32 roundings of the published QRPO."""
    compare_with_published(method, rounded=True, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("rtol", "atol"), [(2e-6, 3e-7), (2e-5, 0)])
def test_float64_qrpo_is_the_published_one_up_to_its_float32_target(rtol, atol):
    """With this package's float64 transforms in parity mode; the published target is rounded to float32."""
    compare_with_published("qrpo_loss", rounded=False, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["identity", "log", "square", "sqrt", "normal-icdf"])
@pytest.mark.parametrize("loss", sorted(losses.REGRESSION))
@pytest.mark.parametrize("beta", [0.003, 0.1, 2.0])
def test_qrpo_is_zero_with_zero_gradient_at_the_optimum_only(name, loss, beta):
    """log pi*/pi_ref = f(R_q) / beta - log Z."""
    with jax.enable_x64(True):
        transform = transforms.get(name)
        quantile = jnp.linspace(0.03, 0.97, 13)
        reference = -jnp.linspace(5, 80, 13)
        optimum = reference + transform.apply(quantile) / beta - transform.log_z(beta)

        def at(log_prob):
            return losses.qrpo(log_prob, reference, quantile, beta=beta, transform=transform, loss=loss)

        assert float(jnp.max(at(optimum))) < 1e-10
        for off in (-0.1, 0.1):
            expected = losses.REGRESSION[loss](beta * off)
            np.testing.assert_allclose(at(optimum + off), expected, rtol=1e-6)


def test_qrpo_at_step_zero_is_the_squared_target():
    """If the policy is the reference, the loss is (f(R_q) - beta log Z)^2 at any log-probability."""
    quantile = jnp.linspace(0, 1, 7)
    log_prob = -jnp.linspace(1, 900, 7)
    loss = losses.qrpo(log_prob, log_prob, quantile, beta=0.1, transform=transforms.identity)
    target = losses.calibrated_target(quantile, 0.1, transforms.identity)
    np.testing.assert_array_equal(loss, target**2)


def test_parity_differs_from_exact_by_the_term_the_published_code_drops():
    beta = 0.5
    exact = losses.calibrated_target(0.5, beta, transforms.identity)
    parity = losses.calibrated_target(0.5, beta, transforms.identity, parity=True)
    np.testing.assert_allclose(exact - parity, -beta * np.log1p(-np.exp(-1 / beta)), rtol=1e-6)


def test_beta_may_differ_by_completion():
    log_prob, reference, quantile = jnp.array([[-3.0, -4.0, -5.0], [-3.5, -4.0, -2.0], [0.1, 0.5, 0.9]])
    betas = jnp.array([0.01, 0.3, 5.0])

    def qrpo(beta, *data):
        return losses.qrpo(*data, beta=beta, transform=transforms.square)

    together = qrpo(betas, log_prob, reference, quantile)
    alone = jax.vmap(qrpo)(betas, log_prob, reference, quantile)
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(qrpo)(betas, log_prob, reference, quantile), together, rtol=1e-5)


def test_dpo_stays_finite_with_slope_beta_far_on_the_wrong_side():
    """-log sigmoid(-x) -> x, without overflow, and the gradient does not vanish."""
    value, slope = jax.value_and_grad(lambda c: losses.dpo(c, 0.0, 0.0, 0.0, beta=0.5))(-1e4)
    assert (float(value), float(slope)) == pytest.approx((5e3, -0.5))


def test_dpo_with_equal_log_ratios_is_log_two():
    pair = jnp.array([-3.0, -50.0, -700.0])
    np.testing.assert_allclose(losses.dpo(pair, pair - 1, pair, pair - 1, beta=0.1), np.log(2), rtol=1e-6)


def test_rebel_is_zero_where_log_ratios_match_the_rewards():
    rewards = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.1, 0.5, 2.0])
    beta = 0.25
    policy = [r / beta - 10 for r in rewards]
    loss = losses.rebel(*policy, -10.0, -10.0, *rewards, beta=beta)
    np.testing.assert_allclose(loss, 0, atol=1e-10)


def test_simpo_ignores_length_at_equal_log_probability_per_token():
    short = losses.simpo(-8.0, -12.0, 4, 4, beta=2.0, gamma_beta_ratio=0.5)
    long = losses.simpo(-80.0, -120.0, 40, 40, beta=2.0, gamma_beta_ratio=0.5)
    np.testing.assert_allclose(short, long, rtol=1e-6)


def test_sft_is_the_negative_log_likelihood():
    log_prob = jnp.array([-1.0, -7.5])
    np.testing.assert_array_equal(losses.sft(log_prob), -log_prob)
    np.testing.assert_array_equal(jax.grad(lambda x: losses.sft(x).sum())(log_prob), -1)


def test_shapes_and_dtypes_are_kept():
    with jax.enable_x64(True):
        x = -jnp.ones((5, 3), jnp.float32)
        lengths = jnp.ones((5, 3), int)
        results = {
            "qrpo": losses.qrpo(x, x, -x / 2, beta=0.1, transform=transforms.normal_icdf),
            "dpo": losses.dpo(x, x, x, x, beta=0.1),
            "rebel": losses.rebel(x, x, x, x, x, x, beta=0.1),
            "simpo": losses.simpo(x, x, lengths, lengths, beta=0.1, gamma_beta_ratio=0.5),
            "sft": losses.sft(x),
        }
    with_loss = {name for name in objectives.OBJECTIVES if hasattr(losses, name)}
    assert results.keys() == with_loss, f"tested: {set(results)}, objectives with a function in losses: {with_loss}"
    for name, result in results.items():
        assert (result.shape, result.dtype) == ((5, 3), jnp.float32), name


def test_selector_weights_add_up_to_one():
    key = jax.random.key(13)
    for selector in losses.SELECTORS:
        chosen, rejected = losses.selector_weights(selector, (7, 3), key)
        np.testing.assert_array_equal(chosen + rejected, np.ones((7, 3)))
    chosen, _ = losses.selector_weights("random", (10_007,), key)
    assert set(np.unique(chosen)) == {0.0, 1.0}
    assert abs(float(chosen.mean()) - 0.5) < 0.02


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="'huber'.*mae.*mse") as error:
        losses.qrpo(-1.0, -1.0, 0.5, beta=0.1, transform=transforms.identity, loss="huber")
    assert error.value.about == ("loss",)
    with pytest.raises(ValueError, match="'best'.*both.*chosen.*random.*rejected"):
        losses.selector_weights("best", (3,))
    with pytest.raises(ValueError, match="needs a key"):
        losses.selector_weights("random", (3,))
