"""Compiled programs are kept between starts, and a damaged one is compiled again."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT, environment

PROGRAM = """
import warnings
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp
from jax._src import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name))
from qrpo_jax.devices.program.cache import keep_programs
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
keep_programs()
value = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((7, 13)))
print(float(value.sum()), hits.count("/jax/compilation_cache/cache_hits"), jax.config.jax_compilation_cache_dir)
"""


def start(**variables: str) -> tuple[float, int, str]:
    """The value, the programs that were not compiled, and the folder."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(**variables), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    value, hits, folder = done.stdout.split()
    return float(value), int(hits), folder


def test_a_second_start_finds_what_the_first_compiled(tmp_path: Path) -> None:
    here = {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    value, hits, folder = start(**here)
    assert hits == 0 and Path(folder).is_relative_to(tmp_path / "qrpo_jax"), folder
    programs = [path for path in Path(folder).rglob("*-cache")]
    assert programs, sorted(Path(folder).rglob("*"))
    assert start(**here) == (value, len(programs), folder)
    for path in programs:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert start(**here) == (value, 0, folder)


def test_variables_of_jax_come_first(tmp_path: Path) -> None:
    other = tmp_path / "other"
    names = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(other)}
    assert start(**names, JAX_ENABLE_COMPILATION_CACHE="true")[2] == str(other)
    assert start(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")[2] == "None"
    assert not (tmp_path / "qrpo_jax").exists()


LARGE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from qrpo_jax.devices.program.cache import keep_programs
from qrpo_jax.devices.xla_flags import compiler_options
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))

def chain(x):
    kept = [x]
    for _ in range(17):
        kept.append(jnp.sin(kept[-1]) @ jnp.ones((1013, 7)) @ jnp.ones((7, 1013)))
    return sum(each[0, 0] * each.sum() for each in kept)

jitted = jax.jit(jax.grad(chain), compiler_options=compiler_options(mesh, backward=sys.argv[1] == "backward"))
print(float(jitted(jnp.full((1009, 1013), 1e-3)).sum()))
"""


@pytest.mark.parametrize("kind, kept", [("forward", True), ("backward", False)])
def test_programs_with_70_MB_of_intermediate_values_are_kept_or_compiled_anew_without_a_warning(kind, kept, tmp_path):
    """XLA writes no program whose values lie in several blocks, as those with a backward pass do on a CPU."""
    here = {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", LARGE, kind], cwd=ROOT, env=environment(**here), capture_output=True, text=True
        )
        assert done.returncode == 0 and "arning: Error" not in done.stderr, done.stderr[-2000:]
        assert bool([path for path in tmp_path.rglob("jit_chain*-cache")]) == kept, sorted(tmp_path.rglob("*"))
