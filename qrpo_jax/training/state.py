"""Everything a run needs to go on: parameters, optimizer state, step and randomness."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from qrpo_jax.devices.mesh import parameter_shardings, replicated
from qrpo_jax.model.decoder import DecoderSettings, Parameters, abstract_parameters, logical_axes
from qrpo_jax.model.settings import Lora
from qrpo_jax.training.optimizer import wide


class State(NamedTuple):
    step: Array  # [] int32, updates made
    parameters: Parameters  # those that training changes: with LoRA its adapters, and nothing of the base
    optimizer: Any
    key: Array  # raw PRNG key data, split by nothing yet: steps that draw fold their number into it


def initial_state(parameters: Parameters, optimizer: optax.GradientTransformation, seed: int) -> State:
    return State(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer=optimizer.init(wide(parameters)),
        key=jax.random.key_data(jax.random.key(seed)),
    )


def state_shardings(
    mesh: Mesh, settings: DecoderSettings, optimizer: optax.GradientTransformation, lora: Lora | None = None
) -> State:
    """Where each array of the state lives: optimizer moments lie with their parameters, the rest everywhere."""
    shapes = abstract_parameters(settings, lora)
    of_parameters = parameter_shardings(mesh, logical_axes(settings, lora), shapes)
    everywhere: Any = replicated(mesh)  # a State of shardings stands where one of arrays is declared
    moments = jax.eval_shape(optimizer.init, shapes)
    of_optimizer = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, moments, of_parameters, transform_non_params=lambda _: everywhere
    )
    return State(everywhere, of_parameters, of_optimizer, everywhere)


def abstract_state(
    mesh: Mesh,
    settings: DecoderSettings,
    optimizer: optax.GradientTransformation,
    dtype: Any = jnp.float32,
    lora: Lora | None = None,
) -> State:
    """Shapes, types and shardings of the state, without allocating it: what a checkpoint restores into.

    Args:
      dtype: of the parameters; the optimizer's moments are float32.
    """
    parameters = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), abstract_parameters(settings, lora))
    shapes = jax.eval_shape(lambda p: initial_state(p, optimizer, 0), parameters)
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, settings, optimizer, lora),
    )
