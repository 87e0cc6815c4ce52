"""The training state: everything a run needs to resume, and how it is created and laid out on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from qrpo_jax.devices.mesh import parameter_shardings, replicated
from qrpo_jax.model import value_head
from qrpo_jax.model.compute import product_dtype
from qrpo_jax.model.decoder import DecoderSettings, Parameters, abstract_parameters, logical_axes
from qrpo_jax.model.settings import Lora
from qrpo_jax.training.optimizer import wide


class State(NamedTuple):
    """What a step reads and replaces, and what a checkpoint holds.

    step: [] int32, number of updates made.
    parameters: the trained parameters; with LoRA the adapters alone, without their base. And the value head if any.
    optimizer: state of the optimizer; moments are float32, or bfloat16 by `Optimization.moment_dtype`.
    key: raw PRNG key data, the same in all steps; a step folds its number into it.
    """

    step: Array
    parameters: Parameters
    optimizer: Any
    key: Array


def initial_state(parameters: Parameters, optimizer: optax.GradientTransformation, seed: int) -> State:
    """The state before the first update."""
    return State(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer=optimizer.init(wide(parameters)),
        key=jax.random.key_data(jax.random.key(seed)),
    )


def parameter_layout(
    mesh: Mesh,
    settings: DecoderSettings,
    dtype: Any = jnp.float32,
    lora: Lora | None = None,
    with_value_head: bool = False,
) -> Parameters:
    """Shapes, types and shardings of a policy's parameters, without allocating them.

    Args:
      lora: with it, the layout is that of the adapters alone.
      with_value_head: a value head is trained too; it is float32 whatever `dtype` is.
    """

    def laid_out(axes: Parameters, shapes: Parameters, dtype: Any) -> Parameters:
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=sharding),
            shapes,
            parameter_shardings(mesh, axes, shapes),
        )

    policy = laid_out(logical_axes(settings, lora), abstract_parameters(settings, lora), dtype)
    if not with_value_head:
        return policy
    head = laid_out(value_head.AXES, value_head.abstract_head(settings.d_model), jnp.float32)
    return value_head.join(policy, head)


def forward_layout(layout: Parameters, dtype: Any) -> Parameters:
    """A layout for forward passes whose products are in `dtype`: weights are stored as they are used."""

    def stored(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        kept = leaf.dtype if value_head.is_of_head(path) else product_dtype(path[-1].key, leaf.dtype, dtype)
        return jax.ShapeDtypeStruct(leaf.shape, kept, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(stored, layout)


def stored_for_forward(parameters: Parameters, dtype: Any) -> Parameters:
    """Parameters as `forward_layout` has them. Results of forward passes stay the same; the argument is given up."""

    def converted(array: Array, leaf: jax.ShapeDtypeStruct) -> Array:
        if array.dtype == leaf.dtype:
            return array
        found = jax.block_until_ready(array.astype(leaf.dtype))
        array.delete()  # one by one, so that no more than one is there twice
        return found

    return jax.tree.map(converted, parameters, forward_layout(jax.tree.map(_abstract, parameters), dtype))


def _abstract(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


class Trainable(NamedTuple):
    """What a run trains: enough to create its first state, and to restore a later one on any mesh.

    layout: shapes, types and shardings of the parameters (`parameter_layout`).
    optimizer: see `make_optimizer`.
    start: makes the parameters before the first update, as `layout` describes them. The run donates them to its steps.
    seed: of the randomness of all steps.
    """

    layout: Parameters
    optimizer: optax.GradientTransformation
    start: Callable[[], Parameters]
    seed: int

    @property
    def mesh(self) -> Mesh:
        return jax.tree.leaves(self.layout)[0].sharding.mesh

    def fresh(self) -> State:
        """The state before the first update, on the mesh."""
        make = jax.jit(lambda p: initial_state(p, self.optimizer, self.seed), out_shardings=self.shardings())
        return make(self.start())

    def abstract(self) -> State:
        """Shapes, types and shardings of the state, without allocating it: what a checkpoint restores into."""
        shapes = jax.eval_shape(lambda p: initial_state(p, self.optimizer, self.seed), self.layout)
        return jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            shapes,
            self.shardings(),
        )

    def shardings(self) -> State:
        """Where each array of the state lies: see `state_shardings`."""
        return state_shardings(self.layout, self.optimizer)


def state_shardings(layout: Parameters, optimizer: optax.GradientTransformation) -> State:
    """A sharding for each array of the state: moments are split like their parameters, the rest is replicated."""
    of_parameters = jax.tree.map(lambda leaf: leaf.sharding, layout)
    everywhere: Any = replicated(jax.tree.leaves(layout)[0].sharding.mesh)
    of_optimizer = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, layout),
        of_parameters,
        transform_non_params=lambda _: everywhere,
    )
    return State(everywhere, of_parameters, of_optimizer, everywhere)
