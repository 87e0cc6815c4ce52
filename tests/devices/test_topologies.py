"""Devices of absent slices, and the table of chips."""

import numpy as np
import pytest

from qrpo_jax.devices import topologies
from qrpo_jax.devices.chips import CHIPS, chip_of
from qrpo_jax.devices.topologies import open_topology
from qrpo_jax.errors import UserError

pytest.importorskip("libtpu")


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v5p:2x4x4", 32, "TPU v5"),
        ("v5p:4x4x8", 128, "TPU v5"),
        ("v6e:8x8", 64, "TPU v6 lite"),
        ("tpu7x:2x2x1", 8, "TPU7x"),
        ("v4:2x2x1", 8, "TPU v4"),
    ],
)
def test_a_topology_opens_and_its_chip_is_in_the_table(name, count, kind):
    devices = open_topology(name)
    assert len(devices) == count
    assert chip_of(devices[0]).kind == kind


def test_several_slices_are_told_apart():
    devices = open_topology("v6e:2x4*2")
    assert [device.slice_index for device in devices] == [0] * 8 + [1] * 8


@pytest.mark.parametrize("name", ["v9:2x2", "v5p:3x3x3", "v5p-128", "v5p:2x2x1*0", "", "*2"])
def test_an_unknown_topology_is_refused_with_examples(name):
    with pytest.raises(UserError, match="examples: v5e:2x4") as caught:
        open_topology(name)
    assert caught.value.about == ("topology",)


def test_a_missing_libtpu_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topologies.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install") as caught:
        open_topology("v5e:2x4")
    assert caught.value.about == ("topology",)


def test_an_unknown_device_is_refused():
    class Device:
        device_kind = "abacus"

    with pytest.raises(UserError, match="abacus") as caught:
        chip_of(Device())
    assert caught.value.about == ("device",)


def test_clocks_are_those_of_real_chips():
    clocks = {kind: chip.clock / 1e9 for kind, chip in CHIPS.items() if chip.matrix_units}
    expected = {"TPU v4": 1.05, "TPU v5 lite": 1.5, "TPU v5": 1.75, "TPU v6 lite": 1.75, "TPU7x": 2.2}
    assert clocks.keys() == expected.keys()
    for kind, clock in clocks.items():
        np.testing.assert_allclose(clock, expected[kind], rtol=0.005, err_msg=kind)
