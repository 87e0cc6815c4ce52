"""Stages: each reads rows or parameters and writes rows, parameters or a report."""

from qrpo_jax.job.stage import Stage
from qrpo_jax.stages import (
    benchmark,
    compare_transforms,
    compile,
    evaluate,
    export,
    reference,
    report,
    sample,
    score,
    sft,
    train,
)

STAGES: dict[str, Stage] = {
    "sft": sft.STAGE,
    "sample": sample.STAGE,
    "score": score.STAGE,
    "reference": reference.STAGE,
    "train": train.STAGE,
    "evaluate": evaluate.STAGE,
    "report": report.STAGE,
    "export": export.STAGE,
    "compile": compile.STAGE,
    "compare_transforms": compare_transforms.STAGE,
    "benchmark": benchmark.STAGE,
}
