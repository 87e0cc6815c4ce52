"""Objectives as a training step sees them: numbers of completions in, unreduced losses and weights out.

An objective knows no model, no mesh and no config. Its losses and weights have the shape [..., S] of its inputs; the
step sums loss · weight over the global batch and divides by the sum of the weights. A new objective is a function here,
or in `token_objectives` if it reads numbers of tokens, and a line in `OBJECTIVES`.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax import losses, transforms
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.errors import UserError
from qrpo_jax.training import token_objectives
from qrpo_jax.training.objective import BoundObjective, LogProbs, Losses, Objective, TokenLoss
from qrpo_jax.transforms import Transform


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
    "grpo": Objective(
        token_objectives.grpo,
        "clipped surrogate + β KL per token",
        ("kl_strength", "clip_low", "clip_high", "token_average", "token_limit"),
        needs_rewards=True,
        clipped=token_objectives.token_clipped,
        on_policy_only=True,
        advantage="group",
    ),
    "rloo": Objective(
        token_objectives.rloo,
        "clipped surrogate per completion",
        ("clip_low", "clip_high", "correction_cap"),
        needs_rewards=True,
        clipped=token_objectives.completion_clipped,
        on_policy_only=True,
        advantage="leave_one_out",
        kl_in_reward=True,
    ),
    "reinforce_pp": Objective(
        token_objectives.reinforce_pp,
        "clipped surrogate per token",
        ("clip_low", "clip_high"),
        needs_rewards=True,
        clipped=token_objectives.token_clipped,
        on_policy_only=True,
        advantage="return",
        kl_in_reward=True,
    ),
    "ppo": Objective(
        token_objectives.ppo,
        "clipped surrogate + value loss per token",
        ("clip_low", "clip_high", "value_coefficient", "value_clip"),
        needs_rewards=True,
        clipped=token_objectives.token_clipped,
        on_policy_only=True,
        advantage="gae",
        kl_in_reward=True,
        needs_value=True,
    ),
}


def having(fact: str) -> tuple[str, ...]:
    """Names of the objectives for which a fact of `Objective` is true.

    >>> having("pairwise")
    ('dpo', 'rebel', 'simpo')
    """
    return tuple(name for name, objective in OBJECTIVES.items() if getattr(objective, fact))


def _number(name: str, rule: str, allowed: Callable[[float], bool]) -> Callable[[float], float]:
    """A check of a number, whose message gives the rule."""

    def checked(value: float) -> float:
        if not allowed(value):
            raise UserError(f"{name} is {value}; it must be {rule}", about=name)
        return value

    return checked


def _word(name: str, words: Iterable[str]) -> Callable[[str], str]:
    """A check of a choice."""

    def checked(value: str) -> str:
        if value not in words:
            raise UserError(f"{name} is {value!r}; allowed: {', '.join(words)}", about=name)
        return value

    return checked


# For each option the function from its value in a config to the argument of the loss.
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "beta": _number("beta", "above 0", lambda x: x > 0),
    "transform": transforms.parse,
    "loss": _word("loss", losses.REGRESSION),
    "gamma_beta_ratio": _number("gamma_beta_ratio", "finite", math.isfinite),
    "kl_strength": _number("kl_strength", "at least 0", lambda x: x >= 0),
    "clip_low": _number("clip_low", "above 0, at most 1", lambda x: 0 < x <= 1),
    "clip_high": _number("clip_high", "above 0", lambda x: x > 0),
    "token_average": _word("token_average", token_objectives.AVERAGES),
    "token_limit": _number("token_limit", "at least 1", lambda x: x >= 1),
    "correction_cap": _number("correction_cap", "at least 0", lambda x: x >= 0),
    "value_coefficient": _number("value_coefficient", "at least 0", lambda x: x >= 0),
    "value_clip": _number("value_clip", "at least 0", lambda x: x >= 0),
}


def make_objective(name: str, length: Length = PLAIN, **options: Any) -> BoundObjective:
    """The loss of an objective with its options bound.

    Args:
      name: a key of `OBJECTIVES`.
      length: the uses of completion lengths.
      options: a value for each of the objective's `options`, as a config has it: a transform by its name.

    Raises:
      UserError: unknown name, transform or loss, a number outside its bounds, or a use of length that the objective
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
    loss = partial(objective.loss, **bound)
    if objective.clipped is None:
        return loss
    clips = {option: bound[option] for option in ("clip_low", "clip_high")}
    return TokenLoss(loss, partial(objective.clipped, **clips))
