"""Log-probs of the tokens of sampled completions, packed and computed exactly as in training, on its mesh."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

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
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.token_numbers import from_positions
from qrpo_jax.training.step import batch_log_probs


class Found(NamedTuple):
    """log π of the completions of rows, one after the other, float32; NaN for completions that are too long.

    Attributes:
      tokens: of all their tokens.
      completions_K: of each completion, summed as a training step sums it.
      values: what the value head expects before each token; NaN without one.
    """

    tokens: np.ndarray
    completions_K: np.ndarray
    values: np.ndarray


TokenLogProbs = Callable[[Parameters, list[Row]], Found]


def jitted_token_log_probs(job: Job, side: str, mesh: Mesh) -> CheckedProgram:
    """A jitted function from parameters and a batch on a mesh to `LogProbs`.

    Args:
      side: as in `make_token_log_probs`.
    """
    graph, settings = job.graph(side), job.log_prob_settings(mesh)
    return CheckedProgram(
        jax.jit(
            lambda parameters, batch: batch_log_probs(graph, parameters, batch, settings),
            compiler_options=compiler_options(mesh),
        ),
        mesh,
        "the log-probs of a batch",
        ("batch_rows", "max_tokens"),
    )


def make_token_log_probs(job: Job, side: str) -> TokenLogProbs:
    """A function that computes log π of completions and their tokens.

    Args:
      side: "reference" or "policy": the model whose parameters the function takes.
    """
    mesh = job.mesh
    jitted = jitted_token_log_probs(job, side, mesh)
    pack = job.config.pack
    view = View(max_tokens=pack.max_tokens, over_long=pack.over_long)

    def log_probs(parameters: Parameters, rows: list[Row]) -> Found:
        examples = select(tokenize(rows, job.text, vocab_size=job.shape.settings.vocab_size), view, transform=None)
        lengths_K = examples.corpus.lengths_K
        count = int(lengths_K.sum(dtype=np.int64))
        found = Found(*(np.full(n, np.nan, np.float32) for n in (count, len(lengths_K), count)))
        if not len(examples.sizes_U):
            return found
        plan = plan_log_probs(job, mesh, examples.packing_units())
        own = own_rows(mesh, plan.rows)

        for index in range(plan.steps):
            batch = place_rows(assemble(examples, plan, index, own), mesh)
            with located(batch_rows="log_probs.batch_rows", max_tokens="pack.max_tokens"):
                sums_BxS, tokens_BxL, segments_BxL, values_BxL = fetch(jitted(parameters, batch))
            example_BxS = fetch(batch.example_BxS)
            for values, out in ((tokens_BxL, found.tokens), (values_BxL, found.values)):
                if values is not None:
                    from_positions(values, segments_BxL, example_BxS, examples.entries_C, lengths_K, out)
            present = example_BxS >= 0
            found.completions_K[examples.entries_C[example_BxS[present]]] = sums_BxS[present]
        return found

    return log_probs
