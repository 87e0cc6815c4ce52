"""Steps of stage `train` whose parameters are kept, for curves over training and for the best of them."""

from typing import Any

from qrpo_jax.config.keys import refuse
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest

LAST, ALL, BEST = "last", "all", "best"
KEY = "evaluate.checkpoints"


def kept_steps(config: Any, steps: int) -> list[int]:
    """The steps whose parameters stage `train` keeps, without the last one, which is always there."""
    every = config.train.keep_every
    return list(range(every, steps, every)) if every else []


def steps_to_evaluate(job: Job) -> list[int]:
    """The steps that `evaluate.checkpoints` asks for, in order, when stage `train` is complete; [] for the last alone.

    0 is the reference policy, and the last step the policy itself.

    Raises:
      UserError: a step is not kept.
    """
    asked = job.config.evaluate.checkpoints
    if tuple(asked) == (LAST,):
        return []
    steps = train_steps(job)
    there = [0, *kept_steps(job.config, steps), steps]
    if ALL in asked:
        return there
    wanted = {steps if step == LAST else step for step in asked}
    check_kept(sorted(wanted - set(there)), f"{some(there)} are kept")
    return sorted(wanted)


def train_steps(job: Job) -> int:
    """The number of steps of stage `train`, which is complete."""
    manifest = read_manifest(job.folder("train"))
    assert manifest is not None, "evaluate runs after train"
    return manifest["steps"]


def check_steps(job: Job) -> None:
    """Refuses steps that stage `train` will not keep, as far as that is known before it runs.

    Raises:
      UserError: naming the key.
    """
    asked, every = tuple(job.config.evaluate.checkpoints), job.config.train.keep_every
    if asked == (LAST,):
        return
    if "train" not in job.config.stages:
        raise refuse(KEY, f"{', '.join(map(str, asked))}, and no stage 'train' keeps steps; set it to last")
    if ALL in asked and len(asked) > 1:
        raise refuse(KEY, f"{', '.join(map(str, asked))}; all stands alone")
    if read_manifest(job.folder("train")) is not None:
        steps_to_evaluate(job)
        return
    odd = [step for step in asked if isinstance(step, int) and step and (not every or step % every)]
    # A step that is no multiple may still be the last one, which is known when batches are planned.
    kept = f"0, multiples of {every}, and the last step are kept" if every else "0 and the last step are kept"
    check_kept(odd, kept)


def check_kept(lacking: list[int], kept: str, key: str = KEY) -> None:
    """Refuses steps that are not kept.

    Raises:
      UserError: naming the first of them.
    """
    if lacking:
        error = UserError(f"{key} has step {lacking[0]}; {kept}")
        error.keys = (key, "train.keep_every")
        raise error


def some(steps: list[int]) -> str:
    """Steps in a few words."""
    if len(steps) <= 6:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))}, ..., {steps[-2]}, {steps[-1]}"
