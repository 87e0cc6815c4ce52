"""The tensors of a Hugging Face model folder: which parameters, or layers of parameters, each one holds."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.family import ParameterPath, Weight
from qrpo_jax.model.decoder import abstract_parameters
from qrpo_jax.model.settings import DecoderSettings


def from_stored(rows: Any, inputs: int | None, shape: tuple[int, ...]) -> Any:
    """A parameter of this shape, from its rows of a stored tensor; `inputs` as in `Weight`."""
    return (rows.T if inputs else rows).reshape(shape)


class Part(NamedTuple):
    """Rows of a stored tensor that are one parameter, or one layer of it.

    Attributes:
      path: of the parameter.
      layer: which layer of it; None for a parameter that is not stacked.
      rows: of the stored tensor.
      inputs: as in `Weight`.
      shape: of the parameter, or of one layer of it.
    """

    path: ParameterPath
    layer: int | None
    rows: slice
    inputs: int | None
    shape: tuple[int, ...]

    def to_stored(self, parameter: np.ndarray) -> np.ndarray:
        """The parameter as rows of the stored tensor; a view where possible."""
        if self.inputs is None:
            return parameter
        if self.inputs == 0:
            return parameter.reshape(-1)
        return parameter.reshape(math.prod(self.shape[: self.inputs]), -1).T


class Stored(NamedTuple):
    """One tensor of a model folder.

    Attributes:
      name, shape: of the stored tensor.
      parts: from its first row to its last.
      constant: the value of a tensor without parts, which a folder may also lack.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    constant: float | None = None


def stored_tensors(settings: DecoderSettings) -> Iterator[Stored]:
    """Every tensor of the model folder, layer by layer.

    Raises:
      UserError: a parameter that the settings' family has no name for.
    """
    family = FAMILIES[settings.family]
    shapes = {
        path: tuple(leaf.shape) for path, leaf in nnx.traversals.flatten_mapping(abstract_parameters(settings)).items()
    }
    unknown = sorted(shapes.keys() - family.weights.keys())
    if unknown:
        name = ".".join(unknown[0])
        raise UserError(f"parameter {name} has no place in a {settings.family} folder", about="settings")
    # A fused tensor is listed once, at the first of its parameters.
    first = [path for path in shapes if not family.weights[path].fused or path[-1] == family.weights[path].fused[0]]
    yield from (_stored(family.weights[path], path, None, shapes) for path in first if path[0] != "layers")
    for layer in range(settings.layers):
        yield from (_stored(family.weights[path], path, layer, shapes) for path in first if path[0] == "layers")
        yield from (Stored(name.format(layer), (), (), value) for name, value in family.constants.items())


def _stored(
    weight: Weight, path: ParameterPath, layer: int | None, shapes: Mapping[ParameterPath, tuple[int, ...]]
) -> Stored:
    """The stored tensor that begins with a parameter, or with one layer of it."""
    parts: list[Part] = []
    columns: tuple[int, ...] = ()
    start = 0
    for sibling in [(*path[:-1], name) for name in weight.fused] or [path]:
        shape = shapes[sibling] if layer is None else shapes[sibling][1:]
        inputs = weight.inputs
        stored = (math.prod(shape[inputs:]), *([math.prod(shape[:inputs])] if inputs else []))
        stored = shape if inputs is None else stored
        parts.append(Part(sibling, layer, slice(start, start + stored[0]), inputs, shape))
        start, columns = start + stored[0], stored[1:]
    return Stored(weight.name.format(layer), (start, *columns), tuple(parts))
