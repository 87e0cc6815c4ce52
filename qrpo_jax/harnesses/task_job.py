"""A task as a job of its own: the run's policies, with the prompts, reward and sampling of the task, in its folder."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from qrpo_jax.data.sources.source import Source
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError, located
from qrpo_jax.harnesses.data import source_of
from qrpo_jax.harnesses.presets import PRESETS, UNGRADED
from qrpo_jax.harnesses.questions import NEXT
from qrpo_jax.harnesses.tasks import GSM8K, Task, read_tasks
from qrpo_jax.job.job import Job, Shape
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.model_folders import ModelFolder

STAGE = "harness"
ANSWERS = "evaluate"  # the stage that such a job has beside those which trained its policy
SAMPLING = ("completions", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "slots")
# What a message of a shared part calls a key, and what the user of this stage set.
KEYS = {
    "prompts.max_tokens": "harness.max_prompt_tokens",
    **{f"evaluate.{name}": f"harness.{name}" for name in SAMPLING},
    **{f"prompts.{name}": "harness.tasks" for name in ("source", "split", "layout", "columns", "held_out", "count")},
    "reward.name": "harness.tasks",
}


class TaskJob(Job):
    """The job of one task. Its answers are in the task's folder; parameters come from the folders of the run.

    Args:
      run: the job that has the stage.
      task: one of its tasks.
    """

    def __init__(self, run: Job, task: Task) -> None:
        super().__init__(FrozenConfigDict(config_of(run, task)), run.workdir, run.shard, run.stages)
        self._run, self.task, self.notes = run, task, run.notes

    def folder(self, stage: str) -> Path:
        return self._run.folder(STAGE) / self.task.name if stage == ANSWERS else super().folder(stage)

    @property
    def finished(self) -> bool:
        """Whether the stage is complete."""
        return read_manifest(self._run.folder(STAGE)) is not None

    def say_once(self, line: str) -> None:
        self._run.say_once(line)  # what several tasks report

    @functools.cached_property
    def model_folder(self) -> ModelFolder:
        return self._run.model_folder

    @functools.cached_property
    def text(self) -> Text:
        return self._run.text

    @functools.cached_property
    def shape(self) -> Shape:
        return self._run.shape

    @functools.cached_property
    def mesh(self) -> Mesh:
        return self._run.mesh


def config_of(run: Job, task: Task) -> ConfigDict:
    """The config of a task's job."""
    config = ConfigDict(run.config.to_dict())
    section, options = config[STAGE], task.options
    config.stages = (*(name for name in run.config.stages if name in ("sft", "train")), ANSWERS)
    config.evaluate.update({name: options.get(name, section[name]) for name in SAMPLING})
    stop = (NEXT,) if task.kind == GSM8K and int(options.get("shots", 0)) else ()
    config.evaluate.update({"seeds": (0,), "checkpoints": ("last",), "stop": stop})
    config.prompts.max_tokens = section.max_prompt_tokens
    preset = PRESETS.get(task.kind)
    # All tests of a problem count, whatever a training run of it has. Where others grade, our reward is of no account.
    reward = preset.reward if preset else UNGRADED
    config.reward.update({"name": reward, "parts": (), "path": "", "replace": False, "max_tests": 0})
    if preset is None:
        return config
    config.prompts.update(
        {
            "source": source_of(task),
            "split": options.get("split", "" if "source" in options else preset.split),
            "layout": preset.layout,
            "columns": preset.columns,
            "mix": (),
            "count": options.get("prompts", section.prompts),
            "held_out": 0,
        }
    )
    return config


class Asked:
    """The problems of a source as they are asked."""

    def __init__(self, source: Source, task: Task, chat: bool) -> None:
        self._source, self._ask = source, PRESETS[task.kind].ask
        self._chat, self._shots = chat, int(task.options.get("shots", 0))
        self.count = source.count

    def rows(self, indices: Any) -> list[Any]:
        return [self._ask(row, self._chat, self._shots) for row in self._source.rows(indices)]


@contextmanager
def about(task: Task) -> Iterator[None]:
    """Makes mistakes that shared parts find ones of the task, and of the keys of section `harness`."""
    try:
        with located("harness.tasks"):
            yield
    except UserError as error:
        for key, own in KEYS.items():
            error.message = error.message.replace(key, own)
        error.message = f"harness task {task.name!r}: {error.message}"
        error.keys = tuple(dict.fromkeys(KEYS.get(key, key) for key in error.keys))
        raise


def task_jobs(job: Job) -> list[TaskJob]:
    """A job for each task, in order.

    Raises:
      UserError: a text is no task, or the data of one cannot be had.
    """
    with located("harness.tasks"):
        tasks = read_tasks(job.config.harness.tasks)
    found = []
    for task in tasks:
        with about(task):
            found.append(TaskJob(job, task))
    return found
