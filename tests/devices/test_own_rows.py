"""Each process assembles and uploads the rows of its own devices, and the batch on the mesh is that of one process."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from qrpo_jax.data.loader import assemble, batches
from qrpo_jax.devices.mesh import AXES, axis_size, own_rows, place, place_rows, row_parts, row_sharding
from tests.helpers import tiny
from tests.helpers.together import run_together

# Sizes in the order of `AXES`, and the device at each place: in order, as in a hybrid mesh whose processes hold rows
# that are no neighbours, and at random, where processes have rows in common.
ORDERS = {"in order": [*range(8)], "strided": [0, 4, 1, 5, 2, 6, 3, 7], "random": [6, 1, 4, 3, 0, 7, 2, 5]}
SIZES = [(1, 8, 1, 1, 1), (2, 1, 2, 2, 1), (1, 2, 2, 1, 2), (1, 1, 1, 4, 2), (4, 1, 2, 1, 1), (1, 1, 4, 2, 1)]
TABLE = tiny.examples(29, siblings=3)
PLAN = tiny.plan(TABLE, batch_units=17, seed=0, row_multiple=8)


def mesh_of(sizes: tuple[int, ...], order: str) -> Mesh:
    return Mesh(np.asarray(jax.devices())[ORDERS[order]].reshape(sizes), AXES)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_of_a_process_are_those_that_its_devices_hold(order: str, processes: int) -> None:
    devices = jax.devices()
    for sizes in SIZES:
        mesh, rows = mesh_of(sizes, order), 24
        held = row_sharding(mesh).devices_indices_map((rows,))
        for process in range(processes):
            own = devices[process * 8 // processes : (process + 1) * 8 // processes]
            wanted = sorted({row for device in own for row in range(rows)[held[device][0]]})
            assert own_rows(mesh, rows, own).tolist() == wanted, (sizes, process)
            assert len(row_parts(mesh, own)) * rows == len(wanted) * axis_size(mesh, "rows")
    assert own_rows(mesh, 24).tolist() == [*range(24)], "one process holds all rows"


def test_a_batch_of_own_rows_is_placed_like_a_whole_one() -> None:
    for sizes in SIZES:
        mesh = mesh_of(sizes, "random")
        whole = assemble(TABLE, PLAN, 1)
        placed, wanted = place_rows(whole, mesh), place(whole, row_sharding(mesh))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), placed, wanted)
        assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (placed, wanted)), strict=True))


PROGRAM = """
import numpy as np
from qrpo_jax.data.loader import assemble, batches
from qrpo_jax.devices.mesh import own_rows, place_rows
from tests.devices.test_own_rows import ORDERS, PLAN, SIZES, TABLE, mesh_of

whole = assemble(TABLE, PLAN, 0)

def check(placed, array):
    assert placed.shape == array.shape and placed.dtype == array.dtype
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), array[shard.index])

for order in ORDERS:
    for sizes in SIZES:
        mesh = mesh_of(sizes, order)
        rows = own_rows(mesh, PLAN.rows)
        iterator = batches(TABLE, PLAN, rows)
        first = next(iterator)
        assert len(first.tokens_BxL) == len(rows)
        jax.tree.map(check, place_rows(first, mesh), whole)
        answer([order, sizes, rows.tolist(), str(iterator.get_state())])
"""


def test_two_processes_place_the_batch_of_one(tmp_path: Path) -> None:
    """On each mesh every device holds its part of the batch that one process assembles."""
    iterator = batches(TABLE, PLAN)
    next(iterator)
    answers = run_together(tmp_path, PROGRAM, devices=4)
    assert len(answers) == 2 * len(ORDERS) * len(SIZES)
    assert {answer[3] for answer in answers} == {str(iterator.get_state())}
    halves = [answer[2] for answer in answers if answer[:2] == ["in order", list(SIZES[0])]]
    assert halves == [[*range(PLAN.rows // 2)], [*range(PLAN.rows // 2, PLAN.rows)]], "neither has all rows"
