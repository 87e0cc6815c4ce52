"""The device mesh: sizes, and how each array is split over it."""

import jax
import numpy as np
import pytest

from qrpo_jax.devices.mesh import AXES, axis_size, make_mesh, parameter_shardings, place, replicated, row_sharding
from qrpo_jax.errors import UserError
from qrpo_jax.model import decoder
from qrpo_jax.training.state import Trainable, parameter_layout, state_shardings
from tests.helpers import tiny
from tests.helpers.steps import OPTIMIZER


@pytest.mark.parametrize(
    "sizes, shape",
    [((-1, 1, 1), (8, 1, 1)), ((1, -1, 2), (1, 4, 2)), ((2, 2, -1), (2, 2, 2)), ((4, 2, 1), (4, 2, 1))],
)
def test_a_size_of_minus_one_uses_all_devices(sizes, shape):
    mesh = make_mesh(*sizes)
    assert mesh.axis_names == AXES and mesh.devices.shape == (1, *shape, 1)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 8), (-1, 3, 1), (-2, 1, 1), (16, 1, 1), (-1, 16, 1)])
def test_sizes_that_do_not_make_eight_devices_are_refused(sizes):
    with pytest.raises(UserError, match="mesh") as caught:
        make_mesh(*sizes)
    assert caught.value.about == ("mesh",)


def test_parameters_split_over_fsdp_and_tensor_and_rows_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    shardings = parameter_shardings(
        mesh, decoder.logical_axes(tiny.SETTINGS), decoder.abstract_parameters(tiny.SETTINGS)
    )
    assert shardings["embedding"].shard_shape((46, 26)) == (23, 13)
    assert shardings["layers"]["attention"]["q"].shard_shape((3, 26, 6, 10)) == (3, 13, 3, 10)
    assert shardings["layers"]["attention"]["o"].shard_shape((3, 6, 10, 26)) == (3, 3, 10, 13)
    assert shardings["layers"]["mlp"]["down"].shard_shape((3, 34, 26)) == (3, 17, 13)
    assert row_sharding(mesh).shard_shape((8, 29)) == (2, 29) and axis_size(mesh, "rows") == 4
    assert replicated(mesh).shard_shape((5,)) == (5,)


def test_a_dimension_that_does_not_split_is_refused():
    with pytest.raises(UserError, match="kv_heads of size 2 cannot be split 8 ways"):
        parameter_shardings(
            make_mesh(1, 1, 8),
            {"k": ("embed", "kv_heads", "head_dim")},
            {"k": jax.ShapeDtypeStruct((26, 2, 10), np.float32)},
        )


def test_optimizer_moments_are_split_like_their_parameters():
    layout = parameter_layout(make_mesh(2, 2, 2), tiny.SETTINGS)
    shardings = state_shardings(layout, OPTIMIZER)
    adam = [x for x in jax.tree.leaves(shardings.optimizer, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")]
    assert len(adam) == 1 and adam[0].mu == adam[0].nu == shardings.parameters
    abstract = Trainable(layout, OPTIMIZER, tiny.parameters, seed=0).abstract()
    assert abstract.parameters["embedding"].sharding == shardings.parameters["embedding"]
    assert jax.tree.structure(abstract) == jax.tree.structure(jax.tree.map(lambda x: x, shardings))


def test_place_puts_every_row_where_it_belongs():
    mesh = make_mesh(2, 2, 2)
    rows = np.arange(24).reshape(8, 3)
    placed = place({"rows": rows}, row_sharding(mesh))["rows"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
