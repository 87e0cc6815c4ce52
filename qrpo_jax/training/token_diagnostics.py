"""Figures of tokens that the policy sampled itself: how far it has moved since, and what clipping does."""

import jax.numpy as jnp
from jax import Array

from qrpo_jax import policy_gradients
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.training.objective import BoundObjective, LogProbs, TokenLoss


def token_diagnostics(
    log_probs: LogProbs,
    c: PerCompletion,
    t: PerToken,
    used: Array,
    objective: BoundObjective,
    *,
    has_reference: bool = True,
) -> dict[str, tuple[Array, Array]]:
    """Sums over the tokens of completions with a weight, and their number.

    ratio_mean: π_θ / π_old. kl_to_old: KL(π_old ‖ π_θ). kl_to_reference: KL(π_θ ‖ π_ref), as far as samples of π_old
    tell. Both by the k3 estimate, in nats a token. entropy_estimate: -log π_old, nats a token. clip_share: tokens whose
    gradient is clipped away. value_error: squared error of the value head, in squared units of the return.

    Args:
      log_probs, c, t: 0 or neutral at what is not used.
      used: [..., L], the tokens that count.
      has_reference: log π_ref was computed; without it there is no kl_to_reference.
    """
    values = {
        "ratio_mean": policy_gradients.ratio(log_probs.token, t.old_log_prob),
        # E_old[ρ - 1 - log ρ] is exactly the KL from π_old; the other direction would need samples of π_θ.
        "kl_to_old": policy_gradients.k3(t.old_log_prob, log_probs.token),
        "entropy_estimate": -t.old_log_prob,
    }
    if has_reference:
        values["kl_to_reference"] = policy_gradients.k3(log_probs.token, t.reference_log_prob)
    if isinstance(objective, TokenLoss):
        values["clip_share"] = objective.clipped(log_probs, c, t).astype(jnp.float32)
    if log_probs.value is not None:
        values["value_error"] = jnp.square(log_probs.value - t.target_value)
    count = jnp.sum(used).astype(jnp.float32)
    return {name: (jnp.sum(jnp.where(used, each, 0.0)), count) for name, each in values.items()}
