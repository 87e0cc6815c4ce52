"""Stage `chat`: talks in the terminal, as the policy of the work directory, or as the model of `model.path`."""

import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from qrpo_jax.data.rows import Message, Row
from qrpo_jax.errors import UserError, located
from qrpo_jax.faults.records import read_record
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job.completions import check_sampling, make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import SETTINGS, difference, flatten, read_manifest
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.report.terminal import harmless

NEW = "/new"
SHAPE = ("model.", "lora.")  # settings that parameters depend on


def run(job: Job) -> dict[str, Any]:
    stage = trained_stage(job)
    who = f"the policy of {job.workdir}" if stage == "train" else f"the model of {stage}" if stage else "the model"
    keeps = job.config.model.template == "chat"
    job.say(f"chat: {who}; a line is a message, {NEW} begins another conversation, the end of the input ends it")
    if not keeps:
        job.say("chat: template 'plain' has no turns, so each line is a prompt of its own (config.model.template)")
    answer, messages, turns = make_answer(job), list[Message](), 0
    for line in sys.stdin:
        if not line.strip():
            continue
        if line.strip() == NEW:
            messages = []
            continue
        text = answer([*messages, Message("user", line.rstrip("\n"))], turns)
        turns += 1
        if text is None:
            most = job.config.prompts.max_tokens
            job.say(f"chat: that is more than {most} tokens (config.prompts.max_tokens); {NEW} begins anew")
            continue
        print(harmless(text), flush=True)
        if keeps:
            messages += [Message("user", line.rstrip("\n")), Message("assistant", text)]
    return {"turns": turns}


def make_answer(job: Job) -> Callable[[list[Message], int], str | None]:
    """A function from a conversation, and the number of its turn, to what the policy says; None if it is too long."""
    section = ConfigDict(job.config.evaluate.to_dict())
    section.completions = 1
    side, parameters = talking(job)
    complete = make_completer(job, section, parameters, side=side, purpose="chat", most=1)

    def answer(messages: list[Message], turn: int) -> str | None:
        rows, _ = complete([Row(f"turn-{turn}", tuple(messages))], [turn])
        return rows[0].completions[0].text if rows else None

    return answer


def trained_stage(job: Job) -> str:
    """The last stage of the work directory that trained parameters and is complete; "" without one."""
    return next((stage for stage in ("train", "sft") if read_manifest(job.folder(stage)) is not None), "")


def talking(job: Job) -> tuple[str, Parameters]:
    """The side that talks, and its parameters."""
    mesh, stage = job.unit_mesh, trained_stage(job)
    if stage == "train" and job.shape.lora is None:
        return "policy", job.trained_parameters("train", mesh)
    has_sft = read_manifest(job.folder("sft")) is not None
    base = job.trained_parameters("sft", mesh) if has_sft else job.fresh_parameters(mesh)
    return ("policy", job.policy_parameters(mesh, base)) if stage == "train" else ("reference", base)


def check(job: Job) -> None:
    check_sampling(job, "evaluate")
    if jax.process_count() > 1:
        raise UserError("stage 'chat' reads the terminal of one process: run it without --distributed")
    stage = trained_stage(job)
    if stage:
        recorded = read_record(job.folder(stage) / SETTINGS)
        given = flatten(job.config.to_dict())
        known = {key: recorded[key] for key in recorded if key.startswith(SHAPE) and key in given}
        if changes := difference(known, {key: given[key] for key in known}):
            raise UserError(
                f"the policy in {job.folder(stage)} was trained with other settings ({'; '.join(changes)}): name the "
                "config of its run, with the same keys of config.model and config.lora"
            )
    elif not job.config.model.path:
        raise UserError(
            f"nothing to talk to: {job.workdir} has no trained policy, and config.model.path names no model"
        )
    if job.config.model.path:
        with located("model.path"):
            model_folder.check_folder(job.model_folder.folder)
