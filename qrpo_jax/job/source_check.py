"""Whether the source of prompts fits the config. Nothing is opened, so that the answer comes at once."""

from collections.abc import Mapping
from typing import Any

from qrpo_jax.config.keys import did_you_mean, refuse
from qrpo_jax.data.sources import SOURCES
from qrpo_jax.data.sources.source import SourceKind
from qrpo_jax.errors import UserError

Sources = Mapping[str, SourceKind]


def check_source(config: Any, sources: Sources = SOURCES) -> None:
    """Refuses a source that does not exist, or that cannot serve the model or the stages of a config; opens nothing.

    Raises:
      UserError: naming the keys.
    """
    name = config.prompts.source
    if name not in sources:
        raise refuse("prompts.source", f"{name!r}; allowed: {', '.join(sources)}{did_you_mean(name, sources)}")
    kind = sources[name]
    if not config.model.path and kind.vocabulary is None:
        known = ", ".join(repr(other) for other in sources if sources[other].vocabulary is not None)
        raise UserError(
            f"a model that is trained from scratch knows only the words of {known}, not those of prompts from {name!r} "
            "(config.model.path, config.prompts.source)"
        )
    if "sft" in config.stages and not kind.demonstrations:
        raise UserError(f"prompts from {name!r} bring nothing to learn from: remove 'sft' from config.stages")
    if config.sample.completions == 0 and not kind.completions:
        raise UserError(
            f"sample.completions is 0, but prompts from {name!r} bring no completions (config.sample.completions)"
        )
