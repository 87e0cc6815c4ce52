"""How a forward pass is computed, as opposed to what it computes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from qrpo_jax.devices.constraints import constrain, gathered, spreads
from qrpo_jax.devices.mesh import axis_size, platform_of
from qrpo_jax.errors import UserError
from qrpo_jax.model.attention import Backend, plain
from qrpo_jax.model.cache import Order

ATTENTION = "attention"  # the name by which backends mark their output and log-sum-exp for `jax.checkpoint`
LAYER_INPUT = "layer_input"
_policies = jax.checkpoint_policies
# What the backward pass finds stored of each layer, from most to least memory; it recomputes the rest. A layer's input
# is always kept.
REMAT: dict[str, Any] = {
    "none": None,
    # Products with weights, and attention: only norms, activations and rotations are computed twice.
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(ATTENTION)
    ),
    "attention": _policies.save_only_these_names(ATTENTION),
    "full": _policies.nothing_saveable,
    # As "full", and inputs of layers wait in the host's memory.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

# Layers that a training step has one after the other, by platform; 1 elsewhere. On an H200 (2026-11-27), a step of 8B
# with LoRA takes 11 % less time with all 32 than with 8 (4.68 and 4.17 s) and compiles in 46 s; one of 1B took 5 % less
# with all 16 than with 1 before there were barriers (`Compute.checkpointed`). On a core of an Intel Xeon, a step of the
# stories model takes 10 % less with all 5 than with 1 (560 and 502 ms, 2026-11-27).
UNROLL = {"gpu": 32, "cpu": 8}


class Compute(NamedTuple):
    """How a forward pass is computed.

    Attributes:
      dtype: type of activations and matrix products; norms, softmax and rotations are float32.
      remat: what the backward pass recomputes, a key of `REMAT`.
      attention: attention between the tokens of a row; `attention.choose` gives it by name.
      mesh: the devices over which parameters and activations are spread; None for one device.
      unroll: layers that the program has one after the other in each turn of its loop over layers. Between turns,
        what a backward pass needs is copied into arrays of all layers and back. Compilation takes longer with more.
      stored: where parameters lie before a sampler lays them out for decoding (`for_decoding`), once for all its
        steps. None: they are used as they lie, and gathered layer by layer.
    """

    dtype: Any = jnp.float32
    remat: str = "none"
    attention: Backend = plain.attend
    mesh: Mesh | None = None
    unroll: int = 1
    stored: Mesh | None = None

    @property
    def splits_length(self) -> bool:
        """Whether the mesh splits rows along their length."""
        return self.mesh is not None and self.mesh.shape["context"] > 1

    @property
    def row_parts(self) -> int:
        """Into how many parts the mesh splits rows."""
        return 1 if self.mesh is None else axis_size(self.mesh, "rows")

    @property
    def cache_order(self) -> Order:
        """How the cache of decoding lies in memory.

        On a CPU sums over the head dimension are fastest with slots last: sampling from the stories model takes 11 %
        less time (one core of an Intel Xeon, 2026-11-28). On a TPU tokens are written, and blocks read, as whole rows.
        """
        platform = jax.default_backend() if self.mesh is None else platform_of(self.mesh)
        return Order(slots_last=platform == "cpu", pinned=platform == "tpu")

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """x, split over the mesh along logical axes, names from `devices.mesh.LOGICAL`."""
        return constrain(x, self.mesh, axes)

    def gathered(self, parameters: nnx.State) -> nnx.State:
        """One layer's parameters as its matrix products need them: in `dtype`, and whole where only storage is split.

        Norm scales and parameters of activations stay as they are, because their computations are float32.
        """
        if not spreads(self.mesh) or self.stored is not None:
            return parameters

        def gather(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
            value, axes = variable[...], tuple(variable.get_metadata()["axes"])
            return variable.replace(gathered(value, self.mesh, axes, product_dtype(path[-1], value.dtype, self.dtype)))

        return nnx.map_state(gather, parameters)

    def checkpointed(self, step: Callable[..., Any], *, looped: bool) -> Callable[..., Any]:
        """The body of a loop over layers with `remat` applied.

        Args:
          looped: the compiled program has a loop. It keeps the two passes apart. Without one the compiler would merge
            what is computed twice and keep all of it in memory, so barriers must stop it; in a loop they would cost a
            copy of everything stored.
        """
        if self.remat == "none":
            return step
        return jax.checkpoint(step, policy=REMAT[self.remat], prevent_cse=not looped)


DEFAULT = Compute()


def product_dtype(name: Any, stored: Any, dtype: Any) -> Any:
    """The type in which a parameter takes part in computations whose products are in `dtype`.

    Args:
      name: of the parameter in its module.
      stored: its own type.
    """
    return stored if name == "scale" or str(name).startswith("alpha_") else dtype


def check_remat(name: str) -> None:
    """Refuses an unknown policy.

    Raises:
      UserError: about "remat".
    """
    if name not in REMAT:
        raise UserError(f"remat is {name!r}; allowed: {', '.join(REMAT)}", about="remat")
