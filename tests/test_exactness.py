"""Training with the QRPO objective ends at pi* = pi_ref exp(f(R_q) / beta) / Z, for data of any distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qrpo_jax import optimum, partition, quantiles, transforms
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.training import objectives
from tests.helpers.samples import sampled

# One transform of every kind, with a beta that moves the policy far and one that hardly moves it.
CASES = [
    ("identity", 0.15, 2.0),
    ("log", 0.3, 3.0),
    ("square", 0.2, 2.0),
    ("sqrt", 0.1, 2.0),
    ("normal-icdf", 0.5, 3.0),
    ("exponential-icdf", 1.05, 4.0),
    ("logit", 1.1, 4.0),
    ("power(3.3)", 0.2, 1.0),
    ("threshold(0.6)", 0.25, 2.0),
    ("piecewise-linear((0, -0.5), (0.7, 0), (0.7, 0.2), (1, 1))", 0.2, 2.0),
    ("affine(log, 0.5, 0.5)", 0.2, 2.0),
]


def true_quantiles(rewards, probability):
    """P(R < r) + P(R = r) / 2 under the reference policy, for every completion."""
    below = (rewards[None, :] < rewards[:, None]) @ probability
    return below + ((rewards[None, :] == rewards[:, None]) @ probability) / 2


def completions(log_prob, reference, rewards, quantile, log_z, weight):
    """Completions of one token each."""
    segment = 1 + jnp.arange(log_prob.size).reshape(log_prob.shape)
    return objectives.LogProbs(log_prob, log_prob, segment), PerCompletion(
        reward=rewards,
        quantile=quantile,
        ties=jnp.zeros_like(log_prob),
        references=jnp.zeros(log_prob.shape, int),
        log_z=jnp.broadcast_to(log_z, log_prob.shape),
        reward_scale=jnp.ones_like(log_prob),
        reference_log_prob=reference,
        length=jnp.ones(log_prob.shape, int),
        weight=weight,
        high=quantile > 0.5,
    )


def trained(objective, beta, reference, rewards, quantile, log_z, weight, steps, rate):
    """Logits [K] of a tabular policy after gradient descent on the weighted mean loss, starting from the reference."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.99)

    def total(logits):
        c = completions(jax.nn.log_softmax(logits), reference, rewards, quantile, log_z, weight)
        each, weights = objective(*c)
        # The residual is in units of f; divided by beta it is in nats, whatever beta is.
        return jnp.sum(each * weights) / jnp.sum(weights) / beta**2

    def step(carry, _):
        logits, state = carry
        loss, gradient = jax.value_and_grad(total)(logits)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(logits, updates), state), loss

    (logits, _), losses = jax.lax.scan(step, (reference, optimizer.init(reference)), None, length=steps)
    return logits, losses


def data_distributions(rng, size):
    """Weights of completions in the loss: five distributions of offline data, all with full support."""
    skewed = np.geomspace(1, 1e-4, size)[rng.permutation(size)]
    draws = [rng.dirichlet(np.ones(size)) for _ in range(2)]
    draws += [rng.dirichlet(np.full(size, 5.0)), skewed / skewed.sum()]
    # Finite data: how often each completion occurs, at least once.
    counts = 1 + rng.multinomial(40, rng.dirichlet(np.ones(size)))
    return np.stack([np.maximum(d, 1e-5) / np.maximum(d, 1e-5).sum() for d in draws] + [counts / counts.sum()])


@pytest.mark.parametrize(
    ("name", "low", "high", "size"), sampled([(*case, size) for size in (11, 13) for case in CASES])
)
def test_a_table_reaches_the_optimum_from_any_data(name, low, high, size):
    """KL(pi_theta || pi*) < 1e-6, with log Z over the finitely many quantiles of the reference policy."""
    low, high = (low, high) if size == 11 else (high, low)
    rng = np.random.default_rng(size)
    with jax.enable_x64(True):
        transform = transforms.parse(name)
        probability = rng.dirichlet(np.full(size, 2.0))
        rewards = rng.permutation(np.arange(size) ** 1.5)
        quantile = true_quantiles(rewards, probability)
        log_z = partition.atoms_log_z(transform, low, quantile, probability)
        log_optimum = np.log(probability) + np.asarray(transform.apply(quantile)) / low - float(log_z)
        assert np.exp(log_optimum).sum() == pytest.approx(1, abs=1e-12)

        objective = objectives.make_objective("qrpo", beta=low, transform=name, loss="mse")
        weights = jnp.asarray(data_distributions(rng, size))
        reference = jnp.log(jnp.asarray(probability))
        run = jax.jit(
            jax.vmap(
                lambda weight: trained(
                    objective, low, reference, jnp.asarray(rewards), jnp.asarray(quantile), log_z, weight, 4000, 0.1
                )
            )
        )
        logits, losses = run(weights)
        log_policy = np.asarray(jax.nn.log_softmax(logits))
        kl = (np.exp(log_policy) * (log_policy - log_optimum)).sum(axis=-1)
        start = (probability * (np.log(probability) - log_optimum)).sum()
        print(f"{name} beta={low} K={size}: KL {start:.3g} at the start, {np.array2string(kl, precision=2)} at the end")
        assert start > 1e-3 and (kl < 1e-6).all() and (kl > -1e-12).all(), kl
        assert (np.asarray(losses)[:, -1] < 1e-6).all()


def test_the_populations_log_z_misses_the_optimum_of_few_completions():
    """The population's log Z is not that of 11 completions, so the test above can fail."""
    rng = np.random.default_rng(11)
    with jax.enable_x64(True):
        probability = rng.dirichlet(np.full(11, 2.0))
        rewards = rng.permutation(np.arange(11) ** 1.5)
        quantile = true_quantiles(rewards, probability)
        transform, beta = transforms.log, 0.3
        log_optimum = np.asarray(transform.apply(quantile)) / beta + np.log(probability)
        log_optimum -= np.log(np.exp(log_optimum).sum())
        objective = objectives.make_objective("qrpo", beta=beta, transform="log", loss="mse")
        off = []
        for log_z in (partition.atoms_log_z(transform, beta, quantile, probability), transform.log_z(beta)):
            arrays = (
                jnp.asarray(x) for x in (np.log(probability), rewards, quantile, log_z, data_distributions(rng, 11)[3])
            )
            logits, _ = trained(objective, beta, *arrays, 4000, 0.1)
            log_policy = np.asarray(jax.nn.log_softmax(logits))
            off.append((np.exp(log_policy) * (log_policy - log_optimum)).sum())
        print(off)
        assert off[0] < 1e-6 and off[1] > 1e-5, off


CELLS = 4096


def continuous(rng):
    """A normal reference policy over 4096 cells of y, and a reward that rises and falls with y."""
    y = np.linspace(-4, 4, CELLS)
    probability = np.exp(-y * y / 2)
    probability /= probability.sum()
    return y, probability, np.sin(5 * y) + 0.35 * y + 0.05 * np.cos(37 * y)


def ks_distance(rng, log_policy, probability, quantile, beta, transform):
    """Kolmogorov-Smirnov distance between the quantiles of 1e5 samples of the policy and the optimum's distribution.

    The true quantile of a sample is spread evenly over its cell.
    """
    policy = np.exp(log_policy - log_policy.max())
    cells = rng.choice(CELLS, 100_000, p=policy / policy.sum())
    t = np.sort(quantile[cells] + (rng.random(cells.size) - 0.5) * probability[cells])
    levels = np.unique(np.concatenate([np.linspace(0, 1, 257), 1 - np.geomspace(1e-5, 1e-2, 64)]))
    expected = np.asarray(jax.jit(lambda x: optimum.cdf(x, beta, transform))(levels))
    return np.abs(np.searchsorted(t, levels, side="right") / t.size - expected).max()


@pytest.mark.parametrize(
    ("name", "beta", "estimated"),
    [
        ("identity", 0.1, False),
        ("identity", 1.0, True),
        ("log", 0.2, True),
        ("square", 0.1, False),
        ("normal-icdf", 0.8, True),
        ("exponential-icdf", 1.5, False),
        ("threshold(0.8)", 0.3, False),
        ("piecewise-linear((0, 0), (0.8, 0.1), (1, 1))", 0.1, True),
    ],
)
def test_continuous_rewards_with_the_populations_log_z_reach_the_quantile_density(name, beta, estimated):
    """KS distance below 0.02 after training on 60,000 completions of another policy, uniform over the cells.

    estimated: quantiles are mid-points among 16,000 references instead of exact.
    """
    rng = np.random.default_rng(23)
    y, probability, rewards = continuous(rng)
    with jax.enable_x64(True):
        transform = transforms.parse(name)
        exact = true_quantiles(rewards, probability)
        quantile = exact
        if estimated:
            references = rewards[rng.choice(CELLS, 16_000, p=probability)]
            place = jax.jit(jax.vmap(lambda r: quantiles.estimate(r, references, estimator="midpoint", ties="mid")))
            quantile = np.asarray(place(rewards))
        data = np.bincount(rng.integers(0, CELLS, 60_000), minlength=CELLS).astype(float)
        objective = objectives.make_objective("qrpo", beta=beta, transform=name, loss="mse")
        arrays = (jnp.asarray(x) for x in (np.log(probability), rewards, quantile, transform.log_z(beta), data))
        logits, _ = jax.jit(lambda *a: trained(objective, beta, *a, 1500, 0.15))(*arrays)
        before, after = (
            ks_distance(rng, np.asarray(x), probability, exact, beta, transform) for x in (np.log(probability), logits)
        )
        print(f"{name} beta={beta} estimated={estimated}: KS {before:.4f} at the start, {after:.4f} at the end")
        assert before > 0.05 and after < 0.02, (before, after)


def test_a_policy_of_learnt_features_reaches_the_quantile_density():
    """A policy with logits log pi_ref plus 48 waves of y, trained on minibatches of single completions."""
    rng = np.random.default_rng(29)
    y, probability, rewards = continuous(rng)
    rewards = np.sin(2 * y) + 0.3 * y  # smooth enough for 48 waves
    exact = true_quantiles(rewards, probability)
    transform, beta = transforms.identity, 0.3
    waves = np.arange(1, 25) * np.pi / 8
    features = np.concatenate([np.sin(waves[:, None] * y), np.cos(waves[:, None] * y)]).T  # [cells, features]
    objective = objectives.make_objective("qrpo", beta=beta, transform="identity", loss="mse")
    reference = jnp.asarray(np.log(probability), jnp.float32)
    known = [jnp.asarray(x, jnp.float32) for x in (rewards, exact, features)]
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 800))

    def step(carry, cells):
        weights, state = carry

        def total(weights):
            log_prob = jax.nn.log_softmax(reference + known[2] @ weights)[cells]
            ones = jnp.ones(cells.shape)
            c = completions(log_prob, reference[cells], known[0][cells], known[1][cells], transform.log_z(beta), ones)
            each, weight = objective(*c)
            return jnp.sum(each * weight) / jnp.sum(weight)

        updates, state = optimizer.update(jax.grad(total)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    # Data from a narrower policy: normal around 0.5, and three tenths uniform.
    draws = np.clip(np.round((rng.normal(0.5, 0.8, (800, 256)) + 4) / 8 * (CELLS - 1)), 0, CELLS - 1).astype(int)
    draws = np.where(rng.random(draws.shape) < 0.3, rng.integers(0, CELLS, draws.shape), draws)
    start = jnp.zeros(features.shape[1])
    (weights, _), _ = jax.jit(lambda d: jax.lax.scan(step, (start, optimizer.init(start)), d))(jnp.asarray(draws))
    log_policy = np.asarray(reference + known[2] @ weights, np.float64)
    distance = ks_distance(rng, log_policy, probability, exact, beta, transform)
    print(f"KS {distance:.4f}")
    assert distance < 0.02
