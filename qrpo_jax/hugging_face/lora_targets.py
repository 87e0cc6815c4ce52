"""Which matrices LoRA adapts: a pattern over Hugging Face's names of linear maps (arXiv 2106.09685)."""

import math
import re
from typing import NamedTuple

from flax import nnx

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.family import ParameterPath, Weight
from qrpo_jax.model.decoder import abstract_parameters
from qrpo_jax.model.settings import DecoderSettings, Lora


class Module(NamedTuple):
    """A linear map of every layer.

    Attributes:
      name: as Hugging Face and PEFT call it, within its layer: "self_attn.q_proj".
      matrices: our matrices in it, from its first row to its last; several where a family stores them fused.
    """

    name: str
    matrices: tuple[tuple[str, str], ...]  # ("attention", "q")


def modules(settings: DecoderSettings) -> tuple[Module, ...]:
    """All linear maps that can have adapters."""
    return tuple(_modules(settings).values())


def make_lora(settings: DecoderSettings, *, rank: int, alpha: float, targets: str) -> Lora:
    """Adapters of the modules that a pattern names.

    Args:
      rank, alpha: an adapter adds x A B · alpha / rank, and A has `rank` columns. In a module that is stored fused
        (Phi-3's qkv_proj) each matrix has its own adapter.
      targets: a regular expression for Hugging Face's name of a module within its layer, or for the last parts of
        that name: "q_proj|v_proj", "self_attn.*", ".*_proj". All layers are adapted alike.

    Raises:
      UserError: rank or alpha not positive, a pattern that is malformed, matches nothing, or names modules without
        adapters (embeddings, norms, activations).
    """
    if rank < 1:
        raise UserError(f"rank is {rank}; an adapter needs at least 1", about="rank")
    if not (0 < alpha < math.inf):
        raise UserError(f"alpha is {alpha}; it must be finite, above 0", about="alpha")
    try:
        pattern = re.compile(rf"(.*\.)?({targets})")
    except re.error as error:
        raise UserError(f"targets is {targets!r}, which is no regular expression: {error}", about="targets") from None
    linear = _modules(settings)
    allowed = ", ".join(linear)
    others = [name for name in _weights_by_module(settings) if name not in linear and pattern.fullmatch(name)]
    if others:
        raise UserError(
            f"targets {targets!r} names {others[0]}, which has no adapters; allowed: {allowed}", about="targets"
        )
    chosen = [matrix for name, module in linear.items() if pattern.fullmatch(name) for _, matrix in module.matrices]
    if not chosen:
        raise UserError(
            f"targets {targets!r} matches no module of {settings.family}; it must match one or more of "
            f"{allowed}, from its start or from a dot on",
            about="targets",
        )
    return Lora(rank, float(alpha), tuple(chosen))


def _weights_by_module(settings: DecoderSettings) -> dict[str, list[tuple[ParameterPath, Weight]]]:
    """For Hugging Face's name of every module, without its layer, the parameters that lie in it."""
    weights: dict[str, list[tuple[ParameterPath, Weight]]] = {}
    present = nnx.traversals.flatten_mapping(abstract_parameters(settings))
    for path, weight in FAMILIES[settings.family].weights.items():
        if path in present:
            name = weight.name.rpartition(".")[0].removeprefix("model.").removeprefix("layers.{}.")
            weights.setdefault(name, []).append((path, weight))
    return weights


def _modules(settings: DecoderSettings) -> dict[str, Module]:
    matrices = {
        name: tuple((path[1], path[2]) for path, weight in weights if path[0] == "layers" and weight.inputs)
        for name, weights in _weights_by_module(settings).items()
    }
    return {name: Module(name, parts) for name, parts in matrices.items() if parts}
