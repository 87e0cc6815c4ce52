"""Eight virtual CPU devices, fast compilation and strict broadcasting in every test; the folder of fixtures."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.fake_hub import FakeHub

# jax reads this once, when it is first imported. Programs here are tiny and run once or twice: compiling them
# without optimization takes a fifth of the time.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # Pieces compiled beside each other pay for large programs on idle cores. Here one piece takes a tenth less.
    "--xla_cpu_parallel_codegen_split_count=1",
    # A device that waits longer for the others ends the process. On a loaded machine the default of 40 s is too short.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
]
# XLA aborts on a flag that it does not know. jaxlib has known this one up to 0.11.0.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# Tracing makes and drops objects by the million, and by default the collector takes a tenth of the time.
gc.set_threshold(50_000, 20, 20)
# Tests measure and read what is compiled, and leave nothing in the user's folders.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# Arrays of different rank do not broadcast: a missing axis is an error and not a larger result.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty bucket in a fake object store, whose listings are an hour late and whose calls may fail."""
    from tests.helpers import fake_store

    fake_store.install(tmp_path / "store", monkeypatch)
    return "fake://bucket"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """A Hugging Face hub on this machine, which the library huggingface_hub asks, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from tests.helpers.fake_hub import FakeHub

    with FakeHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """$QRPO_FIXTURES, or ../shared/fixtures next to the repository; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    folder = Path(os.environ.get("QRPO_FIXTURES", beside))
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder}; set QRPO_FIXTURES")
    return folder
