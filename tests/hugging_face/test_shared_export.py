"""Processes share an export: each writes files of its own, and the folder is that of one process."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrpo_jax import files
from qrpo_jax.data.text import Text, make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh, parameter_shardings
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.model import decoder
from qrpo_jax.stores.path import StorePath
from tests.helpers.exports import CHARACTERS, TIED
from tests.helpers.fake_store import PROTOCOL
from tests.helpers.together import run_together

FILE_BYTES = 20_011
UNTIED = dataclasses.replace(TIED, tie_embeddings=False)
PROGRAM = """
import os
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import exported_weights, model_folder
from qrpo_jax.stores.path import as_path
from tests.hugging_face.test_shared_export import FILE_BYTES, UNTIED, reach, spread, text

written = []
class Recorded(exported_weights.TensorFile):
    def __init__(self, path, *rest):
        written.append(path.name)
        super().__init__(path, *rest)

exported_weights.TensorFile = Recorded
reach(arguments[0])
for name, dtype in zip(arguments[1:4], ("float32", "bfloat16", "float32")):
    model_folder.save(as_path(name), UNTIED, spread(UNTIED), text(), dtype=dtype, max_shard_bytes=FILE_BYTES)
answer(written)

broken = spread(UNTIED)
broken["norm"] = {"scale": broken["norm"]["scale"] * float("inf")}
try:
    model_folder.save(as_path(arguments[4]), UNTIED, broken, text())
except UserError as error:
    answer(str(error))
"""


def text() -> Text:
    tokenizer = vocabulary_tokenizer(CHARACTERS)
    return make_text(tokenizer, "chat", (tokenizer.eos_token_id,))


def reach(store: str) -> None:
    """Makes this process reach a fake object store in a folder."""
    import fsspec

    from tests.helpers.fake_store import FakeStore

    os.environ["FAKE_STORE"] = store
    fsspec.register_implementation(PROTOCOL, FakeStore, clobber=True)


def spread(settings: decoder.DecoderSettings, scale: float = 0.2) -> decoder.Parameters:
    """Random parameters, split over the devices of all processes."""
    mesh = make_mesh(1, -1, 1)
    shapes, rng = decoder.abstract_parameters(settings), np.random.default_rng(5)

    def draw(shape: Any, sharding: Any) -> jax.Array:
        values = scale * rng.standard_normal(shape.shape, np.float32)
        return jax.make_array_from_callback(shape.shape, sharding, lambda index: values[index])

    return jax.tree.map(draw, shapes, parameter_shardings(mesh, decoder.logical_axes(settings), shapes))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_the_folder_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "two", tmp_path / "two-half", f"{PROTOCOL}://bucket/two", tmp_path / "broken"]
    answers = run_together(tmp_path, PROGRAM, tmp_path / "store", *folders)
    names = [sorted({name for name in answer if "model" in name}) for answer in answers if isinstance(answer, list)]
    assert not set(names[0]) & set(names[1]) and len(names[1]) <= len(names[0]) <= len(names[1]) + 1, names
    assert min(map(len, names)) > 2, names
    # The parameters of two processes, from this one.
    two = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: two)
    parameters = spread(UNTIED)
    for name, dtype in (("two", "float32"), ("two-half", "bfloat16")):
        one = tmp_path / f"one-{name}"
        model_folder.save(one, UNTIED, parameters, text(), dtype=dtype, max_shard_bytes=FILE_BYTES)
        assert content(one) == content(tmp_path / name), name
        assert len(content(one)) > 9
    reach(str(tmp_path / "store"))
    stored = StorePath(f"{PROTOCOL}://bucket/two")
    assert files.is_complete(stored)
    assert content(files.local_folder(stored)) == content(tmp_path / "one-two"), "sizes and checksums are compared"
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert refused == ["tensor model.norm.weight is not finite as float32; nothing was exported"] * 2, answers
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["one-two", "one-two-half", "program.py", "store", "two", "two-half"], left


# 94 million parameters: 377 MB in float32.
LARGE = decoder.DecoderSettings(
    vocab_size=8009, d_model=1024, layers=7, heads=8, kv_heads=8, head_dim=128, d_ff=2731, max_positions=61
)
MEASURE = """
from pathlib import Path
from qrpo_jax.hugging_face import exported_weights
from tests.hugging_face.test_shared_export import LARGE, spread

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

parameters = jax.block_until_ready(spread(LARGE))
folder = Path(arguments[0])
# Compiles, and loads what the first export loads.
exported_weights.save_weights(folder / "first", LARGE, parameters, "float32", 50_000_000)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
exported_weights.save_weights(folder / "second", LARGE, parameters, "float32", int(arguments[1]))
answer({"before": before, "peak": status("VmHWM"), "own": sum(s.data.nbytes for x in jax.tree.leaves(parameters)
    for s in x.addressable_shards)})
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from /proc")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("file_bytes", [50_000_000, 5_000_000_000])
def test_an_export_holds_a_tensor_and_what_passes_the_device(tmp_path: Path, processes: int, file_bytes: int) -> None:
    """On a CPU the devices' memory is the host's: it has the tensor that is gathered, and its copy in stored order."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    largest = 4 * 8009 * 1024
    answers = run_together(tmp_path, MEASURE, tmp_path, file_bytes, processes=processes)
    written = sum(path.stat().st_size for path in (tmp_path / "second").glob("*.safetensors"))
    assert written > 300e6
    for answer in answers:
        above = answer["peak"] - answer["before"]
        print(f"{processes} processes, files of {file_bytes:,}: {json.dumps(answer)}, {above:,} above, {largest=:,}")
        assert answer["own"] < 1.02 * written / processes, answer
        assert above < 3 * largest, f"{above / 1e6:.0f} MB while tensors have up to {largest / 1e6:.0f} MB"
