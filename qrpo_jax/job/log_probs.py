"""Log-probabilities of the completions of rows, packed and computed exactly as in training."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.corpus import tokenize
from qrpo_jax.data.examples import select
from qrpo_jax.data.loader import assemble
from qrpo_jax.data.rows import Row
from qrpo_jax.data.views import View
from qrpo_jax.devices.mesh import fetch, own_rows, place_rows
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.errors import located
from qrpo_jax.job.job import Job
from qrpo_jax.job.packing import plan_log_probs
from qrpo_jax.job.units import Counts
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.step import completion_log_probs

RowLogProbs = Callable[[Parameters, list[Row]], tuple[list[np.ndarray], Counts]]


def jitted_log_probs(
    job: Job, side: str = "reference", temperature: float | None = None, mesh: Mesh | None = None
) -> Any:
    """A jitted function from parameters and a batch on a mesh to log π, float32 [B, S].

    Args:
      side, temperature: as in `make_log_probs`.
      mesh: by default the local mesh.
    """
    mesh = mesh or job.unit_mesh
    settings, graph = job.log_prob_settings(mesh), job.graph(side)
    if temperature is not None:
        settings = settings._replace(temperature=temperature)
    jitted = jax.jit(
        lambda parameters, batch: completion_log_probs(graph, parameters, batch, settings),
        compiler_options=compiler_options(mesh),
    )
    return CheckedProgram(jitted, mesh, "the log-probs of a batch", ("batch_rows", "max_tokens"))


def make_log_probs(job: Job, side: str = "reference", temperature: float | None = None) -> RowLogProbs:
    """A function that computes log π of the completions of rows.

    Args:
      side: "reference" or "policy": the model whose parameters the function takes.
      temperature: divides the logits; by default `log_probs.temperature`, as in training.

    Returns:
      A function from parameters and rows to one array [S] a row and counts. Completions that are too long are dropped:
      their value is NaN. Tokens are counted with a prompt once for each of its completions.
    """
    jitted = jitted_log_probs(job, side, temperature)

    def log_probs(parameters: Parameters, data: list[Row]) -> tuple[list[np.ndarray], Counts]:
        (values,), counts = over_completions(job, data, 1, lambda batch: (jitted(parameters, batch),))
        return values, counts

    return log_probs


def over_completions(
    job: Job, data: list[Row], numbers: int, compute: Callable[[Batch], Sequence[Array]]
) -> tuple[list[list[np.ndarray]], Counts]:
    """Numbers of the completions of rows, which are packed as in training.

    Args:
      numbers: how many there are of each completion.
      compute: from a batch on the job's `unit_mesh` to the numbers of its completions, [B, S] each.

    Returns:
      For each of these numbers one array [S] a row, NaN for completions that are too long, and counts.
    """
    pack, mesh = job.config.pack, job.unit_mesh
    view = View(max_tokens=pack.max_tokens, over_long=pack.over_long)
    examples = select(tokenize(data, job.text, vocab_size=job.shape.settings.vocab_size), view, transform=None)
    values = [np.full(len(examples.corpus.lengths_K), np.nan) for _ in range(numbers)]
    if len(examples.sizes_U):
        plan = plan_log_probs(job, mesh, examples.packing_units())
        rows = own_rows(mesh, plan.rows)
        for index in range(plan.steps):
            batch = place_rows(assemble(examples, plan, index, rows), mesh)
            with located(batch_rows="log_probs.batch_rows", max_tokens="pack.max_tokens"):
                *found, example_BxS = fetch((*compute(batch), batch.example_BxS))
            present = example_BxS >= 0
            for values_K, values_BxS in zip(values, found, strict=True):
                values_K[examples.entries_C[example_BxS[present]]] = values_BxS[present]
    tokens = int(examples.prompt_lengths_C.sum(dtype=np.int64) + examples.completions_C.length.sum(dtype=np.int64))
    by_row = [np.split(values_K, examples.corpus.first_R1[1:-1]) for values_K in values]
    return by_row, examples.counts | {"tokens": tokens}
