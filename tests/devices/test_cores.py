"""Cores as devices: one a core by default, and what the user's environment says has priority."""

import platform
import subprocess
import sys

import pytest

from configs import quickstart
from qrpo_jax.devices.cores import core_count
from qrpo_jax.errors import UserError
from qrpo_jax.main import cpu_devices
from tests.helpers.jobs import ROOT, environment

COUNT = "import jax; from qrpo_jax.devices.cores import use_cores; use_cores(3); print(jax.device_count())"


@pytest.mark.parametrize(
    "variables, devices",
    [({}, 3), ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5), ({"JAX_NUM_CPU_DEVICES": "2"}, 2)],
)
def test_the_cpu_is_split_unless_the_environment_says_how(variables, devices):
    command, options = [sys.executable, "-c", COUNT], dict(capture_output=True, text=True, timeout=120)
    done = subprocess.run(command, cwd=ROOT, env=environment(**variables), **options)
    assert done.stdout.strip() == str(devices), (done.stdout, done.stderr[-500:])


def test_a_job_has_one_device_a_core_but_no_more_than_a_batch_has_units():
    config = quickstart.get_config()
    config.sft.batch_size = config.train.batch_size = 1000
    assert cpu_devices(config, distributed=False) == core_count() >= 1
    assert cpu_devices(config, distributed=True) == 1
    config.train.batch_size = 1
    assert cpu_devices(config, distributed=False) == 1
    config.mesh.cpu_devices = 7
    assert cpu_devices(config, distributed=False) == cpu_devices(config, distributed=True) == 7
    with pytest.raises(UserError, match="mesh.cpu_devices is -1"):
        config.mesh.cpu_devices = -1


FAULTS = """
import itertools, resource, statistics
import jax, jax.numpy as jnp
from qrpo_jax.devices.cores import use_cores
from qrpo_jax.devices.xla_flags import BACKWARD_FLAGS, FLAGS
use_cores(1)
matrix, narrow = jnp.full((1009, 1013), 1e-3), jnp.full((1013, 7), 1e-2)

def chain(x):
    kept = [x]
    for _ in range(17):
        kept.append(jnp.sin(kept[-1]) @ narrow @ narrow.T)
    return sum(each[0, 0] * each.sum() for each in kept)

run = jax.jit(jax.grad(chain), compiler_options={**FLAGS["cpu"], **BACKWARD_FLAGS["cpu"]})
faults = []
for _ in range(61):
    run(matrix).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
# What a call frees may not be free yet when the next one asks for memory. Such a call takes new pages, which are kept
# too, so calls that take none become more. The median tells what a call costs in the long run.
print(int(statistics.median(after - before for before, after in itertools.pairwise(faults[20:]))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_program_uses_its_memory_again_unless_the_environment_says_otherwise() -> None:
    def faults(**variables: str) -> int:
        command, options = [sys.executable, "-c", FAULTS], dict(capture_output=True, text=True, timeout=300)
        done = subprocess.run(command, cwd=ROOT, env=environment(JAX_PLATFORMS="cpu", **variables), **options)
        assert done.returncode == 0, done.stderr[-500:]
        return int(done.stdout)

    kept, given_back = faults(), faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert given_back > 5000 and kept < 0.01 * given_back, (kept, given_back)
