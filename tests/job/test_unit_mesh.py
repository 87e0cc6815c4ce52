"""Units of work are computed on as few devices as the models fit on."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from qrpo_jax.devices.capacity import bytes_per_device
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.devices.topologies import open_topology
from qrpo_jax.errors import UserError
from qrpo_jax.job import unit_mesh
from qrpo_jax.job.unit_mesh import Model, choose
from qrpo_jax.training.state import parameter_layout
from tests.helpers import tiny

# Four of each, so that up to four of the eight devices here can split them.
SETTINGS = dataclasses.replace(tiny.SETTINGS, heads=8, kv_heads=4, d_ff=36, vocab_size=48)
POLICY = Model(SETTINGS, jnp.float32, "the policy")


def whole():
    return make_mesh(1, 8, 1)


def several_hosts():
    """Four hosts of four chips, which are not there."""
    pytest.importorskip("libtpu")
    return make_mesh(1, -1, 1, devices=open_topology("v5e:4x4"))


def size(ways):
    return bytes_per_device(parameter_layout(make_mesh(-1, 1, ways), SETTINGS, jnp.float32))


@pytest.mark.parametrize(("room", "ways"), [(1.01, 1), (0.99, 2)])
def test_as_few_parts_as_fit(monkeypatch, room, ways):
    monkeypatch.setattr(unit_mesh, "device_bytes", lambda mesh: room * size(1) / unit_mesh.SHARE)
    chosen = choose([POLICY], whole(), "auto")
    assert (chosen.mesh.shape["tensor"], chosen.mesh.shape["data"]) == (ways, 8 // ways), chosen.mesh
    assert chosen.reason == ("" if ways == 1 else "the policy split over 2 devices of each process")


def test_models_in_memory_together_count_together(monkeypatch):
    monkeypatch.setattr(unit_mesh, "device_bytes", lambda mesh: 1.01 * size(1) / unit_mesh.SHARE)
    both = [POLICY, POLICY._replace(name="the reference")]
    chosen = choose(both, whole(), "auto")
    assert chosen.mesh.shape["tensor"] == next(ways for ways in (1, 2, 4) if 2 * size(ways) <= 1.01 * size(1))
    assert chosen.reason.startswith("the policy and the reference split over")


def test_what_fits_on_no_process_is_computed_by_all_together(monkeypatch):
    monkeypatch.setattr(unit_mesh, "device_bytes", lambda mesh: 0.9 * size(4) / unit_mesh.SHARE)
    all_of_them = several_hosts()
    chosen = choose([POLICY], all_of_them, "auto")
    assert chosen.mesh is all_of_them and "together: the policy, too large for the devices of one" in chosen.reason
    with pytest.raises(UserError, match="units is 'process', and the policy do not fit") as caught:
        choose([POLICY], all_of_them, "process")
    assert caught.value.about == ("units",)
    of_one = whole()
    assert choose([POLICY], of_one, "auto") == (of_one, ""), "there is no other choice"


@pytest.mark.parametrize(("room", "ways"), [(1.01, 1), (0.99, 2), (0.49, 4)])
def test_the_devices_of_one_host_are_those_of_a_topologys_first(monkeypatch, room, ways):
    monkeypatch.setattr(unit_mesh, "device_bytes", lambda mesh: room * size(1) / unit_mesh.SHARE)
    all_of_them = several_hosts()
    chosen = choose([POLICY], all_of_them, "auto").mesh
    assert chosen.shape["tensor"] == ways and chosen.size == 4, chosen
    assert len({device.process_index for device in chosen.devices.flat}) == 1


@pytest.mark.parametrize("context", [2, 4])
def test_rows_are_split_along_their_length_as_in_training(monkeypatch, context):
    monkeypatch.setattr(unit_mesh, "device_bytes", lambda mesh: 1.01 * size(1) / unit_mesh.SHARE)
    chosen = choose([POLICY], make_mesh(1, -1, 1, context), "auto").mesh
    assert dict(chosen.shape) == {"replica": 1, "data": 8 // context, "fsdp": 1, "tensor": 1, "context": context}


def test_the_user_may_ask_for_all_processes(monkeypatch):
    all_of_them = whole()
    assert choose([POLICY], all_of_them, "all").mesh is all_of_them
    assert choose([POLICY], all_of_them, "process").mesh.shape["data"] == jax.device_count()
