"""Whether the source of prompts fits the config. Nothing is opened, so that the answer comes at once."""

from collections.abc import Mapping
from typing import Any

from qrpo_jax.config.keys import did_you_mean, refuse
from qrpo_jax.data.sources import MIX, SOURCES, kind_of, split_name
from qrpo_jax.data.sources.mix_parts import parse_mix
from qrpo_jax.data.sources.source import SourceKind
from qrpo_jax.errors import UserError, located, shown

Sources = Mapping[str, SourceKind]


def check_source(config: Any, sources: Sources = SOURCES) -> None:
    """Refuses a source that does not exist, or that cannot serve the model or the stages of a config; opens nothing.

    Raises:
      UserError: naming the keys.
    """
    name, (kind_name, address) = config.prompts.source, split_name(config.prompts.source)
    if kind_name not in sources:
        near = did_you_mean(kind_name, sources)
        raise refuse("prompts.source", f"{name!r}; allowed: {', '.join(map(_written, sources.items()))}{near}")
    kind = kind_of(name, sources)
    if bool(address) != bool(kind.address):
        raise refuse("prompts.source", f"{name!r}; write {_written((kind_name, kind))}")
    check_parts(config.prompts, kind)
    check_mix(config.prompts, kind_name, sources)
    if not config.model.path and kind.vocabulary is None:
        known = ", ".join(repr(other) for other in sources if sources[other].vocabulary is not None)
        raise UserError(
            f"a model that is trained from scratch knows only the words of {known}, not those of prompts from {name!r} "
            "(config.model.path, config.prompts.source)"
        )
    if "sft" in config.stages and not kind.demonstrations:
        raise UserError(f"prompts from {name!r} bring nothing to learn from: remove 'sft' from config.stages")
    if sampled_completions(config) == 0 and "sample" in config.stages and not kind.completions:
        raise UserError(
            f"sample.completions is 0, but prompts from {name!r} bring no completions (config.sample.completions)"
        )


def is_on_policy(config: Any) -> bool:
    """Whether stage `train` samples its own data."""
    return bool(config.train.data == "on_policy")


def sampled_completions(config: Any) -> int:
    """How many completions of a prompt the stages of a config sample from the reference policy."""
    return config.sample.completions if "sample" in config.stages else 0


def brings_rows(config: Any, sources: Sources = SOURCES) -> bool:
    """Whether stages can read rows from the source itself. False for a source that does not exist."""
    kind = sources.get(split_name(config.prompts.source)[0])
    return kind is not None and kind.listed


def needs_no_samples(config: Any) -> bool:
    """Whether stages can do without `sample`: the source brings rows, or training alone reads prompts and samples."""
    own_data = is_on_policy(config) and not {"score", "reference"} & set(config.stages)
    return own_data or brings_rows(config)


def check_parts(prompts: Any, kind: SourceKind) -> None:
    """Refuses keys about splits, layouts and columns for prompts that have none.

    Raises:
      UserError: naming the key.
    """
    none = {"split": not kind.listed, "layout": not kind.columns, "columns": not kind.columns}
    for key, value in ((key, prompts[key]) for key in none):
        if value and none[key]:
            raise refuse(
                f"prompts.{key}", f"{shown(value)}; prompts from {prompts.source!r} have no {key}: leave it empty"
            )
    if isinstance(prompts.held_out, str) and not kind.listed:
        raise refuse(
            "prompts.held_out", f"{prompts.held_out!r}; prompts from {prompts.source!r} have no splits: give a number"
        )


def check_mix(prompts: Any, kind_name: str, sources: Sources) -> None:
    """Refuses a mix whose sources do not exist or are no data sets, and one that is not asked for.

    Raises:
      UserError: naming the key.
    """
    if kind_name != MIX:
        if prompts.mix:
            raise refuse("prompts.mix", f"set, but prompts are from {prompts.source!r}: set config.prompts.source=mix")
        return
    with located("prompts.mix"):
        parts = parse_mix(tuple(prompts.mix))
    allowed = {name: kind for name, kind in sources.items() if kind.listed and name != MIX}
    for part in parts:
        name, address = split_name(part.source)
        if name not in allowed or not address:
            raise refuse(
                "prompts.mix", f"of {part.source!r} among others; allowed: {', '.join(map(_written, allowed.items()))}"
            )
        if (part.layout or part.columns) and not allowed[name].columns:
            raise refuse(
                "prompts.mix", f"of {part.source!r}, which has columns of its own: leave out layout and columns"
            )


def _written(item: tuple[str, SourceKind]) -> str:
    """How a source of this kind is named.

    >>> _written(("jsonl", SOURCES["jsonl"]))
    'jsonl:FILES'
    """
    name, kind = item
    return f"{name}:{kind.address}" if kind.address else name
