"""How `config.json` says which rotary position embedding a model has, in the layout of transformers 5 or older."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.family import Family
from qrpo_jax.hugging_face.json_values import flag, number, setting_error, unsupported
from qrpo_jax.hugging_face.window_config import FULL, SLIDING
from qrpo_jax.model.rope import LinearScaling, LongRope, QueryGrowth, RopeScaling, Scaling, Yarn
from qrpo_jax.model.settings import DecoderSettings

LLAMA3 = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}
YARN = {
    "factor": "factor",
    "original_max_positions": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}

# For each kind of rotary embedding, the keys it needs and those it may have.
ROPE_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "llama3": (frozenset(LLAMA3.values()), frozenset()),
    "yarn": (frozenset({"factor"}), frozenset(YARN.values()) - {"factor"}),
    "longrope": (
        frozenset({"short_factor", "long_factor", "original_max_position_embeddings"}),
        frozenset({"factor", "attention_factor"}),
    ),
}
ROPE_TOP = ("rope_theta", "partial_rotary_factor")
ORIGINAL = "original_max_position_embeddings"
GROWTH = "llama_4_scaling_beta"
GROWTH_KEYS = (GROWTH, "max_position_embeddings")


class Rotation(NamedTuple):
    """How one kind of layer embeds positions: base, stretching, and the share of dimensions that is rotated."""

    theta: float
    scaling: Scaling | None
    share: float


def rope_keys(family: Family) -> set[str]:
    """The keys of config.json that are about the positions of this family."""
    keys = {"rope_parameters", "rope_scaling", *ROPE_TOP}
    keys |= {family.local_key} if family.local_key is not None else set()
    keys |= {"no_rope_layers", "no_rope_layer_interval"} if family.roped == "listed" else set()
    return keys | ({ORIGINAL} if "longrope" in family.ropes else set())


def read_rope(folder: Path, family: Family, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The settings that say how positions are embedded, `rope_layers` aside.

    Args:
      sizes: settings `head_dim` and `max_positions`.

    Raises:
      UserError: an unknown kind, a key that this kind does not have, or two keys that contradict each other.
    """
    sources = _sources(folder, family, config)
    top = {key: config[key] for key in ROPE_TOP if key in config}
    fields: dict[str, Any] = {}
    if family.local_theta is not None:
        local_theta, everywhere = _local(folder, family, config, sources, sizes)
        fields["local_rope_theta"], sources["rope_parameters"] = local_theta, everywhere
    merged = _merged(folder, sources, top)
    if "longrope" in family.ropes and {"rope_type": None, **merged}["rope_type"] == "longrope":
        # transformers prefers the key outside `rope_parameters`, and where it is absent its default.
        merged = _merged(folder, {**sources, ORIGINAL: {ORIGINAL: {ORIGINAL: 4096, **config}[ORIGINAL]}}, top)
    growth = {key: merged.pop(key) for key in GROWTH_KEYS if key in merged} if family.query_growth else {}
    theta, scaling, share = _rotation(folder, family, {"rope_theta": family.rope_theta, **merged}, sizes)
    fields |= {"rope_theta": theta, "rope_scaling": scaling}
    if isinstance(scaling, Yarn) and family.query_growth:
        fields["query_growth"] = _query_growth(folder, growth, scaling, sizes)
    if family.partial_rotary:
        fields["rotary_share"] = share
    elif share != 1.0:
        raise unsupported(folder, "partial_rotary_factor", share, (1.0,))
    if isinstance(scaling, LongRope):
        fields["max_positions"] = min(sizes["max_positions"], scaling.original_max_positions)
    return fields


def read_rope_layers(folder: Path, config: Mapping[str, Any], layers: int) -> tuple[bool, ...] | None:
    """The setting `rope_layers` of a family in which not all layers know positions.

    Raises:
      UserError: a malformed value.
    """
    values = {"no_rope_layers": None, "no_rope_layer_interval": 4, **config}
    flags = values["no_rope_layers"]
    if flags is None:
        interval = number(folder, "no_rope_layer_interval", values["no_rope_layer_interval"], int)
        flags = [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or any(one not in (0, 1) for one in flags):
        raise setting_error(folder, "no_rope_layers", flags, f"it must be {layers} times 0 or 1")
    roped = tuple(bool(one) for one in flags[:layers])
    return None if all(roped) else roped


def layers_with_rope(family: Family, windows: Mapping[str, Any], layers: int) -> tuple[bool, ...] | None:
    """The setting `rope_layers` of a family in which layers without a window do not know positions, or None.

    Args:
      windows: settings `sliding_window` and `sliding_layers`.
    """
    window = {"sliding_window": None, **windows}["sliding_window"]
    if family.roped not in ("sliding", "windowed") or (family.roped == "windowed" and window is None):
        return None
    if window is None:
        return (False,) * layers
    slides: tuple[bool, ...] | None = windows["sliding_layers"]
    return slides


def written_rope(settings: DecoderSettings, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """`rope_parameters`, and further keys beside it."""
    scaling, theta = settings.rope_scaling, settings.rope_theta
    rope: dict[str, Any] = {"rope_type": "default"}
    top: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None}
    if isinstance(scaling, RopeScaling):
        rope = {"rope_type": "llama3", **{theirs: getattr(scaling, ours) for ours, theirs in LLAMA3.items()}}
    elif isinstance(scaling, LinearScaling):
        rope = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Yarn):
        values = {theirs: getattr(scaling, ours) for ours, theirs in YARN.items()}
        said = {key: value for key, value in values.items() if value is not None and value is not True}
        rope = {"rope_type": "yarn", **said}
    if settings.query_growth is not None:
        rope[GROWTH] = settings.query_growth.rate
    if isinstance(scaling, LongRope):
        rope, beside = _written_longrope(scaling)
        top |= beside
    elif scaling is not None:
        top["rope_scaling"] = rope
    rope = {**rope, "rope_theta": theta}
    if family.roped == "listed":
        flags = settings.rope_layers or (True,) * settings.layers
        top["no_rope_layers"] = [int(roped) for roped in flags]
    if family.partial_rotary:
        rope["partial_rotary_factor"] = top["partial_rotary_factor"] = settings.rotary_share
    if settings.local_rope_theta is not None:
        rope = {FULL: rope, SLIDING: {"rope_type": "default", "rope_theta": settings.local_rope_theta}}
        if family.local_key is not None:
            top[family.local_key] = settings.local_rope_theta
    return rope, top


def _written_longrope(scaling: LongRope) -> tuple[dict[str, Any], dict[str, Any]]:
    explicit = {"factor": scaling.factor, "attention_factor": scaling.attention_factor}
    rope = {
        "rope_type": "longrope",
        "short_factor": list(scaling.short_factors),
        "long_factor": list(scaling.long_factors),
        **{key: value for key, value in explicit.items() if value is not None},
    }
    beside = {
        ORIGINAL: scaling.original_max_positions,
        "max_position_embeddings": scaling.extended_positions,
        # Older readers know this kind by the key `type`, and want the original length outside.
        "rope_scaling": {"type" if key == "rope_type" else key: value for key, value in rope.items()},
    }
    return rope | {ORIGINAL: scaling.original_max_positions}, beside


def _sources(folder: Path, family: Family, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects `rope_parameters` and `rope_scaling`, or the family's default where neither says anything."""
    sources: dict[str, dict[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value = {name: None, **config}[name]
        if not isinstance(value, dict | None):
            raise unsupported(folder, name, value, (None, *({"rope_type": kind} for kind in family.ropes)))
        # The first Phi-3 folders call their kind "su".
        su = "longrope" in family.ropes
        sources[name] = {
            key: "longrope" if su and key in ("type", "rope_type") and entry == "su" else entry
            for key, entry in (value or {}).items()
        }
    if not any(sources.values()):
        sources["rope_parameters"] = dict(family.rope_default)
    return sources


def _local(
    folder: Path,
    family: Family,
    config: Mapping[str, Any],
    sources: Mapping[str, dict[str, Any]],
    sizes: Mapping[str, int],
) -> tuple[float, dict[str, Any]]:
    """The base of sliding layers, and what `rope_parameters` says about the other layers."""
    parts: dict[str, dict[str, Any]] = {SLIDING: {}, FULL: {}}
    for kind, value in sources["rope_parameters"].items():
        if kind not in parts or not isinstance(value, dict | None):
            raise UserError(
                f"{folder}/config.json sets {kind}={value!r} in rope_parameters; "
                f"supported: one object for {SLIDING} and one for {FULL}",
                about="path",
            )
        parts[kind] = dict(value or {})
    key = family.local_key
    top = {"rope_theta": config[key]} if key is not None and key in config else {}
    merged = {"rope_theta": family.local_theta, **_merged(folder, {"rope_parameters": parts[SLIDING]}, top)}
    local = _rotation(folder, family._replace(ropes=("default",)), merged, sizes)
    if local.share != 1.0:
        raise unsupported(folder, "partial_rotary_factor", local.share, (1.0,))
    outside = {"rope_theta": local.theta, **config}["rope_theta"]
    if key is None and "rope_theta" not in parts[SLIDING] and outside != local.theta:
        # Before transformers 5 it was the base of all layers, and since then it is not that of sliding ones.
        raise setting_error(
            folder, "rope_theta", outside, f"rope_parameters must say that of {SLIDING} and {FULL} layers each"
        )
    if "truncate" in {**parts[FULL], **sources["rope_scaling"]}:
        raise UserError(
            f"{folder}/config.json sets truncate for one kind of layer, which transformers ignores", about="path"
        )
    return local.theta, parts[FULL]


def _query_growth(folder: Path, growth: Mapping[str, Any], scaling: Yarn, sizes: Mapping[str, int]) -> QueryGrowth:
    values = {GROWTH: None, "max_position_embeddings": sizes["max_positions"], **growth}
    if values["max_position_embeddings"] != sizes["max_positions"]:
        key = "max_position_embeddings"
        raise unsupported(folder, key, values[key], (sizes["max_positions"],))
    return QueryGrowth(number(folder, GROWTH, values[GROWTH], float), scaling.original_max_positions)


def _merged(folder: Path, sources: Mapping[str, Mapping[str, Any]], top: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary of several objects, which must agree with each other and with the keys outside them."""
    merged: dict[str, Any] = {}
    for source, content in sources.items():
        for key, value in [*top.items(), *content.items()]:
            key = "rope_type" if key == "type" else key
            if key in merged and merged[key] != value:
                raise UserError(
                    f"{folder}/config.json gives {key} twice, as {merged[key]!r} and {value!r} ({source})", about="path"
                )
            merged[key] = value
    return merged


def _rotation(folder: Path, family: Family, merged: Mapping[str, Any], sizes: Mapping[str, int]) -> Rotation:
    merged = {"rope_type": "default", "partial_rotary_factor": None, **merged}
    kind, share = merged["rope_type"], merged["partial_rotary_factor"]
    share = family.rotary_share if share is None else number(folder, "partial_rotary_factor", share, float)
    if kind not in family.ropes:
        raise unsupported(folder, "rope_type", kind, family.ropes)
    needed, optional = ROPE_KEYS[kind]
    unknown = sorted(merged.keys() - {"rope_type", *ROPE_TOP} - needed - optional)
    if unknown:
        raise UserError(
            f"{folder}/config.json sets {unknown[0]} for rope type {kind}, which is not supported", about="path"
        )
    missing = sorted(needed - merged.keys())
    if missing:
        raise UserError(f"{folder}/config.json does not say {missing[0]} for rope type {kind}", about="path")
    theta = number(folder, "rope_theta", merged["rope_theta"], float)
    present = [key for key in sorted(needed | optional) if key in needed or {key: None, **merged}[key] is not None]
    return Rotation(theta, _scaling(folder, kind, {key: merged[key] for key in present}, theta, share, sizes), share)


def _scaling(
    folder: Path, kind: str, given: dict[str, Any], theta: float, share: float, sizes: Mapping[str, int]
) -> Scaling | None:
    if kind == "default":
        return None
    lists = {key: given.pop(key) for key in ("short_factor", "long_factor") if key in given}
    values = {key: _scaling_value(folder, key, value) for key, value in given.items()}
    if kind == "linear":
        return LinearScaling(values["factor"])
    if kind == "yarn":
        if theta <= 1.0:
            raise setting_error(folder, "rope_theta", theta, "it must be above 1 for rope type yarn")
        values = {ORIGINAL: sizes["max_positions"], **values}  # as transformers takes it where it is absent
        return Yarn(**{ours: values[theirs] for ours, theirs in YARN.items() if theirs in values})
    if kind == "longrope":
        count = int(sizes["head_dim"] * share) // 2
        short, long = (_factors(folder, key, lists[key], count) for key in ("short_factor", "long_factor"))
        return LongRope(short, long, values.pop(ORIGINAL), sizes["max_positions"], **values)
    scaling = RopeScaling(**{ours: values[theirs] for ours, theirs in LLAMA3.items()})
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise UserError(
            f"{folder}/config.json: high_freq_factor must be above low_freq_factor, given {given}", about="path"
        )
    return scaling


def _scaling_value(folder: Path, key: str, value: Any) -> Any:
    if key == "truncate":
        return flag(folder, key, value)
    return number(folder, key, value, int if key == ORIGINAL else float)


def _factors(folder: Path, key: str, value: Any, count: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise setting_error(folder, key, value, f"it must be a list of {count} numbers")
    return tuple(number(folder, key, one, float) for one in value)
