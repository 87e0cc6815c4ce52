"""A stage: one step of a job, as a record."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from qrpo_jax.config.keys import did_you_mean
from qrpo_jax.errors import UserError

if TYPE_CHECKING:
    from qrpo_jax.job.job import Job


SAMPLE = "sample"


def nothing_to_check(job: "Job") -> None:
    """For a stage whose sections are all shared, and checked for every job."""


class Stage(NamedTuple):
    """A stage's functions, requirements, and the settings that its output depends on. `stages.STAGES` lists all stages.

    Attributes:
      run: writes the output into `job.folder(NAME)` and returns the content of the manifest; None while parts of other
        shards are missing. The report shows the entry `counts`, a dict of numbers by name.
      check: refuses a config with which the stage cannot run. It is called before anything is compiled or written.
      needs: stages that must come before it in `config.stages`.
      sections: config sections that its output depends on, besides those of the stages before it.
      machine_keys: keys of these sections that change the use of the machine and not the output. A finished stage
        accepts other values for them.
      outside: files in the work directory itself that it writes.
      shardable: `--shard=i/n` runs one slice of its work. Units that are damaged later are made again.
      writes_rows: its folder holds rows, written by `units.run_units`, and its manifest has their number of `units`.
        The next stage that reads rows reads these.
      needs_model: it uses the policy. A job whose stages do not need a model opens none.
      repeats: it only looks, and no stage reads what it writes. It runs each time that it is named, with whatever
        settings; those of other stages do not know of it.
      needs_data: it uses prompts, and a model that they fit. A job without such a stage has no prompts to check.
      needs_weights: whether it loads parameters of the policy, or trains them, with this config; else shape and
        tokenizer do.
    """

    run: Callable[["Job"], dict[str, Any] | None]
    check: Callable[["Job"], None] = nothing_to_check
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    machine_keys: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    shardable: bool = False
    writes_rows: bool = False
    needs_model: bool = True
    needs_data: bool = True
    repeats: bool = False
    needs_weights: Callable[[Any], bool] = lambda config: True


Stages = Mapping[str, Stage]


def needs_weights(config: Any, stages: Stages) -> bool:
    """Whether one of `config.stages` loads parameters of the policy."""
    chosen = [stages[name] for name in config.stages]
    return any(stage.needs_model and stage.needs_weights(config) for stage in chosen)


def check_order(names: Sequence[str], stages: Stages, without_samples: bool = False) -> None:
    """Refuses stages that do not exist, are named twice, or lack a stage before them.

    Args:
      names: as in `config.stages`.
      stages: those that there are.
      without_samples: no completions need to be sampled before stages that read rows.

    Raises:
      UserError: naming the first such stage.
    """
    if not names:
        raise UserError(f"config.stages is empty; allowed: {', '.join(stages)}")
    for i, name in enumerate(names):
        if name not in stages:
            near = did_you_mean(name, stages)
            raise UserError(f"stages is {name!r}; allowed: {', '.join(stages)}{near} (config.stages)")
        if name in names[:i]:
            raise UserError(f"stage {name!r} is twice in config.stages; name it once")
        for needed in stages[name].needs:
            if needed not in names[:i] and not (without_samples and needed == SAMPLE):
                raise UserError(f"stage {name!r} needs {needed!r} before it; change config.stages")
