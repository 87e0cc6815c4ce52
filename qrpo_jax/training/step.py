"""One update: the only place that differentiates, sums over the global batch, divides, and moves parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.per_completion import NEUTRAL, PerCompletion
from qrpo_jax.data.per_token import NOTHING, PerToken
from qrpo_jax.model.compute import DEFAULT, Compute
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.log_probs import log_probs_and_values, sum_by_completion
from qrpo_jax.model.lora import join
from qrpo_jax.training.objective import BoundObjective, LogProbs, TokenLoss
from qrpo_jax.training.optimizer import apply_updates, wide
from qrpo_jax.training.state import State
from qrpo_jax.training.token_diagnostics import token_diagnostics
from qrpo_jax.training.token_objectives import at_tokens


class LogProbSettings(NamedTuple):
    """How log-probabilities are computed; the same for policy and reference, or their ratio would drift.

    Attributes:
      temperature: divides the logits.
      vocab_chunk: tokens of the vocabulary whose logits exist at a time; 0 is `token_log_probs.CHUNK`.
      compute: how the decoder is computed.
    """

    temperature: float = 1.0
    vocab_chunk: int = 0
    compute: Compute = DEFAULT


# Diagnostics of one batch as (sum, count) pairs: they add up over microbatches as the loss does.
Sums = dict[str, tuple[Array, Array]]


def batch_log_probs(graph: nnx.GraphDef, parameters: Parameters, batch: Batch, settings: LogProbSettings) -> LogProbs:
    """log π of the batch's completions and of their targets, float32; 0 for empty slots and without a target.

    With values before the targets if the parameters have a value head. It is called inside and outside of a step.
    """
    log_probs_BxL, values_BxL = log_probs_and_values(
        graph,
        parameters,
        batch.tokens_BxL,
        batch.layout,
        batch.targets_BxL,
        temperature=settings.temperature,
        vocab_chunk=settings.vocab_chunk,
        compute=settings.compute,
    )
    segments_BxL = batch.layout.segments_BxL
    log_probs_BxS = sum_by_completion(log_probs_BxL, segments_BxL, batch.present_BxS.shape[1])
    return LogProbs(log_probs_BxS, log_probs_BxL, segments_BxL, values_BxL)


def completion_log_probs(graph: nnx.GraphDef, parameters: Parameters, batch: Batch, settings: LogProbSettings) -> Array:
    """log π(y|x) of every completion of the batch, float32 [B, S]; prompts excluded, empty slots 0."""
    return batch_log_probs(graph, parameters, batch, settings).completion


def used_completions(batch: Batch) -> Array:
    """The completions that have a part in the loss, bool [B, S]."""
    return batch.present_BxS & (batch.completions_BxS.weight > 0)


def numbers_in_use(batch: Batch) -> PerCompletion:
    """The batch's numbers for the objective, [B, S]; those of completions without weight are `NEUTRAL`.

    Masking the loss alone would not do: the gradient of a masked loss is 0 times its slope, and 0 times NaN is NaN.
    """
    used_BxS = used_completions(batch)
    return jax.tree.map(lambda x_BxS, neutral: jnp.where(used_BxS, x_BxS, neutral), batch.completions_BxS, NEUTRAL)


class TokensInUse(NamedTuple):
    """What an objective of tokens reads: nothing but zeros outside of completions with weight.

    Attributes:
      used_BxL: bool, the positions that predict tokens of such completions.
      log_probs, numbers: of the policy, and of the batch.
    """

    used_BxL: Array
    log_probs: LogProbs
    numbers: PerToken


def tokens_in_use(batch: Batch, log_probs: LogProbs) -> TokensInUse | None:
    """The numbers of tokens of a batch; None if it has none. See `numbers_in_use`."""
    if batch.per_token_BxL is None:
        return None
    used_BxL = at_tokens(used_completions(batch), log_probs.segment)
    numbers = jax.tree.map(lambda x, nothing: jnp.where(used_BxL, x, nothing), batch.per_token_BxL, NOTHING)
    # A policy far from `NOTHING` would have an infinite ratio to it.
    token, value = jax.tree.map(lambda x: jnp.where(used_BxL, x, 0.0), (log_probs.token, log_probs.value))
    return TokensInUse(used_BxL, log_probs._replace(token=token, value=value), numbers)


class Prediction(NamedTuple):
    """What QRPO asks of the completions of a batch, [B, S] each.

    Attributes:
      target_BxS: f(R_q) − β log Z.
      log_ratio_BxS: log π/π_ref at the optimum, nats: the target over β.
    """

    target_BxS: Array
    log_ratio_BxS: Array


def diagnostics(batch: Batch, log_prob_BxS: Array, predicted: Prediction | None) -> Sums:
    """Figures of a batch besides its loss, over the completions present."""
    c, present_BxS, groups_BxL = batch.completions_BxS, batch.present_BxS, batch.layout.groups_BxL
    log_ratio_BxS = log_prob_BxS - c.reference_log_prob

    def over(values_BxS: Array, among_BxS: Array) -> tuple[Array, Array]:
        return jnp.sum(jnp.where(among_BxS, values_BxS, 0.0)), jnp.sum(among_BxS).astype(jnp.float32)

    sums = {
        "reward": over(c.reward, present_BxS),
        "quantile": over(c.quantile, present_BxS),
        "tied_comparisons": over(c.ties, present_BxS),
        "log_prob": over(log_prob_BxS, present_BxS),
        "log_ratio_high": over(log_ratio_BxS, present_BxS & c.high),
        "log_ratio_low": over(log_ratio_BxS, present_BxS & ~c.high),
        "length": over(c.length.astype(jnp.float32), present_BxS),
        "padding": (jnp.sum(groups_BxL == 0).astype(jnp.float32), jnp.float32(groups_BxL.size)),
    }
    if predicted is not None:
        sums["calibrated_target"] = over(predicted.target_BxS, present_BxS)
        sums["predicted_log_ratio_high"] = over(predicted.log_ratio_BxS, present_BxS & c.high)
        sums["predicted_log_ratio_low"] = over(predicted.log_ratio_BxS, present_BxS & ~c.high)
    return sums


def means(sums: Sums) -> dict[str, Array]:
    """The figures of `diagnostics`; where no completion counts (no low-reward one, say), the mean is NaN and not 0."""
    return {name: jnp.where(b > 0, a / jnp.maximum(b, 1.0), jnp.nan) for name, (a, b) in sums.items()}


class BatchLoss(NamedTuple):
    """How the loss of a batch is computed, for training and for held-out rows alike.

    Attributes:
      graph: of the policy.
      objective: from log-probs and numbers of completions, or of tokens, to losses and weights, see `objectives`.
      settings: how log-probs are computed.
      predict: what QRPO asks of a batch, for its metrics.
      reference_graph: of the reference policy, whose parameters are `frozen`. With it log π_ref is computed, and the
        batch's is ignored.
      has_reference: numbers of tokens have log π_ref, from the batch or by `reference_graph`.
    """

    graph: nnx.GraphDef
    objective: BoundObjective
    settings: LogProbSettings
    predict: Callable[[Batch], Prediction] | None = None
    reference_graph: nnx.GraphDef | None = None
    has_reference: bool = True

    def with_reference(self, frozen: Parameters, batch: Batch) -> Batch:
        """The batch with log π_ref, of completions and of tokens if it has numbers of those."""
        if self.reference_graph is None:
            return batch
        log_probs = batch_log_probs(self.reference_graph, frozen, batch, self.settings)
        if (t := batch.per_token_BxL) is not None:
            batch = batch._replace(per_token_BxL=t._replace(reference_log_prob=log_probs.token))
        return batch.with_numbers(reference_log_prob=log_probs.completion)

    def sums(self, parameters: Parameters, frozen: Parameters, batch: Batch) -> tuple[Array, Any]:
        """Σ loss·weight, and with it Σ weight, diagnostics, and each completion's loss; of a batch with log π_ref."""
        log_probs = batch_log_probs(self.graph, join(frozen, parameters), batch, self.settings)
        sums = diagnostics(batch, log_probs.completion, self.predict(batch) if self.predict else None)
        c, tokens = numbers_in_use(batch), tokens_in_use(batch, log_probs)
        if tokens is not None:
            sums |= token_diagnostics(
                tokens.log_probs,
                c,
                tokens.numbers,
                tokens.used_BxL,
                self.objective,
                has_reference=self.has_reference,
            )
        if not isinstance(self.objective, TokenLoss):
            loss_BxS, weight_BxS = self.objective(log_probs, c)
        elif tokens is not None:
            loss_BxS, weight_BxS = self.objective.loss(tokens.log_probs, c, tokens.numbers)
        else:
            raise ValueError("an objective of tokens needs a batch with their numbers: Batch.per_token_BxL")
        loss_BxS = jnp.where(weight_BxS > 0, loss_BxS, 0.0)
        return jnp.sum(loss_BxS * weight_BxS), (jnp.sum(weight_BxS), sums, loss_BxS)


def make_step(
    graph: nnx.GraphDef,
    objective: BoundObjective,
    optimizer: optax.GradientTransformation,
    *,
    log_prob_settings: LogProbSettings,
    microbatches: int = 1,
    predict: Callable[[Batch], Prediction] | None = None,
    reference_graph: nnx.GraphDef | None = None,
    has_reference: bool = True,
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """A pure function `(state, batch, frozen) -> (state, metrics)`, to be jitted with shardings.

    `frozen` are the parameters of `graph` that are not trained: the base of LoRA's adapters, or none (the default). No
    gradient with respect to them is computed.

    The gradient is that of Σ loss·weight / Σ weight over the *global* batch: microbatches add up numerators and
    the division comes last, so neither their number nor uneven weights change the result.

    Args:
      objective: from log-probs and numbers of completions, or of tokens, to losses and weights, see `objectives`.
      microbatches: B must be a multiple of it; each needs the memory of B / microbatches rows.
      predict, reference_graph, has_reference: as in `BatchLoss`.
    """
    batch_loss = BatchLoss(graph, objective, log_prob_settings, predict, reference_graph, has_reference)

    def evaluate(parameters: Parameters, frozen: Parameters, batch: Batch) -> tuple[Any, Array]:
        """Sums over a microbatch (gradient, loss, weight, diagnostics), and each completion's loss."""
        batch = batch_loss.with_reference(frozen, batch)
        value_and_gradient = jax.value_and_grad(batch_loss.sums, has_aux=True)
        (loss, (weight, sums, loss_BxS)), gradient = value_and_gradient(parameters, frozen, batch)
        return (wide(gradient), loss, weight, sums), loss_BxS

    def accumulate(parameters: Parameters, frozen: Parameters, batch: Batch) -> tuple[Any, Array]:
        if microbatches == 1:
            return evaluate(parameters, frozen, batch)
        # Row b goes to microbatch b mod k, so that every device keeps its own rows.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        shapes, _ = jax.eval_shape(evaluate, parameters, frozen, jax.tree.map(lambda x: x[0], parts))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: Any, part: Batch) -> tuple[Any, Array]:
            def computed() -> tuple[Any, Array]:
                one, loss_BxS = evaluate(parameters, frozen, part)
                return jax.tree.map(jnp.add, total, one), loss_BxS

            # A batch with few tokens leaves its last parts empty, and these cost nothing.
            filled = jnp.any(part.present_BxS)
            return jax.lax.cond(filled, computed, lambda: (total, jnp.zeros(part.present_BxS.shape)))

        total, loss_KxBxS = jax.lax.scan(add, zero, parts)
        return total, loss_KxBxS.swapaxes(0, 1).reshape(batch.present_BxS.shape)

    def step(state: State, batch: Batch, frozen: Parameters | None = None) -> tuple[State, dict[str, Array]]:
        total, loss_BxS = accumulate(state.parameters, frozen or {}, batch)
        gradient, loss, weight, sums = total
        weight = jnp.maximum(weight, 1e-30)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        updates, new_optimizer = optimizer.update(gradient, state.optimizer, wide(state.parameters))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        new = State(state.step + 1, apply_updates(state.parameters, updates, key), new_optimizer, state.key)
        metrics = means(sums) | {"loss": loss / weight, "gradient_norm": optax.global_norm(gradient)}
        empty, positions = sums["padding"]
        metrics |= {"update_norm": optax.global_norm(updates), "completions": sums["reward"][1]}
        metrics |= {"tokens": positions - empty}
        return new, metrics | {"losses_BxS": loss_BxS}

    return step
