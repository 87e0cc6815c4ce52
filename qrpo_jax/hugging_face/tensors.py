"""The tensors of a Hugging Face model folder: which parameter, or which layer of it, lies where."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from qrpo_jax.hugging_face.families import FAMILIES, ParameterPath
from qrpo_jax.model.decoder import abstract_parameters
from qrpo_jax.model.settings import DecoderSettings


def turned(rows: Any, inputs: int | None, shape: tuple[int, ...]) -> Any:
    """A parameter of this shape, of rows as they are stored."""
    return (rows.T if inputs else rows).reshape(shape)


class Part(NamedTuple):
    """Rows of a stored tensor that are one parameter, or one layer of it, of this shape."""

    path: ParameterPath
    layer: int | None
    rows: slice
    inputs: int | None
    shape: tuple[int, ...]

    def give(self, parameter: np.ndarray) -> np.ndarray:
        """The rows of the stored tensor, of this parameter; a view where it can be."""
        if self.inputs is None:
            return parameter
        if self.inputs == 0:
            return parameter.reshape(-1)
        return parameter.reshape(math.prod(self.shape[: self.inputs]), -1).T


class Stored(NamedTuple):
    """One tensor of a model folder: its name and shape there, and what it holds, from its first row to its last.

    A tensor without parts holds a `constant`, which a folder may also lack.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    constant: float | None = None


def stored_tensors(settings: DecoderSettings) -> Iterator[Stored]:
    """Every tensor of the model folder, layer by layer.

    Raises:
      ValueError: a parameter that the settings' family has no name for.
    """
    family = FAMILIES[settings.family]
    shapes = {
        path: tuple(leaf.shape) for path, leaf in nnx.traversals.flatten_mapping(abstract_parameters(settings)).items()
    }
    homeless = sorted(shapes.keys() - family.weights.keys())
    if homeless:
        raise ValueError(f"parameter {'.'.join(homeless[0])} has no place in a {settings.family} folder (config.model)")

    def one(path: ParameterPath, layer: int | None) -> Stored | None:
        weight = family.weights[path]
        siblings = [(*path[:-1], name) for name in weight.fused] or [path]
        if path != siblings[0]:
            return None
        parts, start, width = [], 0, ()
        for sibling in siblings:
            shape = shapes[sibling] if layer is None else shapes[sibling][1:]
            inputs = weight.inputs
            stored = (math.prod(shape[inputs:]), *([math.prod(shape[:inputs])] if inputs else []))
            stored = shape if inputs is None else stored
            parts.append(Part(sibling, layer, slice(start, start + stored[0]), inputs, shape))
            start, width = start + stored[0], stored[1:]
        return Stored(weight.name.format(layer), (start, *width), tuple(parts))

    yield from filter(None, (one(path, None) for path in shapes if path[0] != "layers"))
    for layer in range(settings.layers):
        yield from filter(None, (one(path, layer) for path in shapes if path[0] == "layers"))
        yield from (Stored(name.format(layer), (), (), value) for name, value in family.constants.items())
