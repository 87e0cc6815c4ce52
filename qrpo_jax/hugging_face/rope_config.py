"""How `config.json` says which rotary position embedding a model has, in the layout of transformers 5 or older."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.hugging_face.families import Family
from qrpo_jax.hugging_face.json_values import number, unsupported
from qrpo_jax.model.rope import LinearScaling, LongRope, RopeScaling, Scaling
from qrpo_jax.model.settings import DecoderSettings

LLAMA3 = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}

# For each kind of rotary embedding, the keys it needs and those it may have.
ROPE_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "llama3": (frozenset(LLAMA3.values()), frozenset()),
    "longrope": (
        frozenset({"short_factor", "long_factor", "original_max_position_embeddings"}),
        frozenset({"factor", "attention_factor"}),
    ),
}
ROPE_TOP = ("rope_theta", "partial_rotary_factor")
SLIDING, FULL = "sliding_attention", "full_attention"


def read_rope(folder: Path, family: Family, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The settings that say how positions are embedded.

    Raises:
      ValueError: an unknown kind, a key that this kind does not have, or two keys that contradict each other.
    """
    sources: dict[str, dict[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        given = {name: None, **config}[name]
        if not isinstance(given, dict | None):
            raise unsupported(folder, name, given, (None, *({"rope_type": kind} for kind in family.ropes)))
        # Phi-3 folders of the first days call their kind "su".
        su = "longrope" in family.ropes
        sources[name] = {
            key: "longrope" if su and key in ("type", "rope_type") and value == "su" else value
            for key, value in (given or {}).items()
        }
    top = {key: config[key] for key in ROPE_TOP if key in config}
    if not any(sources.values()):
        sources["rope_parameters"] = dict(family.rope_default)
    found: dict[str, Any] = {}
    if family.local_theta is not None:
        local = _local(folder, family.local_theta, config, sources["rope_parameters"], sizes)
        found["local_rope_theta"], sources["rope_parameters"] = local
    merged = _merged(folder, sources, top)
    if "longrope" in family.ropes and {"rope_type": None, **merged}["rope_type"] == "longrope":
        original = "original_max_position_embeddings"
        # transformers lets the key outside win, and where it is absent its default.
        merged = _merged(folder, {**sources, original: {original: {original: 4096, **config}[original]}}, top)
    merged = {"rope_theta": family.rope_theta, **merged}
    found["rope_theta"], found["rope_scaling"], share = _turns(folder, merged, family.ropes, sizes)
    if family.partial_rotary:
        found["rotary_share"] = share
    elif share != 1.0:
        raise unsupported(folder, "partial_rotary_factor", share, (1.0,))
    if isinstance(found["rope_scaling"], LongRope):
        found["max_positions"] = min(sizes["max_positions"], found["rope_scaling"].original_max_positions)
    return found


def _local(
    folder: Path, theta: float, config: Mapping[str, Any], nested: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[float, dict[str, Any]]:
    """The base of sliding layers, and what `rope_parameters` says about the others."""
    parts: dict[str, dict[str, Any]] = {SLIDING: {}, FULL: {}}
    for key, value in nested.items():
        if key not in parts or not isinstance(value, dict | None):
            raise ValueError(
                f"{folder}/config.json sets {key}={value!r} in rope_parameters; "
                f"supported: one object for {SLIDING} and one for {FULL}"
            )
        parts[key] = dict(value or {})
    top = {"rope_theta": config["rope_local_base_freq"]} if "rope_local_base_freq" in config else {}
    merged = {"rope_theta": theta, **_merged(folder, {"rope_parameters": parts[SLIDING]}, top)}
    local_theta, _, share = _turns(folder, merged, ("default",), sizes)
    if share != 1.0:
        raise unsupported(folder, "partial_rotary_factor", share, (1.0,))
    return local_theta, parts[FULL]


def _merged(folder: Path, sources: Mapping[str, Mapping[str, Any]], top: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary of what several places say, which must agree."""
    merged: dict[str, Any] = {}
    for source, given in sources.items():
        for key, value in [*top.items(), *given.items()]:
            key = "rope_type" if key == "type" else key
            if key in merged and merged[key] != value:
                raise ValueError(f"{folder}/config.json gives {key} twice, as {merged[key]!r} and {value!r} ({source})")
            merged[key] = value
    return merged


def _turns(
    folder: Path, merged: Mapping[str, Any], allowed: tuple[str, ...], sizes: Mapping[str, int]
) -> tuple[float, Scaling | None, float]:
    """Base, scaling and rotated share of one kind of layer."""
    merged = {"rope_type": "default", "partial_rotary_factor": None, **merged}
    kind, share = merged["rope_type"], merged["partial_rotary_factor"]
    share = 1.0 if share is None else number(folder, "partial_rotary_factor", share, float)
    if kind not in allowed:
        raise unsupported(folder, "rope_type", kind, allowed)
    needed, may = ROPE_KEYS[kind]
    unknown = sorted(merged.keys() - {"rope_type", *ROPE_TOP} - needed - may)
    if unknown:
        raise ValueError(f"{folder}/config.json sets {unknown[0]} for rope type {kind}, which is not supported")
    missing = sorted(needed - merged.keys())
    if missing:
        raise ValueError(f"{folder}/config.json does not say {missing[0]} for rope type {kind}")
    theta = number(folder, "rope_theta", merged["rope_theta"], float)
    absent = {key for key in may if {key: None, **merged}[key] is None}
    numbers = {
        key: number(folder, key, merged[key], int if key.startswith("original") else float)
        for key in (needed | may) - absent - {"short_factor", "long_factor"}
    }
    if kind == "default":
        return theta, None, share
    if kind == "linear":
        return theta, LinearScaling(numbers["factor"]), share
    if kind == "longrope":
        stretches = {}
        for key in ("short_factor", "long_factor"):
            listed, count = merged[key], int(sizes["head_dim"] * share) // 2
            if not isinstance(listed, list) or len(listed) != count:
                raise ValueError(f"{folder}/config.json sets {key}={listed!r}; it must be a list of {count} numbers")
            stretches[key] = tuple(number(folder, key, one, float) for one in listed)
        original = numbers.pop("original_max_position_embeddings")
        lists = (stretches["short_factor"], stretches["long_factor"])
        return theta, LongRope(*lists, original, sizes["max_positions"], **numbers), share
    scaling = RopeScaling(**{ours: numbers[theirs] for ours, theirs in LLAMA3.items()})
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise ValueError(f"{folder}/config.json: high_freq_factor must be above low_freq_factor, given {merged}")
    return theta, scaling, share


def written_rope(settings: DecoderSettings, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """`rope_parameters`, and further keys beside it."""
    scaling, theta = settings.rope_scaling, settings.rope_theta
    rope: dict[str, Any] = {"rope_type": "default"}
    top: dict[str, Any] = {"rope_theta": theta}
    old = None
    if isinstance(scaling, RopeScaling):
        rope = {"rope_type": "llama3", **{theirs: getattr(scaling, ours) for ours, theirs in LLAMA3.items()}}
    elif isinstance(scaling, LinearScaling):
        rope = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, LongRope):
        explicit = {"factor": scaling.factor, "attention_factor": scaling.attention_factor}
        rope = {
            "rope_type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            **{key: value for key, value in explicit.items() if value is not None},
        }
        # Older readers know this kind by the key `type`, and want the original length outside.
        old = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
        rope["original_max_position_embeddings"] = scaling.original_max_positions
        top["original_max_position_embeddings"] = scaling.original_max_positions
        top["max_position_embeddings"] = scaling.extended_positions
    top["rope_scaling"] = None if scaling is None else old or rope
    rope = {**rope, "rope_theta": theta}
    if family.partial_rotary:
        rope["partial_rotary_factor"] = top["partial_rotary_factor"] = settings.rotary_share
    if settings.local_rope_theta is not None:
        rope = {FULL: rope, SLIDING: {"rope_type": "default", "rope_theta": settings.local_rope_theta}}
        top["rope_local_base_freq"] = settings.local_rope_theta
    return rope, top
