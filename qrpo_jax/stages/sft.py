"""Stage `sft`: supervised fine-tuning on the completions that come with the prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qrpo_jax.data import prompts
from qrpo_jax.data.examples import build_examples
from qrpo_jax.data.rows import Row
from qrpo_jax.data.views import View
from qrpo_jax.job.job import Job
from qrpo_jax.job.trainer import train
from qrpo_jax.training.objectives import make_objective


def run(job: Job) -> dict[str, Any]:
    config, pack = job.config, job.config.pack
    # In pairs only the chosen completion is to be imitated; rows of a JSON-lines file put it first.
    view = View(first=1, max_tokens=pack.max_tokens, over_long=pack.over_long)
    examples = build_examples(rows(job), job.policy.text, view, transform=None)
    # A reference policy is about its own distribution, so SFT knows no sampling temperature.
    precision = job.precision()._replace(temperature=1.0)
    start = lambda: job.fresh_parameters(job.mesh)  # noqa: E731
    return train(job, "sft", config.sft, examples, make_objective("sft"), precision, start)


def rows(job: Job) -> Iterator[Row]:
    """Rows whose first completion is to be learned; held-out prompts are not among them."""
    config = job.config
    if config.prompts.source == "programs":
        return (prompts.program_solution_row(config.seed, "sft", i) for i in range(config.sft.examples))
    kept, _ = prompts.split_rows(
        prompts.read_jsonl(Path(config.prompts.path)), config.prompts.held_out, config.prompts.count
    )
    return iter(kept)
