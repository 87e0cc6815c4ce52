"""Loss and log-ratios of held-out rows while a policy trains, in the lines of metrics.jsonl as held_out_NAME.

All processes compute each batch together, in the same order, so none waits for another.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.loader import assemble
from qrpo_jax.devices.mesh import own_rows, place_rows, replicated
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.errors import located
from qrpo_jax.job.job import Job
from qrpo_jax.job.packing import plan_log_probs
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.fit import Visitor
from qrpo_jax.training.step import BatchLoss, Sums

# Of the diagnostics of a batch; the others do not change while the policy does.
SHOWN = (
    *("log_ratio_high", "log_ratio_low", "log_prob"),
    *("predicted_log_ratio_high", "predicted_log_ratio_low"),
)


def held_out_visitor(
    job: Job, examples: Examples, batch_loss: BatchLoss, frozen: Parameters | None, every: int, steps: int
) -> Visitor:
    """Computes the figures of the held-out examples after every so many steps, and after the last one.

    Args:
      frozen: with LoRA the base of the adapters.
    """
    figures = make_figures(job, examples, batch_loss)
    job.say(f"train: {len(np.unique(examples.prompts_C))} prompts are held out of training for their loss")
    return Visitor(
        lambda step: step % every == 0 or step == steps,
        lambda step, parameters: figures(parameters, frozen or {}),
        "evaluate",
    )


def make_figures(
    job: Job, examples: Examples, batch_loss: BatchLoss
) -> Callable[[Parameters, Parameters], dict[str, float]]:
    """A function from the trained and the frozen parameters to the figures of all examples together."""
    mesh = job.mesh
    plan = plan_log_probs(job, mesh, examples.packing_units())
    rows = own_rows(mesh, plan.rows)

    def sums(parameters: Parameters, frozen: Parameters, batch: Batch) -> dict[str, tuple[Array, Array]]:
        loss, (weight, found, _) = batch_loss.sums(parameters, frozen, batch_loss.with_reference(frozen, batch))
        return {"loss": (loss, weight)} | {name: found[name] for name in SHOWN if name in found}

    jitted = jax.jit(sums, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh))
    program = CheckedProgram(jitted, mesh, "the held-out loss of a batch", ("batch_rows", "max_tokens"))

    def figures(parameters: Parameters, frozen: Parameters) -> dict[str, float]:
        parts: list[Sums] = []
        for index in range(plan.steps):
            batch = place_rows(assemble(examples, plan, index, rows), mesh)
            with located(batch_rows="log_probs.batch_rows", max_tokens="pack.max_tokens"):
                parts.append(jax.device_get(program(parameters, frozen, batch)))
        total = {name: np.asarray([part[name] for part in parts], np.float64).sum(0) for name in parts[0]}
        return {f"held_out_{name}": float(a / b) if b > 0 else float("nan") for name, (a, b) in total.items()}

    return figures
