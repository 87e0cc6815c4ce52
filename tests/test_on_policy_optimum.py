"""A table trained on its own completions, by exact expectation over all of them, ends at the optimum of its method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qrpo_jax import partition, transforms
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.training.objective import LogProbs
from qrpo_jax.training.objectives import make_objective
from tests.helpers.token_cases import OPTIONS

SIZE, BETA = 11, 0.4


def problem(seed):
    """log π_ref and rewards of a prompt's completions, of one token each."""
    rng = np.random.default_rng(seed)
    return np.log(rng.dirichlet(np.full(SIZE, 2.0))), rng.normal(size=SIZE)


def trained(objective, reference, reward_of, updates, iterations=3000, rate=0.05):
    """log π [K] after `iterations`, each of so many updates on all completions as π_old has them.

    reward_of: log π_old -> the rewards; the advantage is these minus their mean under π_old.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, iterations * updates), b2=0.99)
    ones = jnp.ones(SIZE)

    def total(logits, old):
        rewards = reward_of(old)
        t = PerToken(old, reference, ones, rewards - jnp.sum(jnp.exp(old) * rewards), 0 * ones, 0 * ones)
        c = PerCompletion(**{name: 0 * ones for name in PerCompletion._fields})
        c = c._replace(weight=jnp.exp(old), length=jnp.ones(SIZE, int))
        log_policy = jax.nn.log_softmax(logits)
        log_probs = LogProbs(log_policy, log_policy, 1 + jnp.arange(SIZE))
        loss, weight = objective.loss(log_probs, c, t)
        return jnp.sum(loss * weight) / jnp.sum(weight)

    def iteration(carry, _):
        old = jax.nn.log_softmax(carry[0])
        for _ in range(updates):
            logits, state = carry
            steps, state = optimizer.update(jax.grad(total)(logits, old), state)
            carry = optax.apply_updates(logits, steps), state
        return carry, None

    start = reference, optimizer.init(reference)
    (logits, _), _ = jax.jit(lambda s: jax.lax.scan(iteration, s, None, length=iterations))(start)
    return np.asarray(jax.nn.log_softmax(logits))


def kl(a, b):
    return float((np.exp(a) * (a - b)).sum())


def regularised_optimum(reference, rewards):
    """argmax E[R] − β KL(π ‖ π_ref): π_ref e^{R/β} / Z."""
    log = reference + rewards / BETA
    return log - np.log(np.exp(log).sum())


def other_kl_optimum(reference, rewards):
    """argmax E[R] − β KL(π_ref ‖ π): π_i = β π_ref,i / (λ − R_i), with the λ above all R at which it adds up to 1."""
    low, high = rewards.max() + 1e-12, rewards.max() + BETA + 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (BETA * np.exp(reference) / (middle - rewards)).sum() > 1 else (low, middle)
    return np.log(BETA * np.exp(reference) / (low - rewards))


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce_pp"])
@pytest.mark.parametrize("updates", [1, 3])
def test_with_the_kl_in_the_reward_a_table_reaches_the_kl_regularised_optimum(name, updates):
    """KL(π_θ ‖ π*) < 1e-6, also with several updates on the completions of one π_old."""
    reference, rewards = problem(3)
    options = OPTIONS[name] | ({"kl_strength": 0.0} if name == "grpo" else {})
    with jax.enable_x64(True):
        best = regularised_optimum(reference, rewards)
        known = jnp.asarray(reference)
        end = trained(make_objective(name, **options), known, lambda old: rewards - BETA * (old - known), updates)
        print(f"{name}, {updates} updates: KL {kl(reference, best):.3g} at the start, {kl(end, best):.3g} at the end")
        assert kl(reference, best) > 0.1 and kl(end, best) < 1e-6, (kl(reference, best), kl(end, best))


def test_with_k3_in_the_loss_a_table_reaches_the_optimum_of_the_other_kl():
    """GRPO without the std: the gradient of k3 is that of KL(π_ref ‖ π), so π_ref e^{R/β} / Z is not where it ends."""
    reference, rewards = problem(5)
    with jax.enable_x64(True):
        objective = make_objective("grpo", **(OPTIONS["grpo"] | {"kl_strength": BETA}))
        end = trained(objective, jnp.asarray(reference), lambda old: jnp.asarray(rewards), updates=1)
        other, regularised = other_kl_optimum(reference, rewards), regularised_optimum(reference, rewards)
        assert np.exp(other).sum() == pytest.approx(1, abs=1e-9)
        print(f"KL to the optimum of KL(ref ‖ π): {kl(end, other):.3g}; of KL(π ‖ ref): {kl(end, regularised):.3g}")
        assert kl(end, other) < 1e-6 and kl(end, regularised) > 0.01, (kl(end, other), kl(end, regularised))


def test_quantiles_against_the_groups_own_policy_are_mirror_descent():
    """Log-ratios to π_old, ranks among samples of π_old, f = log: iteration k ends at Best-of-N^k, N = 1 + 1/β.

    An optimum of log is Best-of-N of the policy that it is relative to. So a fixed β moves on for ever, and only k = 1
    is the KL-regularised optimum of the first reference.
    """
    cells, beta = 4001, 0.5
    rewards = np.random.default_rng(7).permutation(cells).astype(float)
    order = np.argsort(rewards)
    with jax.enable_x64(True):
        objective = make_objective("qrpo", beta=beta, transform="log", loss="mse")
        ones = jnp.ones(cells)
        numbers = PerCompletion(**{name: ones for name in PerCompletion._fields})
        old, distances = np.full(cells, -np.log(cells)), []
        for _ in range(3):
            probability = np.exp(old)
            quantile = np.empty(cells)
            quantile[order] = np.cumsum(probability[order]) - probability[order] / 2
            log_z = partition.atoms_log_z(transforms.log, beta, quantile, probability)
            new = old + np.log(quantile) / beta - float(log_z)
            c = numbers._replace(
                quantile=jnp.asarray(quantile), log_z=log_z * ones, reference_log_prob=jnp.asarray(old)
            )
            residual, _ = objective(LogProbs(jnp.asarray(new), jnp.asarray(new), jnp.arange(cells)), c)
            assert float(jnp.max(residual)) < 1e-18 and np.exp(new).sum() == pytest.approx(1, abs=1e-9)
            old = new
            share = np.arange(1, cells + 1) / cells  # of the reference, up to each completion in the order of rewards
            found = np.cumsum(np.exp(old[order]))
            distances.append([np.abs(found - share ** (3**m)).max() for m in (1, 2, 3)])
        print(np.round(distances, 4))
        assert (np.diag(distances) < 2e-3).all() and np.asarray(distances)[~np.eye(3, dtype=bool)].min() > 0.3
