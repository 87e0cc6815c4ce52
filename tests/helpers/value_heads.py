"""A filled value head, and a loss of tokens that reads its values."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.model import value_head
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.log_probs import sum_by_completion
from qrpo_jax.training.objectives import LogProbs, Losses
from tests.helpers import tiny


@functools.cache
def filled(d_model: int = tiny.SETTINGS.d_model, seed: int = 0) -> Parameters:
    """A head whose values spread over several units."""
    rng = np.random.default_rng(seed)
    return {"kernel": jnp.asarray(0.5 * rng.normal(size=d_model), jnp.float32), "bias": jnp.float32(0.7)}


def with_head(policy: Parameters | None = None, head: Parameters | None = None) -> Parameters:
    """The tiny policy, or another tree, with a filled head or another."""
    return value_head.join(tiny.parameters() if policy is None else policy, filled() if head is None else head)


def actor_critic(log_probs: LogProbs, c: PerCompletion) -> Losses:
    """Half the squared error of each value, minus the advantage times log π of each token; a mean over tokens.

    The return of every token is the reward of its completion.
    """
    assert log_probs.value is not None
    slot_BxL = jnp.maximum(log_probs.segment - 1, 0)
    advantage_BxL = jnp.take_along_axis(c.reward, slot_BxL, axis=1) - log_probs.value
    each_BxL = advantage_BxL**2 / 2 - jax.lax.stop_gradient(advantage_BxL) * log_probs.token
    return per_token(each_BxL, log_probs, c), c.weight


def critic(log_probs: LogProbs, c: PerCompletion) -> Losses:
    """The squared errors of the values alone, a mean over tokens."""
    assert log_probs.value is not None
    slot_BxL = jnp.maximum(log_probs.segment - 1, 0)
    return per_token((log_probs.value - jnp.take_along_axis(c.reward, slot_BxL, axis=1)) ** 2, log_probs, c), c.weight


def per_token(each_BxL: Array, log_probs: LogProbs, c: Any) -> Array:
    return sum_by_completion(each_BxL, log_probs.segment, c.reward.shape[1]) / jnp.maximum(c.length, 1)
