"""What an objective is: what it reads, what it returns, and the facts about it that others need."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.per_token import PerToken


class LogProbs(NamedTuple):
    """log π_θ in nats, for each completion and for each of its tokens.

    The completions of a pair are neighbours, the one with the higher reward first.
    """

    completion: Array  # [..., S], summed over tokens
    token: Array  # [..., L], of the token after each position; 0 where nothing is predicted
    segment: Array  # [..., L], int32: 1 + the slot of the position's completion, 0 for prompts and padding
    value: Array | None = None  # [..., L], float32, of the value head before each token; None without one


Losses = tuple[Array, Array]  # losses and weights, [..., S] each
LossFunction = Callable[[LogProbs, PerCompletion], Losses]


class TokenLoss(NamedTuple):
    """The loss of an objective of tokens, with its options bound.

    Attributes:
      loss: (log_probs, c, t) -> (losses, weights), [..., S] each.
      clipped: (log_probs, c, t) -> where the clipping of the ratio takes a token's gradient away, bool [..., L].
    """

    loss: Callable[[LogProbs, PerCompletion, PerToken], Losses]
    clipped: Callable[[LogProbs, PerCompletion, PerToken], Array]


BoundObjective = LossFunction | TokenLoss


class Objective(NamedTuple):
    """A loss with the facts that data, checks and reports need about it.

    Attributes:
      loss: (log_probs, c, **options) -> (losses, weights), [..., S] each; with t after c if it is one of tokens.
      loss_unit: of the loss, for reports; `{loss}` stands for the kind of regression.
      options: names of the loss's keyword arguments, `length` aside; keys of `objectives.OPTIONS`.
      pairwise: it compares the two completions of a pair.
      needs_reference: it reads log π_ref.
      ranked: it regresses on the calibrated target f(R_q) − β log Z, from quantiles and log Z.
      needs_rewards: it reads rewards, or ranks by them; to others the order of a pair is enough.
      drops_ties: it learns nothing from pairs of equal reward.
      length_normalisable: it takes a `Length` that is `normalised`.
      length_divisible: it takes a `Length` that `divides_loss`.
      clipped: of an objective of tokens, (log_probs, c, t, clip_low=, clip_high=) -> see `TokenLoss`.
      on_policy_only: it is right only for completions that π_old sampled a few updates ago.
      advantage: which one it reads in `PerToken.advantage`: that of a group ("group", "leave_one_out"), the return from
        the token on ("return"), or that of a value head ("gae"); None if it reads none. See `advantages`.
      kl_in_reward: the advantage has the KL to the reference in it, and the loss has not.
      needs_value: it trains a value head.
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
    clipped: Callable[..., Array] | None = None
    on_policy_only: bool = False
    advantage: str | None = None
    kl_in_reward: bool = False
    needs_value: bool = False

    @property
    def tokenwise(self) -> bool:
        """It reads numbers of tokens, `PerToken`."""
        return self.clipped is not None
