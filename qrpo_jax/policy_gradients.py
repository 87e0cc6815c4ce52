"""Losses of policy gradients as functions of the log-probabilities of tokens that a policy sampled itself.

Every function is elementwise: inputs broadcast, nothing is reduced, and the caller weights and sums the losses.
Log-probabilities are natural logarithms, of a token given the prompt and the tokens before it, or of a completion.
pi_theta is the policy that is trained, pi_old the one that sampled, pi_ref the reference policy.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def ratio(log_prob: ArrayLike, old_log_prob: ArrayLike) -> Array:
    """The importance ratio rho = pi_theta / pi_old.

    Args:
      log_prob: [...], log pi_theta.
      old_log_prob: [...], log pi_old.

    Returns:
      [...], without a unit; 1 before the first update after sampling.

    >>> round(float(ratio(-1.0, -1.5)), 4)
    1.6487
    """
    return jnp.exp(jnp.asarray(log_prob) - jnp.asarray(old_log_prob))


def clip_acts(ratio: ArrayLike, advantage: ArrayLike, *, low: ArrayLike, high: ArrayLike) -> Array:
    """Where the clipped surrogate is constant: rho > 1 + high with A > 0, or rho < 1 - low with A < 0.

    The policy has then moved as far as one batch of samples lets it, in the direction that the advantage asks for.

    Args:
      ratio: [...], rho.
      advantage: [...], A.
      low, high: as in `clipped_surrogate`.

    Returns:
      [...], bool.

    >>> clip_acts(jnp.asarray([1.5, 1.5, 0.5, 0.5]), jnp.asarray([1.0, -1.0, 1.0, -1.0]), low=0.2, high=0.2).tolist()
    [True, False, False, True]
    """
    ratio, advantage = jnp.asarray(ratio), jnp.asarray(advantage)
    return ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))


def clipped_surrogate(ratio: ArrayLike, advantage: ArrayLike, *, low: ArrayLike, high: ArrayLike) -> Array:
    """Clipped surrogate loss of PPO: -min(rho A, clip(rho, 1 - low, 1 + high) A) (arXiv 1707.06347, equation 7).

    PPO has low = high; DAPO raises `high` alone, "clip-higher", so that rare tokens can gain more (arXiv 2503.14476,
    section 3.1). At rho = 1 its gradient is that of -A log pi_theta, and where `clip_acts` it is 0.

    Args:
      ratio: [...], rho, of a token or of a completion.
      advantage: [...], A, in any unit; the loss has the same.
      low: in (0, 1], how far rho may fall below 1.
      high: > 0, how far rho may rise above 1.

    Returns:
      [...], a loss per ratio.

    >>> clipped_surrogate(jnp.asarray([0.5, 1.1, 1.5]), 2.0, low=0.2, high=0.28).tolist()
    [-1.0, -2.200000047683716, -2.559999942779541]
    """
    # A choice between the two sides and no minimum: at the bounds a minimum has half of each side's gradient.
    ratio = jnp.asarray(ratio)
    bound = jnp.where(jnp.asarray(advantage) > 0, 1 + high, 1 - low).astype(ratio.dtype)
    return -jnp.where(clip_acts(ratio, advantage, low=low, high=high), bound, ratio) * advantage


def k3(log_prob: ArrayLike, reference_log_prob: ArrayLike) -> Array:
    """Estimate of KL(pi_theta || pi_ref) from one sample of pi_theta: e^{-d} - 1 + d, d = log pi_theta - log pi_ref.

    GRPO's KL term (arXiv 2402.03300, equation 4). It is never negative, and its mean over samples of pi_theta is the
    KL: E[e^{-d}] = 1 and E[d] = KL. Its gradient is another matter. With the samples held fixed it is
    E[(1 - e^{-d}) grad log pi_theta], the gradient of the other direction, KL(pi_ref || pi_theta), because
    E[grad log pi_theta] = 0 and E[e^{-d} grad log pi_theta] = E_ref[grad log pi_theta]. That of KL(pi_theta || pi_ref)
    is E[d grad log pi_theta]. The two agree to first order in d, but a reward with one or the other has another
    optimum (docs/on_policy.md). With samples of pi_old, mean and gradient are exact only where rho is 1.

    Args:
      log_prob: [...], log pi_theta.
      reference_log_prob: [...], log pi_ref.

    Returns:
      [...], nats.

    >>> round(float(k3(-1.0, -1.5)), 4)
    0.1065
    """
    difference = jnp.asarray(log_prob) - jnp.asarray(reference_log_prob)
    return jnp.expm1(-difference) + difference


def value_loss(value: ArrayLike, old_value: ArrayLike, target: ArrayLike, *, clip: float) -> Array:
    """PPO's clipped value loss: max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2.

    The clipping is that of the code published with PPO (its paper has the squared error alone): a value that has moved
    by more than `clip` towards the return has no gradient any more.

    Args:
      value: [...], V, in units of the return.
      old_value: [...], V_old, of the value head that was there when the completions were sampled.
      target: [...], R, the return to expect.
      clip: >= 0, in units of the return; 0 does not clip.

    Returns:
      [...], in squared units of the return.

    >>> value_loss(jnp.asarray([0.1, 0.5]), 0.0, 1.0, clip=0.2).tolist()
    [0.4049999713897705, 0.320000022649765]
    """
    value, old_value = jnp.asarray(value), jnp.asarray(old_value)
    error = jnp.square(value - target)
    if not clip:
        return error / 2
    clipped = jnp.square(old_value + jnp.clip(value - old_value, -clip, clip) - target)
    return jnp.where(clipped > error, clipped, error) / 2


def truncated_weight(old_log_prob: ArrayLike, sampler_log_prob: ArrayLike, *, cap: float) -> Array:
    """Truncated importance weight min(pi_old / pi_sampler, cap) (Ionides, doi 10.1198/106186008X320456).

    Sampler and trainer compute the log-probs of the same parameters by different programs. The weight corrects the
    expectation for what they disagree on; its cap bounds the variance, and biases towards what the sampler drew.

    Args:
      old_log_prob: [...], log pi_old as training computes it.
      sampler_log_prob: [...], log-prob with which the sampler drew.
      cap: > 0.

    Returns:
      [...], without a unit.

    >>> [round(float(truncated_weight(-1.0, s, cap=2.0)), 4) for s in (-1.1, -5.0)]
    [1.1052, 2.0]
    """
    return jnp.minimum(ratio(old_log_prob, sampler_log_prob), cap)
