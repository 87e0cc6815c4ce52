"""Objectives as a training step sees them: per-completion numbers in, unreduced losses and weights out.

An objective knows no model, no mesh and no config. Its losses and weights have the shape of its inputs; the
step sums loss · weight over the global batch and divides by the sum of the weights.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax import losses, transforms


class Completions(NamedTuple):
    """What objectives may use, arrays [..., S]; the completions of a pair are neighbours, the better one first."""

    log_prob: Array
    reference_log_prob: Array
    reward: Array
    quantile: Array
    log_z: Array  # of the completion's β; see `partition`
    reward_scale: Array
    length: Array
    weight: Array  # 0 where a slot is empty or the sample selector leaves the completion out


class Length(NamedTuple):
    """What a completion's length in tokens changes.

    normalised: its β is min(β / length, cap), so that it is held to the reference token by token.
    cap: see `losses.length_normalised_beta`; infinite for none.
    divides_loss: its loss is divided by its length; that of a pair by the mean length of the two.
    """

    normalised: bool = False
    cap: float = math.inf
    divides_loss: bool = False

    def beta(self, beta: ArrayLike, length: ArrayLike) -> Array:
        """β of each completion, in the shape of `length` if it differs between them."""
        return losses.length_normalised_beta(beta, length, self.cap) if self.normalised else jnp.asarray(beta)

    def divide(self, loss: Array, length: Array) -> Array:
        return loss / jnp.maximum(length, 1).astype(loss.dtype) if self.divides_loss else loss


PLAIN = Length()
Losses = tuple[Array, Array]
Objective = Callable[[Completions], Losses]


def qrpo(c: Completions, *, beta: float, transform: str, loss: str, length: Length = PLAIN) -> Losses:
    """Pointwise regression on the calibrated target; weighs every completion alike."""
    each = losses.qrpo(
        c.log_prob,
        c.reference_log_prob,
        c.quantile,
        beta=length.beta(beta, c.length),
        transform=transforms.get(transform, reward_scale=c.reward_scale),
        loss=loss,
        log_z=c.log_z,
    )
    return length.divide(each, c.length), c.weight


def sft(c: Completions, *, length: Length = PLAIN) -> Losses:
    """Negative log-likelihood per token: weighs a completion by its length, or all alike if that divides the loss."""
    tokens = jnp.maximum(c.length, 1).astype(c.log_prob.dtype)
    return losses.sft(c.log_prob) / tokens, c.weight if length.divides_loss else c.weight * tokens


def dpo(c: Completions, *, beta: float, length: Length = PLAIN) -> Losses:
    w, l = pairs(held_by_length(c, beta, length))
    each = losses.dpo(w.log_prob, l.log_prob, w.reference_log_prob, l.reference_log_prob, beta=beta)
    return per_pair(length.divide(each, (w.length + l.length) / 2), jnp.minimum(w.weight, l.weight))


def rebel(c: Completions, *, beta: float, length: Length = PLAIN) -> Losses:
    w, l = pairs(held_by_length(c, beta, length))
    each = losses.rebel(
        w.log_prob, l.log_prob, w.reference_log_prob, l.reference_log_prob, w.reward, l.reward, beta=beta
    )
    return per_pair(length.divide(each, (w.length + l.length) / 2), jnp.minimum(w.weight, l.weight))


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


def held_by_length(c: Completions, beta: float, length: Length) -> Completions:
    """Log-probs times β_i / β: what has one β for a pair then holds each completion by its own."""
    if not length.normalised:
        return c
    share = length.beta(beta, c.length) / beta
    return c._replace(log_prob=c.log_prob * share, reference_log_prob=c.reference_log_prob * share)


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
# SimPO's log-probs are means over tokens already, and SFT has no β.
LENGTH_NORMALISABLE = ("qrpo", "dpo", "rebel")
LENGTH_DIVISIBLE = ("qrpo", "dpo", "rebel", "sft")


def make_objective(name: str, length: Length = PLAIN, **options: Any) -> Objective:
    """The objective of that name with its options bound.

    Raises:
      ValueError: unknown name, transform or loss, β or its cap not positive, or a use of length that the objective
        does not have.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective is {name!r}; allowed: {', '.join(OBJECTIVES)} (config.train.objective)")
    if "beta" in options and not options["beta"] > 0:
        raise ValueError(f"beta is {options['beta']}; it must be above 0 (config.train.beta)")
    if not length.cap > 0:
        raise ValueError(f"the cap on beta is {length.cap}; it must be above 0 (config.train.beta_cap)")
    for used, allowed, key in (
        (length.normalised, LENGTH_NORMALISABLE, "length_normalised"),
        (length.divides_loss, LENGTH_DIVISIBLE, "loss_over_length"),
    ):
        if used and name not in allowed:
            raise ValueError(f"objective {name!r} has no use for {key}; only {', '.join(allowed)} (config.train.{key})")
    if "transform" in options:
        try:
            transforms.parse(options["transform"])
        except ValueError as error:
            raise ValueError(f"{error} (config.train.transform)") from None
    if "loss" in options and options["loss"] not in losses.REGRESSION:
        allowed_losses = ", ".join(losses.REGRESSION)
        raise ValueError(f"loss is {options['loss']!r}; allowed: {allowed_losses} (config.train.loss)")
    if name in LENGTH_DIVISIBLE:
        options["length"] = length
    return partial(OBJECTIVES[name], **options)
