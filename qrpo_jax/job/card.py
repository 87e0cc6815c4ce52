"""The model card of a job's export, and its publication. Paths of this machine stay out of both."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from qrpo_jax.data.sources import split_name
from qrpo_jax.files import local_folder
from qrpo_jax.hugging_face import hub
from qrpo_jax.hugging_face.base_card import CARD, BaseCard, read_base
from qrpo_jax.job.exported_step import exported_stage
from qrpo_jax.job.job import Job
from qrpo_jax.job.kept_steps import BEST
from qrpo_jax.job.source_check import is_on_policy
from qrpo_jax.report.model_card import CardFacts, card
from qrpo_jax.training.objectives import OBJECTIVES

DATA_SET = re.compile(r"hf:([\w.-]+/[\w.-]+)")
# Settings of training that a card shows, with those that the objective does not use left out.
SHOWN = ("objective", "transform", "beta", "length_normalised", "learning_rate", "schedule", "batch_size", "epochs")
ON_POLICY = ("iterations", "prompts", "completions", "max_new_tokens", "temperature")  # of section rollout


def documents(job: Job, results: Mapping[str, Any] | None) -> dict[str, bytes]:
    """The model card and the base's licence files, by name, for the exported folder.

    Args:
      results: what results.json says; None if the policy was not evaluated before.
    """
    base = read_base(local_folder(job.model_folder.folder)) if job.config.model.path else BaseCard({}, {})
    if job.config.model.path and "license" not in base.metadata:
        job.say("export: WARNING: the base names no licence; say in README.md under which one the model is published")
    return {CARD: card(facts(job, base, results)).encode(), **base.documents}


def facts(job: Job, base: BaseCard, results: Mapping[str, Any] | None) -> CardFacts:
    """What the card says."""
    config = job.config
    hub_id = job.model_folder.hub_id if config.model.path else ""
    name = hub_id or public_name(config.model.path)
    objective = config.train.objective if exported_stage(config) == "train" else "sft"
    return CardFacts(
        title=f"{name.rpartition('/')[2] or 'A small model'}, trained with {objective.upper()}",
        base=hub_id,
        base_name=f"a folder named {name}" if name else "random weights, trained from scratch",
        adapter=config.export.adapter == "peft",
        objective=objective,
        data_sets=data_sets(config),
        data=describe_data(config),
        reward=describe_reward(config, job) if exported_stage(config) == "train" or results else "",
        settings=settings(config),
        results=results,
        evaluation=describe_evaluation(config),
        carried=base.metadata,
        documents=sorted(base.documents),
    )


def data_sets(config: Any) -> list[str]:
    """Ids of the data sets of the hub that the prompts come from."""
    found = [DATA_SET.match(text) for text in (config.prompts.source, *config.prompts.mix)]
    return list(dict.fromkeys(match[1] for match in found if match))


def describe_data(config: Any) -> str:
    """The source of the prompts without folders of this machine."""
    kind, address = split_name(config.prompts.source)
    parts = [public_source(text.split()[0]) for text in config.prompts.mix] if kind == "mix" else []
    named = f"a mix of {', '.join(parts)}" if parts else public_source(config.prompts.source)
    if exported_stage(config) == "sft":
        return f"demonstrations of {named}"
    sampled = f", with {config.sample.completions} completions of the reference policy for each prompt"
    found = named + (sampled if "sample" in config.stages else "")
    if not is_on_policy(config):
        return found
    rollout = config.rollout
    of_policy = f"{rollout.completions} completions of the policy itself for each of {rollout.prompts} prompts"
    return f"{found}, and in training {of_policy}, {rollout.iterations} times"


def public_source(text: str) -> str:
    """A source without the folders of its files.

    >>> [public_source(text) for text in ("jsonl:/home/me/secret/prompts.jsonl", "hf:org/name:config", "programs")]
    ['jsonl:prompts.jsonl', 'hf:org/name:config', 'programs']
    """
    kind, address = split_name(text)
    if not address or kind in ("hf", "tfds"):
        return text
    return f"{kind}:{public_name(address)}"


def public_name(text: str) -> str:
    """The last part of a path or address."""
    return PurePosixPath(text).name


def describe_reward(config: Any, job: Job) -> str:
    """The reward, and the model that gives it."""
    names = ", ".join(job.rewards)
    if "model" not in job.rewards:
        return names
    path = config.reward.path
    return f"{names} ({path if hub.read_id(path) else public_name(path)})"


def settings(config: Any) -> dict[str, Any]:
    """Settings of training by key."""
    if exported_stage(config) == "sft":
        return {f"sft.{name}": config.sft[name] for name in SHOWN if name in config.sft} | {"seed": config.seed}
    objective = OBJECTIVES[config.train.objective]
    unused = {"transform": not objective.ranked, "beta": config.train.objective == "sft"}
    unused["length_normalised"] = objective.tokenwise
    shown = {f"train.{name}": config.train[name] for name in SHOWN if not unused.get(name)}
    if is_on_policy(config):
        shown |= {"train.data": config.train.data}
        shown |= {f"rollout.{name}": config.rollout[name] for name in ON_POLICY}
    if config.lora.rank:
        shown |= {f"lora.{name}": config.lora[name] for name in ("rank", "alpha", "targets")}
    return shown | {"select.units": config.select.units, "seed": config.seed}


def describe_evaluation(config: Any) -> str:
    evaluate = config.evaluate
    half = ", of the half that did not choose this checkpoint" if config.export.checkpoint == BEST else ""
    return (
        f"On held-out prompts{half}, with {evaluate.completions * len(evaluate.seeds)} completions each at temperature "
        f"{evaluate.temperature:g}; 95 % intervals over prompts in parentheses."
    )
