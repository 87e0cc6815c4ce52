"""Which matrices LoRA adapts: a pattern over Hugging Face's names of linear maps (arXiv 2106.09685)."""

import math
import re
from typing import Any, NamedTuple

from flax import nnx

from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.model.decoder import abstract_parameters
from qrpo_jax.model.settings import DecoderSettings, Lora


class Module(NamedTuple):
    """A linear map of every layer.

    name: as Hugging Face and PEFT call it, within its layer: "self_attn.q_proj".
    matrices: ours that lie in it, from its first row to its last; several where a family stores them fused.
    """

    name: str
    matrices: tuple[tuple[str, str], ...]  # ("attention", "q")


def modules(settings: DecoderSettings) -> tuple[Module, ...]:
    """All that can be adapted."""
    return tuple(_modules(settings).values())


def make_lora(settings: DecoderSettings, *, rank: int, alpha: float, targets: str) -> Lora:
    """Adapters of the modules that a pattern names.

    Args:
      rank, alpha: an adapter adds x A B · alpha / rank, and A has `rank` columns. In a module that is stored fused
        (Phi-3's qkv_proj) each matrix has an adapter of its own.
      targets: a regular expression for Hugging Face's name of a module within its layer, or for the last parts of
        that name: "q_proj|v_proj", "self_attn.*", ".*_proj". All layers are adapted alike.

    Raises:
      ValueError: rank or alpha not positive, a pattern that is malformed, matches nothing, or names what has no
        adapters (embeddings, norms, activations).
    """
    if rank < 1:
        raise ValueError(f"lora.rank is {rank}; an adapter needs at least 1 (config.lora.rank)")
    if not (0 < alpha < math.inf):
        raise ValueError(f"lora.alpha is {alpha}; it must be finite, above 0 (config.lora.alpha)")
    try:
        pattern = re.compile(rf"(.*\.)?({targets})")
    except re.error as error:
        raise ValueError(
            f"lora.targets is {targets!r}, which is no regular expression: {error} (config.lora.targets)"
        ) from None
    known = _modules(settings)
    allowed = ", ".join(known)
    others = [name for name in _names(settings) if name not in known and pattern.fullmatch(name)]
    if others:
        raise ValueError(
            f"lora.targets {targets!r} names {others[0]}, which has no adapters; allowed: {allowed} "
            "(config.lora.targets)"
        )
    chosen = [matrix for name, module in known.items() if pattern.fullmatch(name) for _, matrix in module.matrices]
    if not chosen:
        raise ValueError(
            f"lora.targets {targets!r} matches no module of {settings.family}; it must match one or more of "
            f"{allowed}, from its start or from a dot on (config.lora.targets)"
        )
    return Lora(rank, float(alpha), tuple(chosen))


def _names(settings: DecoderSettings) -> dict[str, list[Any]]:
    """Hugging Face's name of every module, without its layer, and the paths of our parameters that lie in it."""
    family = FAMILIES[settings.family]
    found: dict[str, list[Any]] = {}
    present = nnx.traversals.flatten_mapping(abstract_parameters(settings))
    for path, weight in family.weights.items():
        if path in present:
            name = weight.name.rpartition(".")[0].removeprefix("model.").removeprefix("layers.{}.")
            found.setdefault(name, []).append((path, weight))
    return found


def _modules(settings: DecoderSettings) -> dict[str, Module]:
    matrices = {
        name: tuple((path[1], path[2]) for path, weight in held if path[0] == "layers" and weight.inputs)
        for name, held in _names(settings).items()
    }
    return {name: Module(name, held) for name, held in matrices.items() if held}
