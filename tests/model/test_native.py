"""Kernels in C++: the plain formula's numbers, whatever the vectors and threads; compiled once, or `blocks` instead."""

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices import shared_library
from qrpo_jax.devices.shared_library import NotBuiltError
from qrpo_jax.errors import UserError
from qrpo_jax.model import attention
from qrpo_jax.model.attention import blocks, native, plain
from qrpo_jax.model.layout import one_sequence
from tests.helpers.attention_cases import CASES, both, draw
from tests.helpers.jobs import ROOT, SMALL, environment, job
from tests.helpers.packings import random_layout

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))

COMPARE = """
import numpy as np
from qrpo_jax.model.attention import native, plain
from tests.helpers.attention_cases import CASES, both, distance, draw
from tests.helpers.packings import random_layout

cases = [*CASES.values(), (3, 1, 5, None, None, None), (2, 2, 72, 17, -0.3, None)]
for seed, (heads, kv_heads, k_dim, window, scale, cap) in enumerate(cases):
    rng = np.random.default_rng(seed)
    layout = random_layout(rng, rows=3, length=149, longest=41)
    *arrays, d_out = draw(rng, layout, heads, kv_heads, k_dim)
    attends = native.attend, plain.attend
    found, expected = (both(attend, layout, 0, window, arrays, d_out, scale=scale, cap=cap) for attend in attends)
    print(max(distance(found, expected, layout)))
"""


@pytest.mark.parametrize("lanes", [8, 16])
def test_vectors_of_8_and_of_16_lanes_give_the_numbers_of_the_plain_formula(lanes, tmp_path):
    """Compilers make two vectors of each where the machine has none of this width."""
    compiler = f"{os.environ.get('CXX', 'c++')} {'-U' if lanes == 8 else '-D'}__AVX512F__"
    done = run(COMPARE, CXX=compiler, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == len(CASES) + 2 and max(errors) < 1e-5, errors


def test_processes_of_which_one_has_no_compiler_are_refused_on_all_before_anything_runs(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, f"--workdir={tmp_path / 'run'}", where, "--processes=2"]
    started = [
        subprocess.Popen(
            [*command, f"--process={index}"],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(tmp_path / str(index)), **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, variables in enumerate([{}, {"CXX": "no-such-compiler"}])
    ]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2, output[-3000:]
        (line,) = (line for line in output.splitlines() if "error" in line)
        assert "error: attention is 'auto', which is 'native' on some processes and 'blocks' on 1 of 2" in line, output
        assert (
            "(process 1: " in line
            and "no-such-compiler" in line
            and "allowed for all of them: blocks (config.model.attention)" in line
        ), line
    assert not (tmp_path / "run" / "sft").exists()


def test_types_that_the_kernels_have_not_are_left_to_blocks():
    layout = one_sequence(np.asarray([11]), np.arange(13, dtype=np.int32)[None])
    with jax.enable_x64(True):
        *arrays, d_out = draw(np.random.default_rng(1), layout, 4, 2, 8, np.float64)
        found, expected = (both(attend, layout, 0, None, arrays, d_out) for attend in (native.attend, blocks.attend))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == np.float64
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_what_is_no_number_stays_visible(wrong, cap):
    """Outputs are finite where the plain formula's are, and each gradient has something that is no number if its has.

    How many differs: both multiply some of what is hidden by 0, and no number by 0 is none.
    """
    rng = np.random.default_rng(5)
    layout = random_layout(rng, rows=2, length=149, longest=41)
    *arrays, d_out = draw(rng, layout, 4, 2, 8)
    rows, places = np.nonzero(np.asarray(layout.groups_BxL))
    arrays[0] = arrays[0].at[rows[17], places[17], 1, 3].set(wrong)
    found, expected = (
        both(attend, layout, 0, None, arrays, d_out, cap=cap) for attend in (native.attend, plain.attend)
    )
    seen = np.asarray(layout.groups_BxL > 0)[..., None, None]
    (out, *gradients), (expected_out, *expected_gradients) = (
        [~np.isfinite(x) & (seen if x.shape[2] == 4 else True) for x in arrays] for arrays in (found, expected)
    )
    np.testing.assert_array_equal(out, expected_out)
    for x, y in zip(gradients, expected_gradients, strict=True):
        assert x.any() == y.any(), (x.sum(), y.sum())


@pytest.mark.parametrize("heads, kv_heads", [(6, 3), (4, 1)])
def test_any_number_of_threads_gives_the_same_bits(heads, kv_heads, monkeypatch):
    rng = np.random.default_rng(2)
    layout = random_layout(rng, rows=5, length=131, longest=37)
    *arrays, d_out = draw(rng, layout, heads, kv_heads, 16)
    results = {}
    for cores in (1, 2, 7):
        monkeypatch.setattr(native, "core_count", lambda cores=cores: cores * jax.local_device_count())
        results[cores] = both(native.attend, layout, 0, None, arrays, d_out)
    for cores in (2, 7):
        for x, y in zip(results[cores], results[1], strict=True):
            np.testing.assert_array_equal(x, y)


def test_threads_of_all_devices_at_once_do_not_wait_for_each_other():
    """More programs at a time than the process has threads, each of which asks for help."""
    rng = np.random.default_rng(3)
    layout = random_layout(rng, rows=5, length=131, longest=37)
    *arrays, _ = draw(rng, layout, 6, 3, 16)
    rule = native.Rule(0.25, 0.0, threads=5)
    ranges = jnp.stack(native.key_ranges(layout))
    attend = jax.jit(lambda q, k, v: native._attend(rule, q, k, v, ranges))
    devices = jax.local_devices()
    placed = [[jax.device_put(x, device) for x in arrays] for device in devices]
    expected = np.asarray(attend(*placed[0]))
    for _ in range(7):
        for result in [attend(*each) for each in placed]:
            np.testing.assert_array_equal(result, expected)


def test_auto_is_native_on_a_cpu():
    assert attention.choose("auto", "cpu") is attention.choose("native", "cpu") is native.attend
    assert attention.best("cpu") == ("native", None)


def test_without_a_compiler_auto_is_blocks_and_says_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotBuiltError, match="no C.. compiler 'no-such-compiler'; install one, or name it in CXX"):
        shared_library.shared_library(native.SOURCE)
    monkeypatch.setattr(native, "missing", lambda: "there is no C++ compiler")
    assert attention.choose("auto", "cpu") is blocks.attend
    with pytest.raises(UserError, match="'native', but there is no C.. compiler; allowed here: auto, blocks"):
        attention.choose("native", "cpu")
    slower = job(tmp_path)
    for _ in range(2):
        assert slower.compute(slower.mesh).attention is blocks.attend
    line = "attention: by blocks, not by kernels in half the time: there is no C++ compiler"
    said = capsys.readouterr()
    assert (said.out + said.err).count(line) == 1, said
    chosen = job(tmp_path, model__attention="plain")
    assert chosen.compute(chosen.mesh).attention is plain.attend
    assert "attention: by" not in "".join(capsys.readouterr())


def test_what_the_compiler_says_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "wrong.cc"
    source.write_text("int f() { return missing; }\n")
    with pytest.raises(NotBuiltError, match=r"cannot compile wrong.cc: .*error: .*missing") as caught:
        shared_library.shared_library(source)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


SOURCE = 'extern "C" int answer() { return 17; }\n'


def test_a_process_that_cannot_write_its_cache_compiles_for_itself(monkeypatch, tmp_path):
    (tmp_path / "source.cc").write_text(SOURCE)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library, _ = shared_library.shared_library(tmp_path / "source.cc")
    assert library.answer() == 17


def test_a_library_is_compiled_once_and_anew_when_the_source_or_the_compiler_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source.cc"
    source.write_text(SOURCE)

    def libraries():
        library, name = shared_library.shared_library(source)
        return library.answer(), name, len(list((tmp_path / "cache").rglob("*.so")))

    first = libraries()
    assert first == libraries() and first[0] == 17 and first[2] == 1
    source.write_text(SOURCE.replace("17", "19"))
    second = libraries()
    assert second[0] == 19 and second[1] != first[1] and second[2] == 2
    monkeypatch.setenv("CXX", f"{os.environ.get('CXX', 'c++')} -DOTHER")
    third = libraries()
    assert third[0] == 19 and third[1] != second[1] and third[2] == 3


def test_processes_that_compile_at_the_same_time_do_not_disturb_each_other(tmp_path):
    code = "from qrpo_jax.model.attention import native; print(native.missing())"
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: run(code, XDG_CACHE_HOME=str(tmp_path)), range(3)))
    assert [each.stdout.strip() for each in done] == ["None"] * 3, [each.stderr[-500:] for each in done]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


KEPT = """
import jax, numpy as np
from qrpo_jax.model.attention import native
from qrpo_jax.model.layout import one_sequence
from tests.helpers.attention_cases import both, draw
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
layout = one_sequence(np.asarray([17, 13]), np.arange(19, dtype=np.int32)[None].repeat(2, 0))
*arrays, d_out = draw(np.random.default_rng(4), layout, 4, 2, 8)
print("sums", *(float(np.abs(x).sum()) for x in both(native.attend, layout, 0, None, arrays, d_out)))
print("hits", hits.count("/jax/compilation_cache/cache_hits"), hits.count("/jax/compilation_cache/cache_misses"))
"""


def test_a_compiled_program_that_is_kept_calls_the_kernels_of_the_process_that_reads_it(tmp_path):
    variables = dict(JAX_ENABLE_COMPILATION_CACHE="true", JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    first, second = (run(KEPT, **variables) for _ in range(2))
    found = [re.search(r"sums (.*)\nhits (\d+) (\d+)", each.stdout) for each in (first, second)]
    assert all(found), (first.stderr[-1000:], second.stderr[-1000:])
    assert found[0][1] == found[1][1]
    assert int(found[1][2]) > int(found[0][2]) and int(found[1][3]) == 0, (found[0][0], found[1][0])


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(JAX_PLATFORMS="cpu", **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
