"""Credit: what each token of a rollout is worth, by the advantage that the objective wants."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax import advantages, policy_gradients
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.on_policy.rollout import Rollout
from qrpo_jax.training.objective import Objective


class Sampled(NamedTuple):
    """The K completions of a rollout, of at most T tokens, and their P groups of at most n; float64.

    Attributes:
      rewards_Pxn: NaN where a group has fewer.
      at_K: place of each completion in the flat table of groups.
      lengths_K: tokens of each completion.
      old_KxT, reference_KxT, value_KxT: as in `PerToken`; 0 behind the end of a completion.
    """

    rewards_Pxn: np.ndarray
    at_K: np.ndarray
    lengths_K: np.ndarray
    old_KxT: np.ndarray
    reference_KxT: np.ndarray
    value_KxT: np.ndarray

    @property
    def rewards_K(self) -> np.ndarray:
        return self.rewards_Pxn.reshape(-1)[self.at_K]

    def grouped(self, values_K: np.ndarray) -> np.ndarray:
        """Numbers of completions by group, [P, n]; NaN where a group has fewer."""
        return _grouped(values_K, self.at_K, self.rewards_Pxn.shape)


Credit = tuple[np.ndarray, np.ndarray]  # advantages and target values of tokens, [K, T] each


def token_numbers(rollout: Rollout, objective: Objective, options: Any, *, beta: float) -> PerToken:
    """The numbers of all tokens of a rollout, one completion after the other, float32 each.

    Completions that no batch holds, because they are too long, have no part in what others get; their numbers are 0.

    Args:
      options: with advantage_scale, correction_cap, discount, gae_lambda and whiten, as in section `train`.
      beta: strength of the KL term that some objectives have in the reward.
    """
    sampled, old = table_of(rollout), rollout.tokens["old"]
    in_reward = beta if objective.kl_in_reward else 0.0
    advantage_KxT, target_KxT = ADVANTAGES[objective.advantage](sampled, options, in_reward)
    inside_KxT = advantages.inside(sampled.lengths_K, sampled.old_KxT.shape[1])
    correction = np.ones_like(old)
    if options.correction_cap:
        found = policy_gradients.truncated_weight(old, rollout.tokens["sampler"], cap=options.correction_cap)
        correction = np.asarray(found)
    columns = PerToken(
        old_log_prob=old,
        reference_log_prob=rollout.tokens.get("reference", old),
        correction=correction,
        advantage=advantage_KxT[inside_KxT],
        value=rollout.tokens.get("value", np.zeros_like(old)),
        target_value=target_KxT[inside_KxT],
    )
    return PerToken(*(np.nan_to_num(column).astype(np.float32) for column in columns))


def table_of(rollout: Rollout) -> Sampled:
    """The completions of a rollout as tables."""
    sizes = [len(row.completions) for row in rollout.rows]
    shape = len(sizes), max(sizes, default=0)
    at_K = np.concatenate([np.zeros(0, int), *(i * shape[1] + np.arange(n) for i, n in enumerate(sizes))])
    completions = [c for row in rollout.rows for c in row.completions]
    lengths_K = np.asarray([len(c.tokens) for c in completions], int)
    inside_KxT = advantages.inside(lengths_K, int(lengths_K.max(initial=0)))

    def padded(values: np.ndarray) -> np.ndarray:
        table = np.zeros(inside_KxT.shape)
        table[inside_KxT] = values
        return table

    old = rollout.tokens["old"]
    others = (rollout.tokens.get("reference", old), rollout.tokens.get("value", np.zeros_like(old)))
    rewards_Pxn = _grouped(np.asarray([c.reward for c in completions], float), at_K, shape)
    return Sampled(rewards_Pxn, at_K, lengths_K, padded(old), *map(padded, others))


def _grouped(values_K: np.ndarray, at_K: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    values = np.full(shape[0] * shape[1], np.nan)
    values[at_K] = values_K
    return values.reshape(shape)


def _nothing(sampled: Sampled, options: Any, beta: float) -> Credit:
    """Objectives of completions look at no token; the numbers are for figures."""
    return np.zeros_like(sampled.old_KxT), np.zeros_like(sampled.old_KxT)


def _of_group(sampled: Sampled, options: Any, beta: float) -> Credit:
    found = advantages.group_normalised(sampled.rewards_Pxn, scale=options.advantage_scale)
    return _alike(sampled, found)


def _leave_one_out(sampled: Sampled, options: Any, beta: float) -> Credit:
    log_ratio_K = (sampled.old_KxT - sampled.reference_KxT).sum(-1)
    rewards_Pxn = sampled.grouped(sampled.rewards_K - beta * log_ratio_K)
    return _alike(sampled, advantages.leave_one_out(rewards_Pxn))


def _alike(sampled: Sampled, advantage_Pxn: np.ndarray) -> Credit:
    """All tokens of a completion have its advantage."""
    advantage_KxT = np.broadcast_to(advantage_Pxn.reshape(-1)[sampled.at_K][:, None], sampled.old_KxT.shape)
    return advantage_KxT, np.zeros_like(sampled.old_KxT)


def _returns(sampled: Sampled, options: Any, beta: float) -> Credit:
    found_KxT = advantages.returns(_token_rewards(sampled, beta), sampled.lengths_K, discount=options.discount)
    return _whitened(sampled, found_KxT, options), np.zeros_like(found_KxT)


def _gae(sampled: Sampled, options: Any, beta: float) -> Credit:
    found_KxT, target_KxT = advantages.gae(
        _token_rewards(sampled, beta),
        sampled.value_KxT,
        sampled.lengths_K,
        discount=options.discount,
        gae_lambda=options.gae_lambda,
    )
    return _whitened(sampled, found_KxT, options), target_KxT


def _token_rewards(sampled: Sampled, beta: float) -> np.ndarray:
    return advantages.token_rewards(
        sampled.rewards_K, sampled.old_KxT, sampled.reference_KxT, sampled.lengths_K, beta=beta
    )


def _whitened(sampled: Sampled, values_KxT: np.ndarray, options: Any) -> np.ndarray:
    return advantages.whiten(values_KxT, sampled.lengths_K) if options.whiten else values_KxT


ADVANTAGES: dict[str | None, Callable[[Sampled, Any, float], Credit]] = {
    None: _nothing,
    "group": _of_group,
    "leave_one_out": _leave_one_out,
    "return": _returns,
    "gae": _gae,
}
