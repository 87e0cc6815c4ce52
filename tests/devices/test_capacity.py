"""Memory of the machine is what the innermost control group leaves of it."""

import os
from pathlib import Path

import pytest

from qrpo_jax.devices import capacity
from qrpo_jax.devices.cores import copies_that_fit, core_count
from tests.helpers.exports import one_device

GROUPS = {
    "newer": ("0::/job/step\n", {"job/memory.max": "7000000", "job/step/memory.max": "max"}),
    "older": (
        "5:cpu:/elsewhere\n4:memory:/job\n",
        {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/job/memory.limit_in_bytes": "7000000"},
    ),
    "of a container": ("0::/\n", {"memory.max": "7000000"}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_smallest_limit_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, limits = GROUPS[name]
    (tmp_path / "own").write_text(own)
    for place, text in limits.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text + "\n")
    monkeypatch.setattr(capacity, "CGROUPS", tmp_path)
    monkeypatch.setattr(capacity, "OWN", tmp_path / "own")
    assert capacity.machine_bytes() == 7_000_000


def test_without_groups_it_is_the_machine_and_devices_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "OWN", tmp_path / "none")
    whole = capacity.machine_bytes()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 1e9
    assert capacity.device_bytes(one_device()) == whole


def test_a_large_model_has_fewer_devices_on_a_cpu_and_a_new_one_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrpo_jax.devices.cores.machine_bytes", lambda: 8_000_000_000)
    assert copies_that_fit(0) == core_count()
    assert [copies_that_fit(size) for size in (100_000_000, 269_060_552, 2_000_000_000)] == [5, 1, 1]
