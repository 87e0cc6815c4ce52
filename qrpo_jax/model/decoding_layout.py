"""Parameters laid out for decoding: they cross the network once for all tokens, and not once for each.

Training splits parameters over all devices, and gathers each layer where it is used. A decode step does so little with
a layer that it would wait for the network most of the time.
"""

from typing import Any

from flax import nnx
from jax import Array

from qrpo_jax.devices.constraints import laid_out
from qrpo_jax.model.compute import Compute, product_dtype
from qrpo_jax.model.decoder import Decoder

OUTPUT = "o"  # name of the output projection in its module


def for_decoding(decoder: Decoder, compute: Compute) -> Decoder:
    """The decoder with a copy of its parameters in the type of products, whole where only storage is split.

    Without `compute.stored` it is the decoder as it is. Nothing that is computed with it changes.
    """
    stored, mesh = compute.stored, compute.mesh
    if stored is None or mesh is None:
        return decoder
    graph, parameters = nnx.split(decoder)

    def lay_out(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        value, axes = variable[...], tuple(variable.get_metadata()["axes"])
        axes = ("layers", *axes) if path[0] == "layers" else axes
        value = laid_out(value, stored, mesh, axes, product_dtype(path[-1], value.dtype, compute.dtype))
        return variable.replace(as_matrices(value) if path[-1] == OUTPUT else value)

    return nnx.merge(graph, nnx.map_state(lay_out, parameters))


def as_matrices(weight_NxHxKxD: Array) -> Array:
    """The output projections of attention as [N, 1, H·K, D]: `linear` takes the product over both inner axes.

    Cut from a stack of [H, K, D], the TPU compiler copies the matrix of a layer before its product.
    """
    layers, *_, width = weight_NxHxKxD.shape
    return weight_NxHxKxD.reshape(layers, 1, -1, width)
