"""log π_ref that a data set brings: what it must be, and whether the first batch contradicts it."""

import math
from collections.abc import Mapping

from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_listed
from qrpo_jax.job.stage_rows import reads_source

# Nats between policy and reference over a completion before the first update, on average. Both are the same model, and
# bfloat16 or another implementation changes sums of a thousand tokens by less.
LARGEST_GAP = 2.0


def brings_log_probs(job: Job) -> bool:
    """Whether stage `train` reads rows from the source itself, and these have log π_ref."""
    if not reads_source(job, "train"):
        return False
    return bool(open_listed(job, "train").where("log-probs"))


def note_brought(job: Job) -> None:
    """Notes which model and template log π_ref of the data set must come from."""
    config = job.config
    job.note(
        f"train: log π_ref comes with {config.prompts.source}: it must be that of {config.model.path} with template "
        f"{config.model.template!r} at temperature {config.log_probs.temperature:g}, summed over all tokens of a "
        "completion and its end of turn; else put 'reference' before 'train' in config.stages"
    )
    if config.pack.over_long != "drop":
        job.note(
            "train: WARNING: log π_ref of a prompt that is cut is another one than that of the data set "
            "(config.pack.over_long)"
        )


def gap_warning(metrics: Mapping[str, float]) -> str:
    """A warning if log π_ref is not that of the policy before its first update; empty if it may be.

    >>> gap_warning({"log_ratio_high": 0.02, "log_ratio_low": -0.01})
    ''
    >>> gap_warning({"log_ratio_high": -41.7})[:61]
    'log π_ref of the data set is 41.7 nats a completion from that'
    """
    gaps = [abs(metrics[name]) for name in ("log_ratio_high", "log_ratio_low") if name in metrics]
    gap = max((gap for gap in gaps if math.isfinite(gap)), default=0.0)
    if gap <= LARGEST_GAP:
        return ""
    return (
        f"log π_ref of the data set is {gap:.1f} nats a completion from that of the policy before its first update, so "
        "it is of another model, template or sum: stop, and put 'reference' before 'train' in config.stages"
    )
