"""Worker of `peers`: this package's own training loop, with the defaults of the config.

    PYTHON this_package.py MODEL ROWS.jsonl WORKDIR BATCH MAX_TOKENS STEPS [KEY=VALUE ...]

Each KEY=VALUE overrides a config key. Without any, the planner chooses row length, microbatches and devices as in every
job. The stages before `train` run first; stage `reference` is timed once more when everything is compiled.
"""

import ast
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from turns import Turns

from configs import default
from qrpo_jax import pipeline, transforms
from qrpo_jax.data import row_files
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.loader import assemble, batches
from qrpo_jax.data.packing import Plan
from qrpo_jax.devices.cores import use_cores
from qrpo_jax.job import trainer
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.packing import make_plan
from qrpo_jax.main import cpu_devices
from qrpo_jax.stages import STAGES
from qrpo_jax.stages.train import make_training, read_examples
from qrpo_jax.training.fit import fit
from qrpo_jax.training.logbook import scalars
from qrpo_jax.training.metrics import Written
from qrpo_jax.training.time_sheet import TimeSheet


def main(model: str, rows: str, workdir: str, batch: str, max_tokens: str, steps: str, *overrides: str) -> None:
    turns = Turns()
    config = make_config(model, rows, int(batch), int(max_tokens), int(steps))
    for override in overrides:
        set_key(config, override)
    use_cores(cpu_devices(config, distributed=False))
    job = Job(FrozenConfigDict(config), Path(workdir), Shard(0, 1), STAGES)
    pipeline.check(job)
    for stage in ("sample", "reference"):
        pipeline.complete(job, stage)

    examples = read_examples(job, transforms.parse(config.train.transform))
    training, plan = make_training(job), make_plan(job, "train", examples)
    optimizer, _ = trainer.configured_optimizer(job.config, "train", plan.steps)
    turns.ready(
        about=describe(plan),
        batches=[pairs(examples, plan, index) for index in range(int(steps))],
        reference_seconds_per_token=time_reference(job, examples),
    )
    turns.wait()
    fit(
        trainer.policy_step(job, training, optimizer, plan.microbatches),
        trainer.trainable(job, training, optimizer),
        batches(examples, plan),
        steps=plan.steps,
        checkpoints=NoCheckpoints(),
        logbook=OneByOne(turns, examples),
        times=TimeSheet(None),
    )


def make_config(model: str, rows: str, batch: int, max_tokens: int, steps: int) -> ConfigDict:
    """The defaults with this model, these rows, and pairs in batches of `batch`."""
    config = default.get_config()
    config.stages = ("sample", "reference", "train")
    config.model.path, config.model.template = model, "plain"
    config.prompts.source = f"jsonl:{rows}"
    config.prompts.count, config.prompts.held_out = 0, 0
    config.prompts.max_tokens, config.sample.max_new_tokens = (
        max_tokens - 1,
        1,
    )  # more than the model's positions refuse
    config.sample.completions = 0
    config.pack.max_tokens = max_tokens
    config.select.units = "random_pairs"
    lines = Path(rows).read_text(encoding="utf-8").splitlines()
    count = sum(len(json.loads(line)["completions"]) // 2 for line in lines)
    config.train.batch_size, config.train.epochs = batch, -(-batch * steps // count)
    return config


def set_key(config: ConfigDict, override: str) -> None:
    """Sets a key from text such as "pack.slots=4"."""
    key, _, value = override.partition("=")
    section, _, name = key.partition(".")
    config[section][name] = value if isinstance(config[section][name], str) else ast.literal_eval(value)


def describe(plan: Plan) -> str:
    """Versions, and what the planner chose."""
    shared = 1 - plan.tokens / plan.separate_tokens
    return (
        f"jax {jax.__version__}, {jax.device_count()} device(s), {plan.rows} rows x {plan.row_tokens} tokens in "
        f"{plan.microbatches} microbatch(es), {plan.padding:.1%} padding, {shared:.1%} of the tokens shared prompts"
    )


def pairs(examples: Examples, plan: Plan, index: int) -> list[list[str]]:
    """Names of the completions in a batch: chosen and rejected of each pair."""
    example_BxS = assemble(examples, plan, index).example_BxS
    names = [examples.name(c) for c in example_BxS[example_BxS >= 0]]
    return [list(pair) for pair in zip(names[0::2], names[1::2], strict=True)]


def tokens_of(examples: Examples, example_BxS: Any) -> int:
    """Tokens of a batch's completions, each with its prompt, wherever prompts are shared."""
    total_C = examples.prompt_lengths_C + examples.completions_C.length
    return int(total_C[example_BxS[example_BxS >= 0]].sum())


def time_reference(job: Job, examples: Examples) -> float:
    """Seconds that each token of prompts and completions takes in stage `reference`, without compilation."""
    rows = list(row_files.read(job.folder("sample")))
    parameters, log_probs = job.reference_parameters(job.unit_mesh), make_log_probs(job)
    log_probs(parameters, rows)
    start = time.perf_counter()
    log_probs(parameters, rows)
    seconds = time.perf_counter() - start
    return seconds / int((examples.prompt_lengths_C + examples.completions_C.length).sum())


class NoCheckpoints:
    """A run that is never saved."""

    def restore(self, *_: Any) -> None:
        return None

    def due(self, step: int) -> bool:
        return False

    def save(self, *_: Any) -> None:
        pass


class OneByOne:
    """A logbook that waits for the metrics of each step, reports the step, and waits for its next turn.

    The training loop reads metrics one step late, to keep the device busy. Here it cannot, so the host's work counts.
    """

    def __init__(self, turns: Turns, examples: Examples) -> None:
        self._turns, self._examples = turns, examples

    def begin(self, *_: Any) -> None:
        pass

    def record(self, step: int, batch: Batch, metrics: dict[str, Any]) -> None:
        scalars(metrics)
        self._turns.done(tokens_of(self._examples, np.asarray(batch.example_BxS)))
        self._turns.wait()

    def settle(self) -> Written:
        return Written()


if __name__ == "__main__":
    main(*sys.argv[1:])
