"""Peaks of meshes: published, or measured on this machine."""

import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices import peaks
from qrpo_jax.devices.chips import CHIPS
from qrpo_jax.devices.mesh import make_mesh


def test_a_processor_has_no_published_peak_and_its_product_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SIZE", 64)
    mesh = make_mesh(-1, 1, 1)
    assert peaks.published_peak(mesh) is None
    speed = peaks.matrix_product(mesh, jnp.float32)()
    assert 1e6 < speed < 1e15, speed


def test_the_peak_of_a_mesh_is_that_of_all_its_chips() -> None:
    class Chip:
        device_kind = "TPU v5"

    class Mesh:
        size, devices = 12, np.asarray([Chip()] * 12)

    peak = peaks.published_peak(Mesh())
    assert peak is not None and peak.flops == 12 * CHIPS["TPU v5"].bf16_flops, peak


def test_memory_in_use_only_rises() -> None:
    mesh = make_mesh(-1, 1, 1)
    before = peaks.peak_bytes(mesh)
    held = np.ones(200_000_000, np.uint8)
    after = peaks.peak_bytes(mesh)
    assert before > 50e6 and after >= before, (before, after, held.sum())
