"""The launch record: options that the compiler knows, for TPUs and CPUs, and none elsewhere."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, SingleDeviceSharding

from qrpo_jax.devices.chips import CHIPS
from qrpo_jax.devices.topologies import open_topology
from qrpo_jax.devices.xla_flags import FLAGS, compiler_options, init_args


def test_every_tpu_of_the_table_has_a_record():
    assert FLAGS.keys() == {"cpu"} | {kind for kind in CHIPS if kind.startswith("TPU")}


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_compiler_knows_the_options(name):
    """libtpu refuses an option that it does not know."""
    pytest.importorskip("libtpu")
    mesh = Mesh(np.asarray(open_topology(name)[:1]), ("data",))
    one = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=SingleDeviceSharding(mesh.devices[0]))
    options = compiler_options(mesh)
    assert options and "xla_jf_spmd_threshold_for_windowed_einsum_mib" in options
    jax.jit(lambda x: x @ x, compiler_options=options).lower(one).compile()
    with pytest.raises(Exception, match="no_such_option"):
        jax.jit(lambda x: x @ x, compiler_options={"xla_no_such_option": "true"}).lower(one).compile()


@pytest.mark.parametrize("backward", [False, True])
def test_a_cpu_knows_its_options(backward):
    options = compiler_options(Mesh(np.asarray(jax.devices("cpu")[:1]), ("data",)), backward=backward)
    assert options and ("xla_multiheap_size_constraint_per_heap" in options) == backward
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_other_devices_get_no_options():
    device = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    assert device.device_kind in CHIPS
    assert compiler_options(SimpleNamespace(devices=np.asarray([device], object))) is None
    assert init_args(device.device_kind) == ""


def test_the_record_reads_as_arguments_of_libtpu():
    arguments = init_args("TPU v5").split()
    assert len(arguments) == len(FLAGS["TPU v5"])
    assert all(argument.startswith("--xla_") and "=" in argument for argument in arguments)
