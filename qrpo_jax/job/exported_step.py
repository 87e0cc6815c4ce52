"""The stage and the step of training that stage `export` writes."""

from typing import Any

from qrpo_jax.config.keys import refuse
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.kept_steps import BEST, LAST, check_kept, kept_steps, some, train_steps
from qrpo_jax.job.manifest import read_manifest

KEY = "export.checkpoint"


def stages_before(config: Any) -> tuple[str, ...]:
    """The stages before `export`; all where it is not named."""
    names = tuple(config.stages)
    return names[: names.index("export")] if "export" in names else names


def exported_stage(config: Any) -> str:
    """The stage whose parameters are exported: `train`, or `sft` where that alone comes before.

    Raises:
      UserError: neither does.
    """
    for stage in ("train", "sft"):
        if stage in stages_before(config):
            return stage
    raise UserError(
        "stage 'export' writes what 'train' or 'sft' has trained, and needs one of them before it; change config.stages"
    )


def exported_step(job: Job) -> int | None:
    """The step that `export.checkpoint` names, after stage `train`; None for the last.

    Raises:
      UserError: the step is not kept, or the best one is the reference policy, or is not known.
    """
    chosen = job.config.export.checkpoint
    if chosen == LAST:
        return None
    steps = train_steps(job)
    step = best_step(job) if chosen == BEST else int(chosen)
    if step == steps:
        return None
    kept = kept_steps(job.config, steps)
    check_kept([step] if step not in kept else [], f"{some([*kept, steps])} are kept", KEY)
    return step


def best_step(job: Job) -> int:
    """The best step that stage `evaluate` found.

    Raises:
      UserError: it is the reference policy, or a half of the prompts was empty, so that there is none.
    """
    manifest = read_manifest(job.folder("evaluate"))
    assert manifest is not None, "check refuses it"
    best = manifest["results"]["best"]
    if best is None:
        raise refuse(KEY, "best, and none is known, because a half of the held-out prompts is empty: set it to last")
    if best["step"] == 0:
        raise refuse(KEY, "best, and the best policy is the reference itself, which training did not improve")
    job.say(f"export: step {best['step']}, the best on the selection half")
    return int(best["step"])


def check_exported_step(job: Job) -> None:
    """Refuses a step that will not be kept, and the best one where none is looked for.

    Raises:
      UserError: naming the keys.
    """
    chosen, every = job.config.export.checkpoint, job.config.train.keep_every
    if exported_stage(job.config) == "sft":
        if chosen != LAST:
            raise refuse(KEY, f"{chosen}, a step of stage 'train', which is not in config.stages: set it to last")
    elif chosen == BEST:
        if "evaluate" not in stages_before(job.config) or tuple(job.config.evaluate.checkpoints) == (LAST,):
            raise UserError(
                "export.checkpoint is best; stage 'evaluate' finds that before 'export', with "
                "config.evaluate.checkpoints=all or a list of steps"
            )
    elif chosen != LAST and read_manifest(job.folder("train")) is not None:
        exported_step(job)
    elif chosen != LAST and not every:
        check_kept([int(chosen)], "the last step alone is kept", KEY)
