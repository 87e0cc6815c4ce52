"""Stage `sft`: supervised fine-tuning on the completions that come with the prompts."""

from typing import Any

from qrpo_jax.data.examples import select
from qrpo_jax.data.views import View
from qrpo_jax.job.corpus import discard_corpus, open_corpus
from qrpo_jax.job.job import Job
from qrpo_jax.job.listed_units import check_units
from qrpo_jax.job.prompts import open_sources
from qrpo_jax.job.stage_rows import whole_source
from qrpo_jax.job.trainer import Training, planned_feed, train
from qrpo_jax.training.objectives import make_objective


def run(job: Job) -> dict[str, Any]:
    view = make_view(job)
    tokenized = open_corpus(job, "sft", whole_source(open_sources(job)["sft"]), first=view.first)
    examples = select(tokenized.corpus, view, transform=None)
    examples = examples._replace(counts=examples.counts | tokenized.left_out)
    # SFT trains the distribution at temperature 1, whatever temperature it is sampled at later.
    settings = job.log_prob_settings(job.mesh, backward=True)._replace(temperature=1.0)
    start = lambda: job.fresh_parameters(job.mesh)  # noqa: E731
    result = train(job, "sft", Training(make_objective("sft"), settings, start), planned_feed(job, "sft", examples))
    discard_corpus(job, "sft")
    return result


def make_view(job: Job) -> View:
    """Only the first completion is imitated; of a pair it is the chosen one."""
    pack = job.config.pack
    return View(first=1, max_tokens=pack.max_tokens, over_long=pack.over_long)


def check(job: Job) -> None:
    check_units(job, "sft", make_view(job))
