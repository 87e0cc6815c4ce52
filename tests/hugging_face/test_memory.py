"""Memory of an import: beside the parameters a host holds a tensor or two, whatever the size of the model."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from qrpo_jax.hugging_face.config import hugging_face_config
from qrpo_jax.hugging_face.tensors import stored_tensors
from qrpo_jax.model.decoder import parameter_count
from qrpo_jax.model.settings import DecoderSettings

BYTES = 2  # bfloat16
# 2.1 billion parameters: 4.2 GB on disk.
LARGE = DecoderSettings(
    vocab_size=32_000, d_model=2048, layers=30, heads=16, kv_heads=16, head_dim=128, d_ff=8192, max_positions=2048
)
LOAD = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.devices.mesh import make_mesh

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

mesh = make_mesh(*json.loads(sys.argv[2]))
parameters = jax.block_until_ready(model_folder.load(Path(sys.argv[1]), mesh, jnp.bfloat16))
peak = status("VmHWM")
kept = sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))
sums = {"/".join(k.key for k in path): float(jnp.sum(leaf[..., :7].astype(jnp.float32)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)}
print(json.dumps({"kept": kept, "peak": peak, "sums": sums}))
"""


def write(folder: Path, settings: DecoderSettings, shard_bytes: int) -> int:
    """A checkpoint of many files with numbers that repeat; returns the bytes of its largest tensor."""
    (folder / "config.json").write_text(json.dumps(hugging_face_config(settings, "bfloat16")))
    block = np.random.default_rng(0).normal(size=1 << 20).astype(ml_dtypes.bfloat16)
    weight_map, shard, largest, files = {}, {}, 0, 0
    tensors = list(stored_tensors(settings))
    for i, stored in enumerate(tensors):
        shard[stored.name] = np.resize(block, stored.shape)
        largest = max(largest, shard[stored.name].nbytes)
        if sum(t.nbytes for t in shard.values()) > shard_bytes or i == len(tensors) - 1:
            name = f"model-{files:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, name)
            shard, files = {}, files + 1
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return largest


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from /proc")
def test_an_import_holds_less_than_two_of_the_largest_tensor_and_a_gigabyte(tmp_path: Path) -> None:
    """On a CPU the devices' memory is the host's, so the size of the parameters is subtracted.

    The gigabyte covers Python, jax and the compiler, which take 0.4 GB before anything is read.
    """
    largest = write(tmp_path, LARGE, 1_500_000_000)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert on_disk > 4e9 and on_disk == pytest.approx(BYTES * parameter_count(LARGE), rel=1e-3)
    figures = []
    for devices, mesh in ((1, (1, 1, 1)), (8, (1, 4, 2))):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path), json.dumps(mesh)],
            env={"PATH": "", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        figures.append(json.loads(done.stdout))
        kept, peak = figures[-1]["kept"], figures[-1]["peak"]
        print(f"{devices} devices: {on_disk:,} bytes on disk, {kept:,} kept, peak {peak:,}, above {peak - kept:,}")
        assert kept == BYTES * parameter_count(LARGE)
        assert peak - kept < 2 * largest + 1e9, f"{(peak - kept) / 1e9:.2f} GB beside the parameters"
    assert figures[0]["sums"] == pytest.approx(figures[1]["sums"], rel=1e-5)
