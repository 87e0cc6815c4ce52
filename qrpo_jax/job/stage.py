"""A stage: one step of a job, as a record."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from qrpo_jax.job.job import Job


class Stage(NamedTuple):
    """What a stage does, what it needs, and what its output depends on. `stages.STAGES` names them all.

    Attributes:
      run: writes the output into `job.folder(NAME)` and returns what the manifest records; None while other shards have
        not made their part.
      check: refuses a config that the stage cannot run with. It is called before anything is compiled or written.
      needs: stages that must come before it in `config.stages`.
      sections: config sections that its output depends on, besides those of the stages before it.
      machine_keys: keys of these sections that say how the machine is used and not what is made. A finished stage
        accepts other values for them.
      shardable: `--shard=i/n` makes one slice of its work.
      writes_rows: its folder holds rows, which the next stage that reads rows takes.
      needs_model: it uses the policy; a job of which no stage does opens no model.
    """

    run: Callable[["Job"], dict[str, Any] | None]
    check: Callable[["Job"], None]
    needs: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    machine_keys: tuple[str, ...] = ()
    shardable: bool = False
    writes_rows: bool = False
    needs_model: bool = True


Stages = Mapping[str, Stage]
