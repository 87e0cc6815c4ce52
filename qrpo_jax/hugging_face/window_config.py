"""How `config.json` says which layers attend to a sliding window."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.families import PATTERN, PATTERN_BESIDE
from qrpo_jax.hugging_face.family import Family
from qrpo_jax.hugging_face.json_values import flag, number, setting_error, unsupported
from qrpo_jax.model.settings import DecoderSettings

SLIDING, FULL = "sliding_attention", "full_attention"
ATTENTION = "attention"  # as models with other kinds of layers call it; transformers 5 reads it as FULL
WINDOW_KEYS = {
    "none": (),
    "attention": ("layer_types",),
    "all": ("sliding_window",),
    "listed": ("sliding_window", "layer_types"),
    "late": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "unroped": ("sliding_window", "use_sliding_window", "layer_types"),
    "alternate": ("sliding_window", "layer_types"),
}


def window_keys(family: Family) -> set[str]:
    """The keys of config.json that are about the windows of this family."""
    keys = set(WINDOW_KEYS[family.windows])
    keys |= {"sliding_window_size"} if family.windows == "alternate" else set()
    return keys | set(family.pattern_keys)


def read_windows(
    folder: Path, family: Family, config: Mapping[str, Any], layers: int, rope_layers: tuple[bool, ...] | None
) -> dict[str, Any]:
    """The settings `sliding_window` and `sliding_layers`.

    Args:
      layers: number of layers.
      rope_layers: which of them know positions (None: all).

    Raises:
      UserError: a malformed value, or keys that contradict each other.
    """
    if family.windows == "attention":
        _check_attention(folder, config, layers)
    if family.windows in ("none", "attention"):
        return {}
    window = _window(folder, family, config)
    if family.windows == "all":
        return {"sliding_window": window}
    types = _layer_types(folder, family, config, window, layers, rope_layers)
    slides = tuple(one == SLIDING for one in types)
    if any(slides) and window is None:
        raise UserError(
            f"{folder}/config.json has layers of type {SLIDING} and no sliding_window to go with them", about="path"
        )
    if not any(slides):
        return {}
    return {"sliding_window": window, "sliding_layers": None if all(slides) else slides}


def written_windows(settings: DecoderSettings, family: Family) -> dict[str, Any]:
    """The keys of config.json that say which layers slide."""
    window, slides = settings.sliding_window, settings.slides
    late = settings.layers
    while late and slides[late - 1]:
        late -= 1
    types = [SLIDING if slide else FULL for slide in slides]
    values = {
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "max_window_layers": late,
        "layer_types": types,
    }
    if family.windows == "alternate" and window is None and family.roped != "windowed":
        values["sliding_window"] = family.window  # transformers wants one even where no layer slides
    if family.windows == "attention":
        values["layer_types"] = [ATTENTION] * settings.layers
    written = {key: values[key] for key in WINDOW_KEYS[family.windows]}
    if family.pattern_keys:
        patterns = (family.pattern, *range(1, settings.layers + 2))
        matches = [pattern for pattern in patterns if _alternate(pattern, settings.layers) == types]
        written |= {PATTERN: matches[0]} if matches else {}
    return written


def _window(folder: Path, family: Family, config: Mapping[str, Any]) -> int | None:
    values = {"sliding_window": family.window, "use_sliding_window": False, **config}
    used = family.windows in ("all", "listed", "alternate")
    used = used or flag(folder, "use_sliding_window", values["use_sliding_window"])
    window = values["sliding_window"] if used else None
    window = None if window is None else number(folder, "sliding_window", window, int)
    if {"sliding_window_size": window, **config}["sliding_window_size"] != window:
        raise unsupported(folder, "sliding_window_size", config["sliding_window_size"], (window,))
    return window


def _layer_types(
    folder: Path,
    family: Family,
    config: Mapping[str, Any],
    window: int | None,
    layers: int,
    rope_layers: tuple[bool, ...] | None,
) -> list[str]:
    """The type of every layer, from `layer_types` or else from the keys that came before it."""
    late = {"max_window_layers": 28, **config}["max_window_layers"]
    if family.windows == "late" and (not isinstance(late, int) or late < 0):
        raise setting_error(folder, "max_window_layers", late, "it must be an int from 0")
    types, beside = {"layer_types": None, **config}["layer_types"], None
    if types is None:
        beside = {PATTERN_BESIDE: None, **config}[PATTERN_BESIDE]  # transformers writes it beside any layer_types
        if family.windows == "late":
            types = [SLIDING if window is not None and i >= late else FULL for i in range(layers)]
        elif family.windows == "listed":
            types = [FULL if window is None else SLIDING] * layers
        elif family.windows == "unroped":
            types = [FULL if window is None or roped else SLIDING for roped in rope_layers or (True,) * layers]
        else:
            pattern = {PATTERN: family.pattern, **config}[PATTERN]
            types = _alternate(number(folder, PATTERN, pattern, int), layers)
    if not isinstance(types, list) or len(types) != layers or any(one not in (SLIDING, FULL) for one in types):
        raise setting_error(folder, "layer_types", types, f"it must be {layers} times {SLIDING} or {FULL}")
    if beside is not None and _alternate(number(folder, PATTERN_BESIDE, beside, int), layers) != types:
        raise UserError(
            f"{folder}/config.json sets {PATTERN_BESIDE}={beside!r}, yet layers alternate differently", about="path"
        )
    return types


def _alternate(pattern: int, layers: int) -> list[str]:
    return [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]


def _check_attention(folder: Path, config: Mapping[str, Any], layers: int) -> None:
    """Refuses layers of other kinds than attention, which transformers assumes where layer_types is absent."""
    types = {"layer_types": None, **config}["layer_types"]
    if not isinstance(types, list) or len(types) != layers or any(one not in (ATTENTION, FULL) for one in types):
        raise setting_error(folder, "layer_types", types, f"it must be {layers} times {ATTENTION}")
