"""Objectives of tokens that the policy sampled itself: GRPO and its variants, RLOO, REINFORCE++ and PPO.

Their losses are elementwise functions of tokens (`policy_gradients`), averaged here over the tokens of a completion.
The step averages over completions by their weights. Positions of prompts, of padding and of completions without weight
must hold `per_token.NOTHING`, and 0 for log π_θ: a masked infinity has a gradient of NaN.
"""

import jax.numpy as jnp
from jax import Array

from qrpo_jax import policy_gradients
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.model.log_probs import sum_by_completion
from qrpo_jax.training.objective import LogProbs, Losses

AVERAGES = ("completion", "token", "constant")


def grpo(
    log_probs: LogProbs,
    c: PerCompletion,
    t: PerToken,
    *,
    kl_strength: float,
    clip_low: float,
    clip_high: float,
    token_average: str,
    token_limit: int,
) -> Losses:
    """Clipped surrogate of each token plus kl_strength, β, times the k3 estimate of its KL to the reference.

    token_average says what a completion's loss is: "completion", the mean over its tokens (GRPO); "token", the same
    with its length as a weight, so that all tokens of the batch weigh the same (DAPO); "constant", the sum over its
    tokens divided by `token_limit`, the length that no completion exceeds (Dr. GRPO).
    """
    surrogate = token_surrogate(log_probs, t, clip_low, clip_high)
    kl = policy_gradients.k3(log_probs.token, t.reference_log_prob)
    total = sum_by_completion(surrogate + kl_strength * kl, log_probs.segment, c.weight.shape[-1])
    if token_average == "constant":
        return total / token_limit, c.weight
    tokens = token_counts(c, total)
    return total / tokens, c.weight * tokens if token_average == "token" else c.weight


def reinforce_pp(log_probs: LogProbs, c: PerCompletion, t: PerToken, *, clip_low: float, clip_high: float) -> Losses:
    """Clipped surrogate, averaged over all tokens of the batch."""
    return token_mean(token_surrogate(log_probs, t, clip_low, clip_high), log_probs, c)


def ppo(
    log_probs: LogProbs,
    c: PerCompletion,
    t: PerToken,
    *,
    clip_low: float,
    clip_high: float,
    value_coefficient: float,
    value_clip: float,
) -> Losses:
    """Clipped surrogate plus a multiple of the value loss, averaged over all tokens of the batch."""
    if log_probs.value is None:
        raise ValueError("PPO needs the values of a value head: LogProbs.value")
    value = policy_gradients.value_loss(log_probs.value, t.value, t.target_value, clip=value_clip)
    return token_mean(token_surrogate(log_probs, t, clip_low, clip_high) + value_coefficient * value, log_probs, c)


def rloo(
    log_probs: LogProbs, c: PerCompletion, t: PerToken, *, clip_low: float, clip_high: float, correction_cap: float
) -> Losses:
    """Clipped surrogate of whole completions, each an action with the ratio π_θ(y|x) / π_old(y|x).

    A completion's correction is the product of its tokens', truncated again at the cap (0: no cap), or a thousand
    weights close to 1 could have any product.
    """
    slots = c.weight.shape[-1]
    ratio, advantage = completion_ratio(log_probs, t, slots), completion_advantage(log_probs, c, t)
    correction = jnp.exp(sum_by_completion(jnp.log(t.correction), log_probs.segment, slots))
    if correction_cap:
        correction = jnp.minimum(correction, correction_cap)
    return correction * policy_gradients.clipped_surrogate(ratio, advantage, low=clip_low, high=clip_high), c.weight


def token_clipped(log_probs: LogProbs, c: PerCompletion, t: PerToken, *, clip_low: float, clip_high: float) -> Array:
    """Tokens whose own ratio is clipped, bool [..., L]."""
    ratio = policy_gradients.ratio(log_probs.token, t.old_log_prob)
    return policy_gradients.clip_acts(ratio, t.advantage, low=clip_low, high=clip_high)


def completion_clipped(
    log_probs: LogProbs, c: PerCompletion, t: PerToken, *, clip_low: float, clip_high: float
) -> Array:
    """Tokens of completions whose ratio is clipped, bool [..., L]."""
    ratio, advantage = completion_ratio(log_probs, t, c.weight.shape[-1]), completion_advantage(log_probs, c, t)
    return at_tokens(policy_gradients.clip_acts(ratio, advantage, low=clip_low, high=clip_high), log_probs.segment)


def token_surrogate(log_probs: LogProbs, t: PerToken, low: float, high: float) -> Array:
    """The clipped surrogate of each token times its correction, [..., L]."""
    ratio = policy_gradients.ratio(log_probs.token, t.old_log_prob)
    return t.correction * policy_gradients.clipped_surrogate(ratio, t.advantage, low=low, high=high)


def completion_ratio(log_probs: LogProbs, t: PerToken, slots: int) -> Array:
    """π_θ(y|x) / π_old(y|x), [..., S]."""
    return policy_gradients.ratio(sum_by_completion(log_probs.token - t.old_log_prob, log_probs.segment, slots), 0.0)


def completion_advantage(log_probs: LogProbs, c: PerCompletion, t: PerToken) -> Array:
    """The advantage that all tokens of a completion have, [..., S]."""
    total = sum_by_completion(t.advantage, log_probs.segment, c.weight.shape[-1])
    return total / token_counts(c, total)


def token_mean(loss: Array, log_probs: LogProbs, c: PerCompletion) -> Losses:
    """The mean over each completion's tokens, [..., L] -> [..., S], with its length in its weight."""
    total = sum_by_completion(loss, log_probs.segment, c.weight.shape[-1])
    tokens = token_counts(c, total)
    return total / tokens, c.weight * tokens


def token_counts(c: PerCompletion, like: Array) -> Array:
    """Lengths of completions, [..., S], at least 1."""
    return jnp.maximum(c.length, 1).astype(like.dtype)


def at_tokens(values: Array, segment: Array) -> Array:
    """Whether each position is of one of these completions, bool [..., S] -> [..., L]."""
    slots_S = jnp.arange(1, values.shape[-1] + 1).reshape(*(1 for _ in segment.shape), -1)
    return jnp.any((segment[..., None] == slots_S) & values[..., None, :], axis=-1)
