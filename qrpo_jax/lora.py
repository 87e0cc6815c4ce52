"""LoRA: which matrices are adapted, and adapters beside their base or merged into it (arXiv 2106.09685).

Adapters are a tree of their own, shaped like the decoder's parameters: where those have `q` [N, D, H, K], adapters have
`q_adapter` with `a` [N, D, r] and `b` [N, r, H, K]. The base never changes, so it is the reference policy: the graph
without adapters, with the base alone.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qrpo_jax.decoder import Parameters, abstract_parameters
from qrpo_jax.families import FAMILIES
from qrpo_jax.settings import DecoderSettings, Lora

SUFFIX = "_adapter"


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


def join(base: Parameters, adapters: Parameters) -> Parameters:
    """Base and adapters as the parameters of a graph that has both; no array is copied."""
    flatten = nnx.traversals.flatten_mapping
    return nnx.traversals.unflatten_mapping({**flatten(base), **flatten(adapters)})


def merge(base: Parameters, adapters: Parameters, lora: Lora, dtype: Any = None) -> Parameters:
    """Parameters of a graph without adapters that computes the same: W + A B · alpha / rank, added up in float32.

    Args:
      dtype: of the adapted matrices (default: that of W); what has no adapter is left as it is.
    """
    merged = nnx.traversals.flatten_mapping(base)
    added = nnx.traversals.flatten_mapping(adapters)
    for *path, name, leaf in added:
        if leaf != "a":
            continue
        where = (*path, name.removesuffix(SUFFIX))
        weight, a, b = merged[where], added[*path, name, "a"], added[*path, name, "b"]
        a_NxIxr, b_NxrxO = a.reshape(a.shape[0], -1, lora.rank), b.reshape(b.shape[0], lora.rank, -1)
        # Full precision: on an accelerator the default would round both factors first.
        product = jnp.matmul(a_NxIxr, b_NxrxO, precision=jax.lax.Precision.HIGHEST).reshape(weight.shape)
        merged[where] = (weight.astype(jnp.float32) + lora.scale * product).astype(dtype or weight.dtype)
    return nnx.traversals.unflatten_mapping(merged)


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
