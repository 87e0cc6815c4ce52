"""Objectives as functions of the log-probabilities of completions.

Every function is elementwise: inputs broadcast, nothing is reduced, and the caller weights and sums the losses.
Log-probabilities are natural logarithms, summed over a completion's tokens. A log-ratio is log pi_theta(y|x) -
log pi_ref(y|x).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.errors import UserError
from qrpo_jax.transforms import Transform, published

REGRESSION = {"mse": jnp.square, "mae": jnp.abs}


def length_normalised_beta(beta: ArrayLike, length: ArrayLike, cap: float = math.inf) -> Array:
    """beta of each completion, beta_i = min(beta / length, cap), as in the Apertus variant of QRPO.

    beta_i times the log-ratio is then beta times the mean log-ratio per token. log Z must be taken at beta_i.

    Args:
      beta: > 0, in units of the transformed reward times tokens.
      length: [...], tokens of the completion; 0 (an empty slot) counts as 1.
      cap: > 0, the largest beta_i; without it, short completions hardly move away from the reference.

    Returns:
      [...], in units of the transformed reward.

    >>> length_normalised_beta(5.0, jnp.asarray([20, 100]), cap=0.1).tolist()
    [0.10000000149011612, 0.05000000074505806]
    """
    return jnp.minimum(jnp.asarray(beta) / jnp.maximum(length, 1), cap)


def calibrated_target(
    quantile: Array, beta: ArrayLike, transform: Transform, parity: bool = False, log_z: ArrayLike | None = None
) -> Array:
    """f(R_q) - beta log Z(beta), the regression target of beta times the log-ratio.

    At the optimum both are equal: f(R_q) - beta log Z = beta log pi*/pi_ref (arXiv 2507.08068).

    Args:
      quantile: [...], quantile rewards in [0, 1], clamped where f needs it (`quantiles.clamp`).
      beta: > 0, in units of the transformed reward; one number or one per completion.
      transform: f and log Z.
      parity: use log Z of the authors' code (`transforms.published`), for comparisons with that code.
      log_z: [...], log Z of each completion; by default the transform's, see `partition` for others.

    Returns:
      [...], in units of the transformed reward and the dtype of f(quantile).

    >>> from qrpo_jax import transforms
    >>> round(float(calibrated_target(1.0, 0.1, transforms.identity)), 4)
    0.2303
    """
    transform = published(transform) if parity else transform
    transformed = transform.apply(jnp.asarray(quantile))
    # The dtype of f(quantile) throughout: a beta of another dtype neither widens nor narrows the target.
    beta = jnp.asarray(beta).astype(transformed.dtype)
    constant = transform.log_z(beta) if log_z is None else jnp.asarray(log_z).astype(transformed.dtype)
    return transformed - beta * constant


def qrpo(
    log_prob: Array,
    reference_log_prob: Array,
    quantile: Array,
    *,
    beta: ArrayLike,
    transform: Transform,
    loss: str = "mse",
    parity: bool = False,
    log_z: ArrayLike | None = None,
) -> Array:
    """Quantile Reward Policy Optimization: (f(R_q) - beta log Z - beta log-ratio)^2 (arXiv 2507.08068).

    A pointwise loss for completions of any distribution; it is zero exactly at the optimum pi_ref e^{f(R_q)/beta} / Z.

    Args:
      log_prob: [...], log pi_theta(y|x).
      reference_log_prob: [...], log pi_ref(y|x).
      quantile: [...], quantile rewards, clamped where f needs it.
      beta: > 0, KL strength in units of the transformed reward; one number or one per completion.
      transform: f and log Z, see `transforms`.
      loss: a key of `REGRESSION`: "mse" squares the residual, "mae" takes its absolute value.
      parity: see `calibrated_target`.
      log_z: [...], see `calibrated_target`.

    Returns:
      [...], a loss per completion.

    Raises:
      UserError: unknown `loss`.

    >>> from qrpo_jax import transforms
    >>> round(float(qrpo(-3.0, -5.0, 1.0, beta=0.1, transform=transforms.identity)), 4)
    0.0009
    """
    if loss not in REGRESSION:
        raise UserError(f"loss is {loss!r}; allowed: {', '.join(sorted(REGRESSION))}", about="loss")
    target = calibrated_target(quantile, beta, transform, parity, log_z)
    return REGRESSION[loss](target - beta * (log_prob - reference_log_prob))


def dpo(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    reference_chosen_log_prob: Array,
    reference_rejected_log_prob: Array,
    *,
    beta: ArrayLike,
) -> Array:
    """Direct Preference Optimization: -log sigmoid(beta (D_w - D_l)), D the log-ratios (arXiv 2305.18290, equation 7).

    Args:
      chosen_log_prob: [...], log pi_theta of each pair's chosen completion w.
      rejected_log_prob: [...], log pi_theta of the rejected completion l.
      reference_chosen_log_prob: [...], log pi_ref of the chosen completion.
      reference_rejected_log_prob: [...], log pi_ref of the rejected completion.
      beta: > 0, KL strength.

    Returns:
      [...], a loss per pair.

    >>> round(float(dpo(-3.0, -4.0, -3.0, -4.0, beta=0.1)), 4)
    0.6931
    """
    chosen_log_ratio = chosen_log_prob - reference_chosen_log_prob
    rejected_log_ratio = rejected_log_prob - reference_rejected_log_prob
    return -jax.nn.log_sigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def rebel(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    reference_chosen_log_prob: Array,
    reference_rejected_log_prob: Array,
    chosen_reward: Array,
    rejected_reward: Array,
    *,
    beta: ArrayLike,
) -> Array:
    """REBEL: ((R_w - R_l) / beta - (D_w - D_l))^2, D the log-ratios (arXiv 2404.16767).

    Args:
      chosen_log_prob: [...], log pi_theta of each pair's chosen completion w.
      rejected_log_prob: [...], log pi_theta of the rejected completion l.
      reference_chosen_log_prob: [...], log pi_ref of the chosen completion.
      reference_rejected_log_prob: [...], log pi_ref of the rejected completion.
      chosen_reward: [...], raw reward of the chosen completion.
      rejected_reward: [...], raw reward of the rejected completion.
      beta: > 0, KL strength in units of the raw reward.

    Returns:
      [...], a loss per pair.

    >>> float(rebel(-3.0, -4.0, -4.0, -4.0, 1.0, 0.5, beta=0.5))
    0.0
    """
    chosen_log_ratio = chosen_log_prob - reference_chosen_log_prob
    rejected_log_ratio = rejected_log_prob - reference_rejected_log_prob
    return jnp.square((chosen_reward - rejected_reward) / beta - (chosen_log_ratio - rejected_log_ratio))


def simpo(
    chosen_log_prob: Array,
    rejected_log_prob: Array,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    beta: ArrayLike,
    gamma_beta_ratio: ArrayLike,
) -> Array:
    """SimPO: -log sigmoid(beta (log p_w / L_w - log p_l / L_l - gamma / beta)), reference-free (arXiv 2405.14734).

    Args:
      chosen_log_prob: [...], log p_w = log pi_theta of each pair's chosen completion w.
      rejected_log_prob: [...], log p_l = log pi_theta of the rejected completion l.
      chosen_length: [...], L_w, tokens of the chosen completion.
      rejected_length: [...], L_l, tokens of the rejected completion.
      beta: > 0, scale of the length-normalised margin.
      gamma_beta_ratio: gamma / beta, the target margin, in nats per token.

    Returns:
      [...], a loss per pair.

    >>> round(float(simpo(-4.0, -6.0, 4, 3, beta=1.0, gamma_beta_ratio=1.0)), 4)
    0.6931
    """
    # Integer lengths could make the quotient wider than the log-probabilities.
    chosen_log_prob, rejected_log_prob = jnp.asarray(chosen_log_prob), jnp.asarray(rejected_log_prob)
    chosen_mean = chosen_log_prob / jnp.asarray(chosen_length).astype(chosen_log_prob.dtype)
    rejected_mean = rejected_log_prob / jnp.asarray(rejected_length).astype(rejected_log_prob.dtype)
    return -jax.nn.log_sigmoid(beta * (chosen_mean - rejected_mean - gamma_beta_ratio))


def sft(log_prob: Array) -> Array:
    """Supervised fine-tuning: the negative log-likelihood -log pi_theta(y|x).

    Args:
      log_prob: [...], log pi_theta(y|x).

    Returns:
      [...], a loss per completion.

    >>> sft(-2.5)
    2.5
    """
    return -log_prob


# Which completion of a pair a pointwise loss is taken on: weight of the chosen one; None tosses a coin a pair.
SELECTORS = {"both": 0.5, "chosen": 1.0, "rejected": 0.0, "random": None}


def selector_weights(selector: str, shape: tuple[int, ...], key: Array | None = None) -> tuple[Array, Array]:
    """Weights (w_chosen, w_rejected) of a pair's two losses.

    A pair's loss is w_chosen loss_chosen + w_rejected loss_rejected. The published code has half of
    it where it selects one completion: there a weight is 1/2 or 0, here they add up to 1.

    Args:
      selector: "both" (1/2, 1/2), "chosen" (1, 0), "rejected" (0, 1), or "random", one of the two
        by a fair coin for each pair.
      shape: of the pairs.
      key: PRNG key, for "random".

    Returns:
      Two arrays of that shape, float32 (every weight is exact in it), adding up to 1.

    Raises:
      ValueError: unknown selector, or no key for "random".

    >>> chosen, rejected = selector_weights("both", (2,))
    >>> chosen.tolist(), rejected.tolist()
    ([0.5, 0.5], [0.5, 0.5])
    """
    if selector not in SELECTORS:
        raise ValueError(f"unknown selector {selector!r}: set the selector to one of {sorted(SELECTORS)}")
    weight = SELECTORS[selector]
    if weight is not None:
        chosen = jnp.full(shape, weight, jnp.float32)
    elif key is not None:
        chosen = jax.random.bernoulli(key, shape=shape).astype(jnp.float32)
    else:
        raise ValueError(
            "selector 'random' tosses a coin for each pair and needs a key: pass key, or set "
            f"another selector of {sorted(SELECTORS)}"
        )
    return chosen, 1 - chosen
