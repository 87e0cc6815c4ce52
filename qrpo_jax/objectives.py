"""Objectives as a training step sees them: per-completion numbers in, unreduced losses and weights out.

An objective knows no model, no mesh and no config. Its losses and weights have the shape of its inputs; the
step sums loss · weight over the global batch and divides by the sum of the weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from qrpo_jax import losses, transforms


class Completions(NamedTuple):
    """What objectives may use, arrays [..., S]; the completions of a pair are neighbours, the better one first."""

    log_prob: Array
    reference_log_prob: Array
    reward: Array
    quantile: Array
    reward_scale: Array
    length: Array
    weight: Array  # 0 where a slot is empty or the sample selector leaves the completion out


Losses = tuple[Array, Array]
Objective = Callable[[Completions], Losses]


def qrpo(c: Completions, *, beta: float, transform: str, loss: str) -> Losses:
    """Pointwise regression on the calibrated target; weighs every completion alike."""
    chosen = transforms.get(transform, reward_scale=c.reward_scale)
    each = losses.qrpo(c.log_prob, c.reference_log_prob, c.quantile, beta=beta, transform=chosen, loss=loss)
    return each, c.weight


def sft(c: Completions) -> Losses:
    """Negative log-likelihood per token: weighs a completion by its length."""
    length = jnp.maximum(c.length, 1).astype(c.log_prob.dtype)
    return losses.sft(c.log_prob) / length, c.weight * length


def dpo(c: Completions, *, beta: float) -> Losses:
    w, l = pairs(c)
    each = losses.dpo(w.log_prob, l.log_prob, w.reference_log_prob, l.reference_log_prob, beta=beta)
    return per_pair(each, jnp.minimum(w.weight, l.weight))


def rebel(c: Completions, *, beta: float) -> Losses:
    w, l = pairs(c)
    each = losses.rebel(
        w.log_prob, l.log_prob, w.reference_log_prob, l.reference_log_prob, w.reward, l.reward, beta=beta
    )
    return per_pair(each, jnp.minimum(w.weight, l.weight))


def simpo(c: Completions, *, beta: float, gamma_beta_ratio: float) -> Losses:
    w, l = pairs(c)
    each = losses.simpo(
        w.log_prob,
        l.log_prob,
        jnp.maximum(w.length, 1),
        jnp.maximum(l.length, 1),
        beta=beta,
        gamma_beta_ratio=gamma_beta_ratio,
    )
    return per_pair(each, jnp.minimum(w.weight, l.weight))


def pairs(c: Completions) -> tuple[Completions, Completions]:
    """Chosen and rejected completions, [..., S/2] each."""
    chosen = Completions(*(x.reshape(*x.shape[:-1], -1, 2)[..., 0] for x in c))
    rejected = Completions(*(x.reshape(*x.shape[:-1], -1, 2)[..., 1] for x in c))
    return chosen, rejected


def per_pair(loss: Array, weight: Array) -> Losses:
    """Puts a pair's loss at its chosen slot, [..., S/2] -> [..., S]; the rejected slot weighs nothing.

    Callers pass the smaller weight of the two: half a pair is no pair.
    """
    stacked = jnp.stack([loss, jnp.zeros_like(loss)], axis=-1), jnp.stack([weight, jnp.zeros_like(weight)], axis=-1)
    shape = (*loss.shape[:-1], -1)
    return stacked[0].reshape(shape), stacked[1].reshape(shape)


OBJECTIVES: dict[str, Callable[..., Losses]] = {"qrpo": qrpo, "dpo": dpo, "rebel": rebel, "simpo": simpo, "sft": sft}
PAIRWISE = ("dpo", "rebel", "simpo")
REFERENCE_FREE = ("simpo", "sft")


def make_objective(name: str, **options: Any) -> Objective:
    """The objective of that name with its options bound.

    Raises:
      ValueError: unknown name, transform or loss, or β that is not positive.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective is {name!r}; allowed: {', '.join(OBJECTIVES)} (config.train.objective)")
    if "beta" in options and not options["beta"] > 0:
        raise ValueError(f"beta is {options['beta']}; it must be above 0 (config.train.beta)")
    if "transform" in options and options["transform"] not in transforms.TRANSFORMS:
        allowed = ", ".join(transforms.TRANSFORMS)
        raise ValueError(f"transform is {options['transform']!r}; allowed: {allowed} (config.train.transform)")
    if "loss" in options and options["loss"] not in losses.REGRESSION:
        allowed = ", ".join(losses.REGRESSION)
        raise ValueError(f"loss is {options['loss']!r}; allowed: {allowed} (config.train.loss)")
    return partial(OBJECTIVES[name], **options)
