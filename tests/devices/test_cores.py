"""Cores as devices: one a core by default, and what the user's environment says has priority."""

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
