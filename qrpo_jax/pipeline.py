"""The stages of a job, run in order: complete ones are skipped, changed settings are refused."""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from qrpo_jax.data.sources import kind_of
from qrpo_jax.devices.processes import from_first, is_first, wait
from qrpo_jax.errors import DamagedError, UserError, located
from qrpo_jax.faults.interruption import RUN
from qrpo_jax.files import TEMPORARY, remove_folder, sha256, unwritable
from qrpo_jax.harnesses.contents import contents
from qrpo_jax.hugging_face.weights import weight_files
from qrpo_jax.job import fork, integrity, judge, manifest, memory, provenance, shared_checks
from qrpo_jax.job.job import Job
from qrpo_jax.job.journal import Journal, kept
from qrpo_jax.job.lease import owner_of
from qrpo_jax.job.model_folders import ModelFolder, commit_setting
from qrpo_jax.job.owner import HeldError
from qrpo_jax.job.policies import AGAINST, job_against
from qrpo_jax.job.prompts import source_options
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.source_check import is_on_policy, needs_no_samples
from qrpo_jax.job.stage import check_order
from qrpo_jax.rewards.rewards import JUDGE
from qrpo_jax.stores.path import StorePath
from qrpo_jax.training import orbax_folders


def run(job: Job, fork_from: Path | None = None, *, stages: Sequence[str] = (), linked: bool = False) -> bool:
    """Runs the stages that are not complete yet; returns whether all are.

    Args:
      fork_from: work directory of another run, whose stages are taken over as far as their settings agree.
      stages: the first stages of the job, if others are not to run now; by default all.
      linked: as in `fork.take_over`.

    Raises:
      UserError: a mistake of the user. Mistakes in the config are found before anything is compiled or written.
      DamagedError: files of the run changed, and it cannot go on without them.
    """
    check(job)
    names = stages or job.config.stages
    forked = None if fork_from is None else fork.agreed(job, fork_from, lambda name: settings(job, name), names)
    with owned(job.workdir, whole(job)):
        if forked is not None:
            fork.take_over(job, forked, linked=linked)
        forget(job)
        for name in job.config.stages:
            manifest.check_settings(job.folder(name), settings(job, name))
        wait("settings checked")
        for line in job.notes:
            job.say_once(line)
        with kept(journal(job, names)) as written:
            waits = next((name for name in names if not complete(job, name)), None)
            written.end("done" if waits is None else "incomplete")
            if waits is not None:
                say_waiting(job, waits)
            return waits is None


def say_waiting(job: Job, stage: str) -> None:
    """Says what did not begin because a stage before it lacks units of other shards."""
    after = job.config.stages[job.config.stages.index(stage) + 1 :]
    if after:
        job.say(f"{after[0]}: not begun, because {stage} is not complete; run the same command again when it is")


def forget(job: Job) -> None:
    """Removes what stages that run each time have written before."""
    for name in job.config.stages:
        if job.stages[name].repeats and is_first() and (job.folder(name) / manifest.SETTINGS).exists():
            remove_folder(job.folder(name))
    wait("earlier results removed")


def whole(job: Job) -> Shard:
    """What this run works on: all processes of a distributed job together are one run."""
    return job.shard if jax.process_count() == 1 else Shard(0, 1)


def journal(job: Job, stages: Sequence[str]) -> Journal:
    """The journal of this run of some stages, which the first process writes."""
    return Journal(job.workdir, whole(job), stages, jax.process_count(), silent=not is_first())


@contextmanager
def owned(workdir: Path, shard: Shard) -> Iterator[None]:
    """Holds a work directory inside the block; the first process does so for all of a distributed job.

    Args:
      shard: what this run works on.

    Raises:
      HeldError: another run holds it. All processes raise it.
    """
    owner = owner_of(workdir, shard)
    refused = ""
    if is_first():
        try:
            owner.acquire()
        except HeldError as error:
            refused = str(error)
    if refused := from_first(refused):
        raise HeldError(refused)
    RUN.before_leaving(owner.release)
    try:
        yield
    finally:
        owner.release()


def check(job: Job) -> None:
    """Refuses a config that cannot run.

    Raises:
      UserError: naming the value, the allowed values and the key.
    """
    check_order(job.config.stages, job.stages, needs_no_samples(job.config))
    if any(manifest.read_manifest(job.folder(name)) is None for name in job.config.stages):
        check_workdir(job.workdir)
    stages = [job.stages[name] for name in job.config.stages]
    if any(stage.needs_model for stage in stages):
        shared_checks.check(job)
    for stage in stages:
        stage.check(job)
    if any(stage.needs_model and stage.needs_data for stage in stages):
        memory.check(job)


def check_workdir(workdir: Path) -> None:
    """Refuses a work directory that is a file, or that cannot be written to.

    Raises:
      UserError: naming the path.
    """
    if isinstance(workdir, StorePath):
        check_store(workdir)
        return
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    if why := unwritable(workdir):
        raise UserError(f"--workdir={workdir} cannot be written to: {why}")


def check_store(workdir: StorePath) -> None:
    """Refuses a work directory in an object store that cannot be written to, or that several processes cannot share.

    Raises:
      UserError: naming the address.
    """
    trial = workdir / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        if workdir.is_file():
            raise UserError(f"--workdir={workdir} is an object; name a folder")
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written to: {error.strerror or error}") from None
    orbax_folders.check(workdir)


def settings(job: Job, name: str) -> dict[str, Any]:
    """Everything that determines the output of a stage: the settings and input files of it and of all stages before."""
    config = job.config
    upto = config.stages[: config.stages.index(name) + 1]
    upto = tuple(earlier for earlier in upto if earlier == name or not job.stages[earlier].repeats)
    stages = [job.stages[earlier] for earlier in upto]
    sections = {section: config[section].to_dict() for stage in stages for section in stage.sections}
    if not is_on_policy(config):
        sections.pop("rollout", None)
    if "rollout" in sections or ("watch" in sections and config.watch.every):  # the reward may score nowhere else
        sections |= {section: config[section].to_dict() for section in ("reward", "judge")}
    flat = manifest.flatten({"seed": config.seed, "stages": list(upto)} | sections)
    machine_keys = {key for stage in stages for key in stage.machine_keys}
    flat = {key: value for key, value in flat.items() if key not in machine_keys}
    identity = kind_of(config.prompts.source).identity
    if "prompts" in sections and identity is not None:
        with suppress(UserError):  # stage `compile` has no use for the prompts, which need not be there
            flat["prompts.source content"] = identity(source_options(config))
    if "judge" in sections and JUDGE in job.rewards and judge.names_file(config):
        flat["judge.prompt sha256"] = judge.template_digest(config)
    for section in ("model", "reward"):
        if section in sections and config[section].path:
            flat |= identity_of(f"{section}.path", job.model_folder if section == "model" else job.reward_folder)
    if {"evaluate", "harness"} & sections.keys() and (other := job_against(job)) is not None:
        flat |= identity_of(AGAINST, other.model_folder)
    if "harness" in sections:
        flat |= contents(job)
    return flat


def identity_of(key: str, found: ModelFolder) -> dict[str, Any]:
    """What tells the model of a config key from others in the same folder."""
    identity: dict[str, Any] = {f"{key} config sha256": sha256(found.folder / "config.json")}
    if found.commit:  # stands for all files
        return identity | {commit_setting(key): found.commit}
    return identity | {f"{key} weight bytes": sum(path.stat().st_size for path in weight_files(found.folder))}


def complete(job: Job, name: str) -> bool:
    """Runs one stage unless it is complete; returns whether it is complete now.

    Raises:
      DamagedError: a complete stage's files changed, and running it again would not make them again.
    """
    folder, stage = job.folder(name), job.stages[name]
    recorded = manifest.read_manifest(folder)
    sharded = job.shard.parts > 1 and jax.process_count() == 1
    if recorded is not None:
        damaged = integrity.damaged_files(folder, recorded[integrity.FILES])
        if not damaged:
            job.say(f"{name}: complete, skipped")
            return True
        clear(job, name, damaged, sharded)
    if sharded and not stage.shardable:
        job.say(f"{name}: does not split into shards; run it without --shard")
        return False
    RUN.stage(name)
    if is_first():
        manifest.begin(folder, settings(job, name), alone=not sharded)
    wait(f"{name} begun")
    with provenance.recorded(job, name), located(template="model.template"):
        result = stage.run(job)
    wait(f"{name} run")
    if result is None:
        return False
    if is_first():
        result |= {integrity.FILES: integrity.listing(folder, stage.outside)}
        if recorded is not None:
            integrity.check_same(folder, recorded, result)
        manifest.complete(folder, result)
    wait(f"{name} complete")
    return True


def clear(job: Job, name: str, damaged: list[Path], sharded: bool) -> None:
    """Removes damaged files of a complete stage whose next run makes them again, with a warning.

    Raises:
      DamagedError: the stage is none of these, or other shards may be reading its files.
    """
    folder, others = job.folder(name), f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    reason = f"it is not what stage {name!r} wrote{others}"
    if not job.stages[name].shardable:
        raise DamagedError(damaged[0], reason, f"restore it from a copy, or remove {folder} and run again")
    if sharded:
        raise DamagedError(damaged[0], reason, "run once without --shard: it will be made again")
    job.say(f"WARNING: {damaged[0]} is damaged: {reason}; made again")
    wait(f"{name} is damaged")
    if is_first():
        for path in damaged:
            path.unlink(missing_ok=True)
    wait(f"{name} is cleared")
