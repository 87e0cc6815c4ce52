"""What a step over packed rows costs: the model that the planner of row lengths minimises.

    seconds = 3 · (token FLOPs + attention FLOPs) / speed + overhead of rows, microbatches and layers

Token FLOPs are those of all B·L positions, empty ones included. Attention FLOPs are those of the blocks of queries and
keys in which some query sees some key, whole blocks each. 3 is one forward pass and a backward pass twice as long;
recomputation by `remat` changes all row lengths alike and is left out, and so are sliding windows, networks between
devices, and the optimizer, whose work does not depend on rows.
"""

from typing import NamedTuple

import numpy as np

from qrpo_jax.data.packing import Row
from qrpo_jax.data.packing_units import Units
from qrpo_jax.model.flops import matmul_parameters
from qrpo_jax.model.settings import DecoderSettings


class Machine(NamedTuple):
    """One device of a platform, in round numbers: ratios of costs matter here, not seconds.

    Attributes:
      multiple: row lengths are multiples of it.
      longest: the planner tries no longer row, unless one completion needs it.
      block: attention skips blocks of so many queries by as many keys; 0: it computes every pair of a row.
      flops: of matrix products, per second.
      attention_flops: of attention, per second.
      row_seconds: of a row in a layer, whatever its length.
      part_seconds: of a microbatch in a layer, for starting operations.
      bandwidth: bytes per second of reading and adding up gradients of a microbatch.
      working_bytes: what the activations of a microbatch should not exceed.
    """

    multiple: int
    longest: int
    block: int
    flops: float
    attention_flops: float
    row_seconds: float
    part_seconds: float
    bandwidth: float
    working_bytes: float


MACHINES = {
    # A core. Measured on one core of an Intel Xeon with 2 MiB of L2 (2026-11-27, other work beside it): models of 0.3
    # and 1.1 million parameters in rows of 72 to 992 tokens, microbatches of 72 to 1,984 tokens.
    "cpu": Machine(8, 1024, 32, 5e10, 1.5e10, 1e-5, 6e-4, 1e10, 1e7),
    # The working set of accelerators is memory: the caller replaces it with what parameters leave free.
    # Bandwidth is that of a network, over which parameters are gathered again for each microbatch. Not measured.
    "gpu": Machine(128, 4096, 128, 5e14, 2.5e14, 1e-6, 1e-5, 3e11, 8e10),
    "tpu": Machine(128, 4096, 128, 3e14, 1e14, 1e-6, 1e-5, 2e11, 1.6e10),
}


class ModelCost(NamedTuple):
    """What one token costs in a forward pass on one device.

    Attributes:
      layers: of the decoder.
      token_flops: outside of attention, for each position of a row.
      pair_flops: of attention, for each pair of a query and a key, all layers and heads.
      token_bytes: of activations, for each position of a microbatch.
      parameter_bytes: of all parameters; each microbatch reads them and adds up as many gradients.
    """

    layers: int
    token_flops: float
    pair_flops: float
    token_bytes: float
    parameter_bytes: float


def model_cost(settings: DecoderSettings, *, bytes_per_number: int, vocab_chunk: int, stored: str | None) -> ModelCost:
    """The costs of a decoder.

    Args:
      bytes_per_number: of activations.
      vocab_chunk: columns of the vocabulary whose logits exist at a time; 0 for all.
      stored: what the backward pass finds stored of every layer, a key of `STORED`; None counts only the widest
        point of the computation, which is what caches see.
    """
    wide = layer_numbers(settings)
    weights = float(sum(matmul_parameters(settings)))
    logits = min(vocab_chunk or settings.vocab_size, settings.vocab_size)
    # Values and their gradients exist together. Logits are float32.
    widest = 2 * max(wide["none"] * bytes_per_number, logits * 4)
    kept = 0 if stored is None else wide[stored] * bytes_per_number * settings.layers
    return ModelCost(
        settings.layers,
        2 * weights,
        4.0 * settings.heads * settings.head_dim * settings.layers,
        widest + kept,
        4 * weights,
    )


def layer_numbers(settings: DecoderSettings) -> dict[str, int]:
    """Activations of a token that a layer stores for its backward pass, by policy of `model.compute.REMAT`."""
    d, mixed = settings.d_model, settings.heads * settings.head_dim
    products = 2 * mixed + 2 * settings.kv_heads * settings.head_dim + 2 * d + 2 * settings.d_ff
    return {
        "full": d,
        "offload": 0,  # on the device
        "attention": d + mixed,
        "dots": d + products,
        "none": 4 * d + products + 2 * settings.d_ff,
    }


def visible_blocks(row: Row, units: Units, block: int) -> int:
    """Blocks of `block` queries by `block` keys of a packed row in which some query sees some key.

    A segment that begins inside a block of queries sees no key before that block, unless it is of the group that was
    there already. So the block's first token decides: its queries see the blocks from the one where that token's
    segment begins to their own, and the blocks of that token's prompt.
    """
    starts, prompts, ends = [], [], []  # of each segment; of its group's shared prompt, which a prompt does not add
    column = 0
    for group in row:
        first, shared = column, int(units.shared_C[group[0]])
        if shared:
            starts.append(first)
            prompts.append(first)
            ends.append(first)
        column += shared
        for c in group:
            starts.append(column)
            prompts.append(first)
            ends.append(first + shared)
            column += int(units.length_C[c])
    queries = np.arange(-(-column // block))
    segment = np.searchsorted(starts, queries * block, side="right") - 1
    low = np.asarray(starts)[segment] // block
    prompt_low, end = np.asarray(prompts)[segment] // block, np.asarray(ends)[segment]
    prompt_high = np.where(end > np.asarray(prompts)[segment], (end - 1) // block + 1, prompt_low)
    both = np.maximum(prompt_high - low, 0)
    return int((queries - low + 1 + prompt_high - prompt_low - both).sum())


def step_seconds(
    machine: Machine, model: ModelCost, *, row_tokens: int, device_rows: float, microbatches: float, pairs: float
) -> float:
    """Time of a step.

    Args:
      device_rows: rows of a batch on each device, all microbatches together; these and microbatches may be means.
      pairs: of a query and a key that attention computes on each device.
    """
    tokens = device_rows * row_tokens
    compute = 3 * (tokens * model.token_flops / machine.flops + pairs * model.pair_flops / machine.attention_flops)
    overhead = model.layers * (device_rows * machine.row_seconds + microbatches * machine.part_seconds)
    return compute + overhead + microbatches * 3 * model.parameter_bytes / machine.bandwidth
