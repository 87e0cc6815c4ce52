"""What can be wrong with a config, found before anything is compiled or written."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrpo_jax import losses, partition, quantiles, transforms
from qrpo_jax.data import prompts, views
from qrpo_jax.devices.mesh import parameter_shardings
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job.job import DTYPES, Job
from qrpo_jax.model import decoder
from qrpo_jax.rewards import models
from qrpo_jax.rewards.rewards import MODEL, TESTS, find_function, read_tests
from qrpo_jax.stages import compare_transforms, export
from qrpo_jax.stages.train import REFERENCES, objective
from qrpo_jax.training.objectives import OBJECTIVES
from qrpo_jax.training.optimizer import make_optimizer

NEEDS = {
    "sft": (),
    "sample": (),
    "score": ("sample",),
    "reference": ("sample",),
    "train": ("sample",),
    "evaluate": ("train",),
    "report": ("evaluate",),
    "export": ("train",),
    "compare_transforms": (),
}


def check(job: Job) -> None:
    """Refuses a config that cannot run.

    Raises:
      ValueError: one line: what was given, what is allowed, where to change it.
    """
    config = job.config
    check_stages(config.stages)
    check_choices(config)
    check_numbers(config)
    check_transform(config.train)
    stages = set(config.stages)
    if job.workdir.exists() and not job.workdir.is_dir():
        raise ValueError(f"--workdir={job.workdir} is a file; name a folder")
    if "compare_transforms" in stages:
        compare_transforms.check(config.compare_transforms)
    if stages == {"compare_transforms"}:
        return  # no model, no data
    if "sft" not in stages and not config.model.path:
        raise ValueError("no model to start from: set config.model.path, or put 'sft' first in config.stages")
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("config.log.wandb is set, but wandb is not installed: pip install -e '.[wandb]', or unset it")
    check_lora(config)
    policy = job.policy  # opens tokenizer and model folder, reading headers only
    check_prompts(job)
    if {"score", "evaluate"} & stages:
        if config.reward.name == MODEL:
            check_reward_model(job)
        elif config.reward.path:
            raise ValueError(
                f"reward.path is set, but reward {config.reward.name!r} reads no folder: "
                "set config.reward.name='model', or unset config.reward.path"
            )
        elif config.reward.name != TESTS:
            find_function(config.reward.name)
        elif config.prompts.source == "model":
            raise ValueError("reward 'tests' needs prompts with tests, not prompts from the model (config.reward.name)")
    if "export" in stages:
        model_folder.check_export(policy.settings, policy.text, config.export.dtype)
    if "train" in stages:
        objective(job)
        check_train(config)
    shapes = decoder.abstract_parameters(policy.settings)
    parameter_shardings(job.mesh, decoder.logical_axes(policy.settings), shapes)  # adapters split along the same axes
    for section in ("sample", "evaluate"):
        longest = config.prompts.max_tokens + config[section].max_new_tokens
        if section in stages and longest > policy.settings.max_positions:
            raise ValueError(
                f"prompts.max_tokens + {section}.max_new_tokens is {longest}, the model was made for "
                f"{policy.settings.max_positions} positions; lower config.prompts.max_tokens or "
                f"config.{section}.max_new_tokens"
            )
    if config.pack.max_tokens > policy.settings.max_positions:
        raise ValueError(
            f"pack.max_tokens is {config.pack.max_tokens}, the model was made for {policy.settings.max_positions} "
            "positions; lower config.pack.max_tokens"
        )


def choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)} (config.{name})")


def between(key: str, value: float, low: float, high: float) -> None:
    """Refuses a number outside [low, high], or [low, high) where it is exclusive by nature: 1 for b1, b2; infinity."""
    exclusive = key.endswith((".b1", ".b2")) or math.isinf(high)
    if not (low <= value < high if exclusive else low <= value <= high):
        least = "above 0" if 0 < low < 1e-6 else f"at least {low:g}"
        most = "" if math.isinf(high) else f", {'below' if exclusive else 'at most'} {high:g}"
        raise ValueError(f"{key} is {value}; it must be finite, {least}{most} (config.{key})")


def check_stages(stages: tuple[str, ...]) -> None:
    if not stages:
        raise ValueError(f"config.stages is empty; allowed: {', '.join(NEEDS)}")
    for i, stage in enumerate(stages):
        choice("stages", stage, tuple(NEEDS))
        if stage in stages[:i]:
            raise ValueError(f"stage {stage!r} stands twice in config.stages; name it once")
        for needed in NEEDS[stage]:
            if needed not in stages[:i]:
                raise ValueError(f"stage {stage!r} needs {needed!r} before it; change config.stages")


def check_choices(config: Any) -> None:
    choice("model.compute_dtype", config.model.compute_dtype, tuple(DTYPES))
    choice("model.parameter_dtype", config.model.parameter_dtype, tuple(DTYPES))
    choice("prompts.source", config.prompts.source, prompts.SOURCES)
    choice("pack.over_long", config.pack.over_long, views.OVER_LONG)
    choice("select.units", config.select.units, views.VIEWS)
    choice("select.estimator", config.select.estimator, tuple(quantiles.ESTIMATORS))
    choice("select.ties", config.select.ties, quantiles.TIES)
    choice("select.selector", config.select.selector, tuple(losses.SELECTORS))
    choice("train.objective", config.train.objective, tuple(OBJECTIVES))
    choice("train.loss", config.train.loss, tuple(losses.REGRESSION))
    choice("train.partition", config.train.partition, partition.PARTITIONS)
    choice("train.reference", config.train.reference, REFERENCES)
    choice("export.dtype", config.export.dtype, tuple(DTYPES))
    choice("export.adapter", config.export.adapter, export.FORMS)


def check_transform(train: Any) -> None:
    """Refuses a transform that does not exist, or whose partition function is infinite at this β."""
    try:
        transform = transforms.parse(train.transform)
    except ValueError as error:
        raise ValueError(f"{error} (config.train.transform)") from None
    if not OBJECTIVES[train.objective].ranked or train.partition != "population":
        return
    # A completion of one token has the largest β.
    largest = min(train.beta, train.beta_cap or math.inf) if train.length_normalised else train.beta
    try:
        transforms.check_beta(largest, transform.smallest_beta, transform.name)
    except ValueError as error:
        keys = "config.train.transform, config.train.beta, or config.train.partition='finite_sample'"
        raise ValueError(f"{error} ({keys})") from None


def check_numbers(config: Any) -> None:
    """Bounds of single numbers, by key."""
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}; it must be at least 0 (config.seed)")
    at_least = {
        "prompts.count": 0 if config.prompts.source == "jsonl" else 1,
        "prompts.held_out": 2 if "evaluate" in config.stages else 0,
        "model.vocab_chunk": 0,
        "prompts.unit": 1,
        "prompts.max_tokens": 1,
        "prompts.beginning_tokens": 1,
        "sample.completions": 0,
        "sample.max_new_tokens": 1,
        "sample.top_k": 0,
        "evaluate.completions": 1,
        "evaluate.max_new_tokens": 1,
        "evaluate.top_k": 0,
        "reward.workers": 0,
        "reward.max_tokens": 0,
        "reward.batch_rows": 1,
        "pack.max_tokens": 2,
        "pack.slots": 2,
        "pack.row_tokens": config.pack.max_tokens,
        "reference.batch_rows": 1,
        "select.first": 0,
        "select.references": 0,
        "report.examples": 0,
        "sft.examples": 1,
    }
    for section in ("sft", "train"):
        for name in ("batch_size", "epochs", "microbatches", "log_every", "checkpoint_every"):
            at_least[f"{section}.{name}"] = 1
    for key, least in at_least.items():
        section, name = key.split(".")
        if config[section][name] < least:
            raise ValueError(f"{key} is {config[section][name]}; it must be at least {least} (config.{key})")
    for section in ("sample", "evaluate"):
        between(f"{section}.temperature", config[section].temperature, 0, math.inf)
        between(f"{section}.top_p", config[section].top_p, 1e-9, 1)
    between("reference.temperature", config.reference.temperature, 1e-9, math.inf)
    between("reward.cpu_seconds", config.reward.cpu_seconds, 0.01, math.inf)
    between("reward.memory_mb", config.reward.memory_mb, 64, math.inf)
    between("train.beta", config.train.beta, 1e-30, math.inf)
    between("train.beta_cap", config.train.beta_cap, 0, math.inf)
    for section in ("sft", "train"):
        for name in ("b1", "b2"):
            between(f"{section}.{name}", config[section][name], 0, 1)
        for name in ("weight_decay", "clip_norm", "learning_rate"):
            between(f"{section}.{name}", config[section][name], 0, math.inf)
    for section in ("sft", "train"):
        optimization = config[section]
        names = ("learning_rate", "schedule", "warmup_share", "b1", "b2", "weight_decay", "clip_norm")
        make_optimizer(steps=1, **{name: optimization[name] for name in names})
    if config.pack.slots % 2:
        raise ValueError(f"pack.slots is {config.pack.slots}; pairs need an even number (config.pack.slots)")


def check_prompts(job: Job) -> None:
    config = job.config
    if config.prompts.source == "jsonl":
        check_rows(job)
    elif config.sample.completions == 0:
        raise ValueError(f"sample.completions is 0, but prompts from {config.prompts.source!r} bring no completions")
    if config.prompts.source == "model" and "sft" in config.stages:
        raise ValueError("prompts from the model bring nothing to learn from: remove 'sft' from config.stages")
    if config.prompts.source == "model" and job.policy.text.tokenizer.bos_token_id is None:
        raise ValueError("prompts from the model start at its BOS token, and its tokenizer has none")
    if not config.model.path and config.prompts.source != "programs":
        raise ValueError("a model made from nothing knows only the words of 'programs' (config.prompts.source)")


def check_rows(job: Job) -> None:
    """Refuses rows of a JSON-lines file that a later stage could not use."""
    config = job.config
    rows = prompts.read_jsonl(Path(config.prompts.path))
    kept, held_out = prompts.split_rows(rows, config.prompts.held_out, config.prompts.count)
    if config.sample.completions == 0 or "sft" in config.stages:
        empty = [row.id for row in kept if not row.completions]
        if empty:
            raise ValueError(
                f"row {empty[0]!r} has no completion ({len(empty)} have none); give it some in "
                f"{config.prompts.path}, or sample them: config.sample.completions"
            )
    for part, name in ((kept, "to train on"), (held_out, "held out")):
        lengths = [len(job.policy.text.prompt(row.messages, f"row {row.id!r}")) for row in part]
        fits = sum(length <= config.prompts.max_tokens for length in lengths)
        if part and not fits:
            raise ValueError(
                f"all {len(part)} prompts {name} are longer than {config.prompts.max_tokens} tokens; "
                "raise config.prompts.max_tokens"
            )
    stages = set(config.stages)
    if config.reward.name == TESTS and stages & {"score", "evaluate"}:
        for row in rows:
            read_tests(row)
    scored = all(math.isfinite(c.reward) for row in kept for c in row.completions)
    if "train" in stages and "score" not in stages and not (scored and config.sample.completions == 0):
        raise ValueError("some completions have no reward: put 'score' before 'train' in config.stages")
    if "train" in stages and OBJECTIVES[config.train.objective].ranked:
        for row in kept:
            sampled = config.sample.completions
            references = sampled + len(row.reference_rewards)
            references = min(references, config.select.references) if config.select.references else references
            check_count(references - int(config.select.exclude_own and sampled > 0), config, row.id)


def check_reward_model(job: Job) -> None:
    """Refuses a reward model that is none, that the mesh cannot split, or that cannot read the prompts of a file."""
    config = job.config
    if not config.reward.path:
        raise ValueError("reward 'model' needs a Hugging Face folder of a reward model (config.reward.path)")
    model = models.open_reward_model(Path(config.reward.path), config.reward.max_tokens)
    models.check_mesh(model, job.local_mesh)
    if config.prompts.source == "jsonl":
        rows = prompts.read_jsonl(Path(config.prompts.path))
        for part in prompts.split_rows(rows, config.prompts.held_out, config.prompts.count):
            models.check_prompts(model, part)


def check_count(references: int, config: Any, row: str | None = None) -> None:
    """Refuses too few references a prompt for the transform, naming the keys that decide their number."""
    try:
        quantiles.check_references(references, transforms.parse(config.train.transform), config.select.estimator)
    except ValueError as error:
        where = f"row {row!r}: " if row is not None else ""
        raise ValueError(
            f"{where}{error} (config.sample.completions, config.select.references, config.select.exclude_own, "
            "config.select.estimator, config.train.transform)"
        ) from None


def check_lora(config: Any) -> None:
    """Refuses LoRA, or what needs it, where the rest of the config has no place for it."""
    stages, reference = config.stages, config.train.reference
    if config.lora.rank < 0:
        raise ValueError(f"lora.rank is {config.lora.rank}; it must be at least 1, or 0 for none (config.lora.rank)")
    if config.lora.rank and "train" not in stages:
        raise ValueError("lora.rank is set, but only stage 'train' has adapters: add it to config.stages, or set 0")
    if config.export.adapter == "peft":
        if not config.lora.rank:
            raise ValueError("export.adapter 'peft' needs LoRA (config.lora.rank); or set config.export.adapter=merged")
        if "sft" in stages or not config.model.path:
            raise ValueError(
                "export.adapter 'peft' needs a base that is a model folder, and this one is what stage 'sft' makes: "
                "set config.export.adapter='merged', or config.model.path without 'sft' in config.stages"
            )
    if reference == "on_the_fly":
        if not config.lora.rank:
            raise ValueError(
                "train.reference 'on_the_fly' needs LoRA, whose base is the reference policy: set config.lora.rank, or "
                "config.train.reference='stored'"
            )
        if "reference" in stages:
            raise ValueError(
                "train.reference 'on_the_fly' has no use for what stage 'reference' stores: remove the stage from "
                "config.stages, or set config.train.reference='stored'"
            )
        if not OBJECTIVES[config.train.objective].needs_reference:
            raise ValueError(
                f"objective {config.train.objective!r} uses no log π_ref: set config.train.reference='stored'"
            )


def check_train(config: Any) -> None:
    train, select, pack = config.train, config.select, config.pack
    if OBJECTIVES[train.objective].pairwise and select.units == "singles":
        raise ValueError(
            f"objective {train.objective!r} compares two completions; set config.select.units to best_worst or "
            "random_pairs, or use an objective for single ones (qrpo, sft)"
        )
    if select.units != "singles" and pack.row_tokens < 2 * pack.max_tokens:
        raise ValueError(
            f"pack.row_tokens is {pack.row_tokens}; pairs of up to {pack.max_tokens} tokens each need at least "
            f"{2 * pack.max_tokens} (config.pack.row_tokens)"
        )
    needs_reference = OBJECTIVES[train.objective].needs_reference
    if needs_reference and train.reference == "stored" and "reference" not in config.stages:
        raise ValueError(
            f"objective {train.objective!r} needs log π_ref: put 'reference' before 'train' in config.stages, or with "
            "LoRA set config.train.reference='on_the_fly'"
        )
    if select.units != "singles" and select.first == 1:
        raise ValueError(
            "select.first is 1; pairs need two completions a row (config.select.first, config.select.units)"
        )
    if config.prompts.source == "jsonl":
        return
    if "score" not in config.stages:
        raise ValueError("sampled completions have no reward: put 'score' before 'train' in config.stages")
    if select.units != "singles" and config.sample.completions < 2:
        raise ValueError("sample.completions is below 2; pairs need two completions a row (config.sample.completions)")
    if OBJECTIVES[train.objective].ranked:
        references = config.sample.completions
        references = min(references, select.references) if select.references else references
        check_count(references - int(select.exclude_own), config)
