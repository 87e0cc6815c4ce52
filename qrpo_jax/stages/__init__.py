"""Stages: each reads rows or parameters and writes rows, parameters or a report.

The table has what a config needs to know of a stage. The stage itself is the module of that name in this folder, with
functions `run` and, unless its sections are all shared, `check`. It is imported when one of them is first called.
"""

import importlib
from typing import Any

from qrpo_jax.job.stage import Stage

# Keys that change the use of the machine, or what is logged, and not what a stage writes for other stages.
SFT_PACE = ("sft.log_every", "sft.checkpoint_every", "sft.microbatches")
TRAIN_PACE = ("train.log_every", "train.checkpoint_every", "train.microbatches")
SERVER_KEYS = ("servers", "key_variable", "concurrency", "attempts", "connect_seconds", "answer_seconds")
SERVER_PACE = tuple(f"openai.{key}" for key in SERVER_KEYS)
# A completion that failed with one time limit may have a reward with another, as on another machine.
REWARD_PACE = (
    *("reward.workers", "reward.batch_rows", "reward.isolation", "reward.require_isolation", "reward.command"),
    *("reward.seconds", "reward.concurrency", "reward.failures"),
    *(f"judge.{key}" for key in SERVER_KEYS),
)
RESULTS = "results.json"  # of stages `evaluate` and `harness`, in their folders and in the work directory
LENGTHS = "lengths.json"  # of stage `evaluate`, in its folder


def stage(name: str, **facts: Any) -> Stage:
    """The stage of the module `name`; `facts` as in `Stage`."""

    def module() -> Any:
        return importlib.import_module(f"{__name__}.{name}")

    def check(job: Any) -> None:
        if hasattr(module(), "check"):
            module().check(job)

    return Stage(lambda job: module().run(job), check, **facts)


STAGES: dict[str, Stage] = {
    "sft": stage("sft", sections=("model", "prompts", "pack", "sft"), machine_keys=SFT_PACE),
    "sample": stage(
        "sample",
        sections=("model", "prompts", "sample", "openai"),
        machine_keys=("sample.slots", *SERVER_PACE),
        shardable=True,
        writes_rows=True,
        needs_weights=lambda config: config.sample.backend == "local",
    ),
    "score": stage(
        "score",
        needs=("sample",),
        sections=("model", "prompts", "reward", "judge"),
        machine_keys=REWARD_PACE,
        shardable=True,
        writes_rows=True,
        needs_weights=lambda config: False,
    ),
    "reference": stage(
        "reference",
        needs=("sample",),
        sections=("model", "prompts", "pack", "log_probs"),
        machine_keys=("log_probs.batch_rows",),
        shardable=True,
        writes_rows=True,
    ),
    "train": stage(
        "train",
        needs=("sample",),
        sections=("model", "prompts", "pack", "log_probs", "select", "lora", "train", "rollout", "watch"),
        machine_keys=("log_probs.batch_rows", "rollout.slots", "watch.slots", *TRAIN_PACE, *REWARD_PACE),
    ),
    "evaluate": stage(
        "evaluate",
        sections=("model", "prompts", "pack", "log_probs", "reward", "judge", "evaluate"),
        machine_keys=("log_probs.batch_rows", "evaluate.slots", *REWARD_PACE),
        outside=(RESULTS,),
        shardable=True,
    ),
    "harness": stage(
        "harness",
        sections=("model", "reward", "harness"),
        machine_keys=("harness.slots", "harness.alpaca_eval", *REWARD_PACE),
        outside=(RESULTS,),
        shardable=True,
        needs_data=False,
    ),
    "report": stage("report", sections=("report",)),
    "export": stage("export", sections=("export",)),
    "chat": stage("chat", sections=("model", "evaluate"), needs_data=False, repeats=True),
    "inspect": stage("inspect", sections=("inspect",), needs_model=False, needs_data=False, repeats=True),
    "sandbox": stage("sandbox", sections=("reward",), needs_model=False, needs_data=False, repeats=True),
    "compile": stage(
        "compile",
        sections=("model", "mesh", "prompts", "pack", "log_probs", "lora", "train", "sample", "rollout", "compile"),
        machine_keys=("train.log_every", "train.checkpoint_every"),
        needs_model=False,
    ),
    "compare_transforms": stage(
        "compare_transforms", sections=("compare_transforms",), needs_model=False, needs_data=False
    ),
    "benchmark": stage(
        "benchmark",
        sections=("model", "mesh", "pack", "log_probs", "sample", "lora", "train", "benchmark"),
        machine_keys=("train.log_every", "train.checkpoint_every"),
        needs_data=False,
        needs_weights=lambda config: False,
    ),
}
