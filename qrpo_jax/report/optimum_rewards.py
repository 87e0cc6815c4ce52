"""What the closed-form optimum of a transform earns, from rewards of the reference policy alone.

The optimum weighs each completion of the reference by the density of its quantile. A prompt with n reference rewards
has n cells of the quantile, of 1 / n each; the weight of the i-th smallest reward is the optimum's mass in the i-th
cell. n samples resolve no more than Best-of-n does: the reward of an optimum beyond that is estimated too low.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from qrpo_jax import optimum, transforms
from qrpo_jax.transforms import Transform

BETAS, WIDTH = 41, 10.0  # of the frontier: from β over WIDTH to WIDTH times β


class Frontier(NamedTuple):
    """The optimum for a range of β, in order, [B] each.

    Attributes:
      name: of the transform.
      kl: to the reference, in nats a completion.
      quantile, reward: their means under the optimum.
    """

    name: str
    kl: np.ndarray
    quantile: np.ndarray
    reward: np.ndarray


def cell_masses(count: int, betas: np.ndarray, transform: Transform) -> np.ndarray:
    """The optimum's mass in each of `count` equal cells of the quantile, for each β, [B, count]; rows sum to 1."""
    edges = np.linspace(0, 1, count + 1)
    with jax.enable_x64(True):
        cdf_of = jax.jit(jax.vmap(lambda beta: optimum.cdf(edges, beta, transform)))
        return np.diff(np.asarray(cdf_of(np.asarray(betas, np.float64))), axis=1)


def weights(references: Sequence[np.ndarray], beta: float, transform: Transform) -> list[np.ndarray]:
    """The optimum's probability of each reference completion, [N] for each prompt; tied ones share theirs evenly.

    Args:
      references: rewards [N] of each prompt.
    """
    masses = {n: cell_masses(n, np.asarray([beta]), transform)[0] for n in {len(reward_N) for reward_N in references}}
    found = []
    for reward_N in references:
        order, mass_N = np.argsort(reward_N, kind="stable"), masses[len(reward_N)]
        values, group_N = np.unique(reward_N[order], return_inverse=True)
        sums, sizes = np.bincount(group_N, mass_N), np.bincount(group_N)
        weight_N = np.empty(len(reward_N))
        weight_N[order] = (sums / sizes)[group_N]
        found.append(weight_N)
    return found


def frontier(references: Sequence[np.ndarray], name: str, beta: float) -> Frontier:
    """The optimum of a transform for β around this one, as far as Z is finite.

    Args:
      references: rewards [N] of each held-out prompt.
    """
    transform = transforms.parse(name)
    betas = beta * np.geomspace(1 / WIDTH, WIDTH, BETAS)
    betas = betas[betas > transform.smallest_beta]
    counts = {len(reward_N) for reward_N in references}
    masses = {n: cell_masses(n, betas, transform) for n in counts}
    # The sum of sorted rewards by their place is all that a mean over prompts needs.
    rewards = [np.sum([np.sort(r) for r in references if len(r) == n], axis=0) @ masses[n].T for n in counts]
    with jax.enable_x64(True):
        quantile = jax.jit(jax.vmap(lambda b: optimum.expected_quantile(b, transform)))(betas)
        kl = np.asarray(optimum.kl(betas, transform))
    return Frontier(name, kl, np.asarray(quantile), np.sum(rewards, axis=0) / len(references))
