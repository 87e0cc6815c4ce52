"""Objectives as a training step sees them: numbers of completions in, unreduced losses and weights out.

An objective knows no model, no mesh and no config. Its losses and weights have the shape [..., S] of its inputs; the
step sums loss · weight over the global batch and divides by the sum of the weights. A new objective is a function here
and a line in `OBJECTIVES`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax import losses, transforms
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.errors import UserError
from qrpo_jax.transforms import Transform


class LogProbs(NamedTuple):
    """log π_θ in nats, for each completion and for each of its tokens.

    The completions of a pair are neighbours, the one with the higher reward first.
    """

    completion: Array  # [..., S], summed over tokens
    token: Array  # [..., L], of the token after each position; 0 where nothing is predicted
    segment: Array  # [..., L], int32: 1 + the slot of the position's completion, 0 for prompts and padding
    value: Array | None = None  # [..., L], float32, of the value head before each token; None without one


class Length(NamedTuple):
    """The uses that an objective makes of a completion's length in tokens.

    normalised: its β is min(β / length, cap), so that the KL penalty is per token.
    cap: see `losses.length_normalised_beta`; infinite for none.
    divides_loss: its loss is divided by its length; that of a pair by the mean length of the two.
    """

    normalised: bool = False
    cap: float = math.inf
    divides_loss: bool = False

    def beta(self, beta: ArrayLike, length: ArrayLike) -> Array:
        """β of each completion: [] if it is the same for all, else in the shape of `length`."""
        return losses.length_normalised_beta(beta, length, self.cap) if self.normalised else jnp.asarray(beta)

    def divide(self, loss: Array, length: Array) -> Array:
        return loss / jnp.maximum(length, 1).astype(loss.dtype) if self.divides_loss else loss


PLAIN = Length()
Losses = tuple[Array, Array]
LossFunction = Callable[[LogProbs, PerCompletion], Losses]


def qrpo(
    log_probs: LogProbs, c: PerCompletion, *, beta: float, transform: Transform, loss: str, length: Length = PLAIN
) -> Losses:
    """Pointwise regression on the calibrated target; all completions have their own weight."""
    each = losses.qrpo(
        log_probs.completion,
        c.reference_log_prob,
        c.quantile,
        beta=length.beta(beta, c.length),
        transform=transforms.scale_by(transform, c.reward_scale),
        loss=loss,
        log_z=c.log_z,
    )
    return length.divide(each, c.length), c.weight


def sft(log_probs: LogProbs, c: PerCompletion, *, length: Length = PLAIN) -> Losses:
    """Negative log-likelihood a token; the weight grows with the length unless that divides the loss."""
    tokens = jnp.maximum(c.length, 1).astype(log_probs.completion.dtype)
    return losses.sft(log_probs.completion) / tokens, c.weight if length.divides_loss else c.weight * tokens


def dpo(log_probs: LogProbs, c: PerCompletion, *, beta: float, length: Length = PLAIN) -> Losses:
    """The loss of each pair, at its chosen slot."""
    (policy_w, policy_l), (reference_w, reference_l) = (
        pairs(x) for x in scaled_by_length(log_probs.completion, c, beta, length)
    )
    each = losses.dpo(policy_w, policy_l, reference_w, reference_l, beta=beta)
    return per_pair(length.divide(each, pair_length(c)), pair_weight(c))


def rebel(log_probs: LogProbs, c: PerCompletion, *, beta: float, length: Length = PLAIN) -> Losses:
    """The loss of each pair, at its chosen slot."""
    (policy_w, policy_l), (reference_w, reference_l) = (
        pairs(x) for x in scaled_by_length(log_probs.completion, c, beta, length)
    )
    each = losses.rebel(policy_w, policy_l, reference_w, reference_l, *pairs(c.reward), beta=beta)
    return per_pair(length.divide(each, pair_length(c)), pair_weight(c))


def simpo(log_probs: LogProbs, c: PerCompletion, *, beta: float, gamma_beta_ratio: float) -> Losses:
    """The loss of each pair, at its chosen slot."""
    lengths = pairs(jnp.maximum(c.length, 1))
    each = losses.simpo(*pairs(log_probs.completion), *lengths, beta=beta, gamma_beta_ratio=gamma_beta_ratio)
    return per_pair(each, pair_weight(c))


def scaled_by_length(log_prob: Array, c: PerCompletion, beta: float, length: Length) -> tuple[Array, Array]:
    """log π_θ and log π_ref times β_i / β: a loss with one β for the pair then gives each completion its own β_i."""
    if not length.normalised:
        return log_prob, c.reference_log_prob
    share = length.beta(beta, c.length) / beta
    return log_prob * share, c.reference_log_prob * share


def pairs(values: Array) -> tuple[Array, Array]:
    """Values of chosen and of rejected completions, [..., S] -> [..., S/2] each."""
    paired = values.reshape(*values.shape[:-1], -1, 2)
    return paired[..., 0], paired[..., 1]


def pair_length(c: PerCompletion) -> Array:
    """Mean length of the two, [..., S/2]."""
    chosen, rejected = pairs(c.length)
    return (chosen + rejected) / 2


def pair_weight(c: PerCompletion) -> Array:
    """The smaller weight of the two, [..., S/2]: a pair with one side left out has no weight."""
    return jnp.minimum(*pairs(c.weight))


def per_pair(loss: Array, weight: Array) -> Losses:
    """Puts a pair's loss and weight at its chosen slot, [..., S/2] -> [..., S]; the rejected slot has weight 0."""

    def at_chosen(values: Array) -> Array:
        return jnp.stack([values, jnp.zeros_like(values)], axis=-1).reshape(*values.shape[:-1], -1)

    return at_chosen(loss), at_chosen(weight)


class Objective(NamedTuple):
    """A loss with the facts that data, checks and reports need about it.

    Attributes:
      loss: (log_probs, c, **options) -> (losses, weights), [..., S] each.
      loss_unit: of the loss, for reports; `{loss}` stands for the kind of regression.
      options: names of the loss's keyword arguments, `length` aside; keys of `OPTIONS`.
      pairwise: it compares the two completions of a pair.
      needs_reference: it reads log π_ref.
      ranked: it regresses on the calibrated target f(R_q) − β log Z, from quantiles and log Z.
      needs_rewards: it reads rewards, or ranks by them; to others the order of a pair is enough.
      drops_ties: it learns nothing from pairs of equal reward.
      length_normalisable: it takes a `Length` that is `normalised`.
      length_divisible: it takes a `Length` that `divides_loss`.
    """

    loss: Callable[..., Losses]
    loss_unit: str
    options: tuple[str, ...] = ()
    pairwise: bool = False
    needs_reference: bool = True
    ranked: bool = False
    needs_rewards: bool = False
    drops_ties: bool = False
    length_normalisable: bool = False
    length_divisible: bool = False


# SimPO's log-probs are means over tokens already, and SFT has no β.
OBJECTIVES = {
    "qrpo": Objective(
        qrpo,
        "{loss} error of f(R_q) − β log Z",
        ("beta", "transform", "loss"),
        ranked=True,
        needs_rewards=True,
        length_normalisable=True,
        length_divisible=True,
    ),
    "dpo": Objective(
        dpo,
        "nats per pair",
        ("beta",),
        pairwise=True,
        drops_ties=True,
        length_normalisable=True,
        length_divisible=True,
    ),
    "rebel": Objective(
        rebel,
        "squared error of reward differences / β",
        ("beta",),
        pairwise=True,
        needs_rewards=True,
        length_normalisable=True,
        length_divisible=True,
    ),
    "simpo": Objective(
        simpo,
        "nats per pair",
        ("beta", "gamma_beta_ratio"),
        pairwise=True,
        needs_reference=False,
        drops_ties=True,
    ),
    "sft": Objective(sft, "nats per token", needs_reference=False, length_divisible=True),
}


def having(fact: str) -> tuple[str, ...]:
    """Names of the objectives for which a fact of `Objective` is true.

    >>> having("pairwise")
    ('dpo', 'rebel', 'simpo')
    """
    return tuple(name for name, objective in OBJECTIVES.items() if getattr(objective, fact))


def _positive(beta: float) -> float:
    if not beta > 0:
        raise UserError(f"beta is {beta}; it must be above 0", about="beta")
    return beta


def _finite(gamma_beta_ratio: float) -> float:
    if not math.isfinite(gamma_beta_ratio):
        raise UserError(f"gamma_beta_ratio is {gamma_beta_ratio}; it must be finite", about="gamma_beta_ratio")
    return float(gamma_beta_ratio)


def _regression(loss: str) -> str:
    if loss not in losses.REGRESSION:
        raise UserError(f"loss is {loss!r}; allowed: {', '.join(losses.REGRESSION)}", about="loss")
    return loss


# For each option the function from its value in a config to the argument of the loss.
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "beta": _positive,
    "transform": transforms.parse,
    "loss": _regression,
    "gamma_beta_ratio": _finite,
}


def make_objective(name: str, length: Length = PLAIN, **options: Any) -> LossFunction:
    """The loss of an objective with its options bound.

    Args:
      name: a key of `OBJECTIVES`.
      length: the uses of completion lengths.
      options: a value for each of the objective's `options`, as a config has it: a transform by its name.

    Raises:
      UserError: unknown name, transform or loss, β or its cap not positive, or a use of length that the objective
        does not have.
    """
    if name not in OBJECTIVES:
        raise UserError(f"objective is {name!r}; allowed: {', '.join(OBJECTIVES)}", about="name")
    if not length.cap > 0:
        raise UserError(f"the cap on beta is {length.cap}; it must be above 0", about="cap")
    for used, fact, option, about in (
        (length.normalised, "length_normalisable", "length_normalised", "normalised"),
        (length.divides_loss, "length_divisible", "loss_over_length", "divides_loss"),
    ):
        if used and name not in having(fact):
            allowed = ", ".join(having(fact))
            raise UserError(f"objective {name!r} has no use for {option}; only {allowed}", about=about)
    objective = OBJECTIVES[name]
    bound = {option: OPTIONS[option](value) for option, value in options.items()}
    if objective.length_divisible or objective.length_normalisable:
        bound["length"] = length
    return partial(objective.loss, **bound)
