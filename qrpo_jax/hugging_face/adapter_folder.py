"""Adapters as a folder that `peft` loads on top of their base: adapter_config.json and adapter_model.safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qrpo_jax import files
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.json_values import write_json
from qrpo_jax.hugging_face.lora_targets import Module, modules
from qrpo_jax.hugging_face.new_folders import check_new
from qrpo_jax.hugging_face.tensor_file import write_tensors
from qrpo_jax.hugging_face.text_part import LAYERS
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.lora import SUFFIX
from qrpo_jax.model.settings import DecoderSettings, Lora


def save(
    folder: Path,
    settings: DecoderSettings,
    lora: Lora,
    adapters: Parameters,
    *,
    base: str,
    layers: str = "model.layers",
    revision: str = "",
    dtype: str = "float32",
    documents: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes the folder; like a model folder it appears complete or not at all.

    A fused module has several adapters of rank r here. In PEFT it has one adapter of rank r times their number, whose B
    is block diagonal: `rank_pattern` and `alpha_pattern` say so, and the product is the same.

    Args:
      base: name or folder of the model that the adapters belong to, for `base_model_name_or_path`.
      layers: where transformers keeps the layers of that model; `text_part.LAYERS` in one that also reads images.
      revision: commit of a base of the hub; "" for a folder.
      dtype: "float32", "bfloat16" or "float16".
      documents: further files by name, such as README.md.

    Raises:
      UserError: the folder exists and is not empty, an unknown dtype, or an adapter that is not finite in it.
    """
    if dtype not in FLOATS:
        raise UserError(f"dtype is {dtype!r}; allowed: {', '.join(FLOATS)}", about="dtype")
    check_new(folder)
    adapted = [module for module in modules(settings) if module.matrices[0][1] in lora.matrices]
    with files.whole_folder(folder) as partial:
        write_json(partial / "adapter_config.json", adapter_config(lora, adapted, base, layers, revision))
        for name, content in documents.items():
            (partial / name).write_bytes(content)
        write_tensors(partial / "adapter_model.safetensors", _tensors(settings, adapted, adapters, layers, dtype))


def adapter_config(
    lora: Lora, adapted: list[Module], base: str, layers: str = "model.layers", revision: str = ""
) -> dict[str, Any]:
    """The keys of PEFT's LoraConfig that change the computation; PEFT takes its defaults for all others."""
    targets: Any = sorted(module.name.rpartition(".")[2] for module in adapted)
    if layers == LAYERS:
        # A list would also match modules of the vision part, of the same names.
        named = "|".join(re.escape(module.name) for module in adapted)
        targets = rf"{re.escape(layers)}\.\d+\.({named})"
    names = {module: module.name.rpartition(".")[2] for module in adapted}
    fused = {names[module]: len(module.matrices) for module in adapted if len(module.matrices) > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **({"revision": revision} if revision else {}),
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": _plain(lora.alpha),
        "target_modules": targets,
        "rank_pattern": {name: lora.rank * parts for name, parts in fused.items()},
        "alpha_pattern": {name: _plain(lora.alpha * parts) for name, parts in fused.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _tensors(
    settings: DecoderSettings, adapted: list[Module], adapters: Parameters, layers: str, dtype: str
) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for module in adapted:
        pairs = [adapters["layers"][group][matrix + SUFFIX] for group, matrix in module.matrices]
        # Stored as [outputs, inputs], the transpose of ours.
        a = [np.asarray(pair["a"]) for pair in pairs]
        b = [np.asarray(pair["b"]) for pair in pairs]
        for layer in range(settings.layers):
            lows = [x[layer].reshape(-1, x.shape[-1]).T for x in a]
            highs = [x[layer].reshape(x.shape[1], -1).T for x in b]
            name = f"base_model.model.{layers}.{layer}.{module.name}"
            for side, array in (("lora_A", np.concatenate(lows)), ("lora_B", _block_diagonal(highs))):
                tensor = np.asarray(array.astype(FLOATS[dtype]), order="C")
                if not np.isfinite(tensor).all():
                    raise UserError(f"adapter {name}.{side} is not finite as {dtype}; nothing was exported")
                tensors[f"{name}.{side}.weight"] = tensor
    return tensors


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros((sum(x.shape[0] for x in blocks), sum(x.shape[1] for x in blocks)), blocks[0].dtype)
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole
