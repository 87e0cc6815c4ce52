"""Log-ratios of the other side over the side that sampled, for estimates of the KL between them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.rows import Row
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.evaluation.kl import LogRatios
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import over_completions
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.log_probs import sum_by_completion
from qrpo_jax.training.step import batch_log_probs

RowLogRatios = Callable[[Parameters, Parameters, list[Row]], list[LogRatios]]


def describes_samples(section: Any) -> bool:
    """Whether log-probs describe what is sampled so: greedy and truncated sampling draw from other distributions."""
    return section.temperature > 0 and section.top_k == 0 and section.top_p == 1 and section.min_p == 0


def make_log_ratios(own: Job, own_side: str, other: Job, other_side: str, *, temperature: float) -> RowLogRatios:
    """A function that computes log-ratios of the completions of rows, packed and computed exactly as in training.

    Args:
      own, own_side: the job that has the shape of the model that sampled, and whether that is its "reference" or its
        trained "policy".
      other, other_side: likewise of the model that is compared with it; its tokenizer is the same.
      temperature: divides the logits of both.

    Returns:
      A function from the parameters of both, and rows, to the log-ratios of each row.
    """
    mesh = own.unit_mesh
    settings = [job.log_prob_settings(mesh)._replace(temperature=temperature) for job in (own, other)]
    graphs = [own.graph(own_side), other.graph(other_side)]

    def of_batch(own_parameters: Parameters, other_parameters: Parameters, batch: Batch) -> tuple[Array, Array]:
        of_own, of_other = (
            batch_log_probs(graph, parameters, batch, one)
            for graph, parameters, one in zip(graphs, (own_parameters, other_parameters), settings, strict=True)
        )
        log_ratio_BxL = of_other.token - of_own.token
        sums = (log_ratio_BxL, jax.numpy.expm1(log_ratio_BxL) - log_ratio_BxL)
        log_ratio_BxS, token_k3_BxS = (
            sum_by_completion(values_BxL, of_own.segment, batch.present_BxS.shape[1]) for values_BxL in sums
        )
        return log_ratio_BxS, token_k3_BxS

    jitted = jax.jit(of_batch, compiler_options=compiler_options(mesh))
    program = CheckedProgram(jitted, mesh, "the log-ratios of a batch", ("batch_rows", "max_tokens"))

    def log_ratios(own_parameters: Parameters, other_parameters: Parameters, rows: list[Row]) -> list[LogRatios]:
        def compute(batch: Batch) -> tuple[Array, Array]:
            return program(own_parameters, other_parameters, batch)

        found, _ = over_completions(own, rows, 2, compute)
        return [LogRatios(*(np.asarray(one) for one in of_row)) for of_row in zip(*found, strict=True)]

    return log_ratios
