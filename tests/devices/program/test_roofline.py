"""Step times: laws of the schedule on programs written by hand, and a program compiled for absent TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrpo_jax.devices.chips import CHIPS
from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.analysis import analyse
from qrpo_jax.devices.program.collectives import collectives
from qrpo_jax.devices.program.compilation import DoesNotFitError, compile_program
from qrpo_jax.devices.program.links import seconds
from qrpo_jax.devices.program.roofline import KERNEL_SHARE, Roofline

CHIP = CHIPS["TPU v5"]


class Device:
    """A device of a slice of v5p, without libtpu."""

    process_index = 0

    def __init__(self, *coords, slice_index=0):
        self.coords, self.slice_index = coords, slice_index


RING = [Device(0, 0, z) for z in range(4)]  # a line: only whole cubes of 4 x 4 x 4 close to rings


def step_time(entry, devices=RING, before="", **options):
    text = f"HloModule m, is_scheduled=true\n\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry}\n}}\n"
    return Roofline(hlo.parse(text), CHIP, devices, **options).step_time()


P = "  %p = f32[64,1024,1024]{2,1,0} parameter(0)"
MICROSECOND = round(CHIP.clock / 1e6)
WORK = '  %{} = f32[8]{{0}} copy(%p), backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'
GROUPS = "channel_id=1, replica_groups={{0,1,2,3}}"
MEGABYTES = 64 * 4
# A line of 4 has one link into its ends: 3/4 of the array at 100 GB/s, and 3 hops.
REDUCE = MEGABYTES * 2**20 * 2 * 3 / 4 / 100e9 + 3e-6


def test_cycles_of_instructions_add_up():
    time = step_time("\n".join([P, WORK.format("a", 30 * MICROSECOND), WORK.format("b", 12 * MICROSECOND)]))
    np.testing.assert_allclose(time.scheduled, 42e-6, rtol=1e-3)
    assert time.scheduled == time.overlapped == time.serial == time.compute


def test_a_waiting_collective_adds_its_time_and_an_asynchronous_one_what_is_left():
    work = WORK.format("a", 1000 * MICROSECOND)
    waiting = step_time(f"{P}\n{work}\n  %r = f32[64,1024,1024]{{2,1,0}} all-reduce(%p), {GROUPS}")
    np.testing.assert_allclose(waiting.scheduled, 1e-3 + REDUCE, rtol=1e-3)
    begin = f"  %s = f32[64,1024,1024]{{2,1,0}} all-reduce-start(%p), {GROUPS}"
    end = "  %d = f32[64,1024,1024]{2,1,0} all-reduce-done(%s)"
    for cycles, expected in ((1000, REDUCE), (9000, 9e-3)):
        beside = step_time(f"{P}\n{begin}\n{WORK.format('a', cycles * MICROSECOND)}\n{end}")
        np.testing.assert_allclose(beside.scheduled, expected, rtol=1e-3)
        np.testing.assert_allclose([beside.ici, beside.serial], [REDUCE, REDUCE + cycles * 1e-6], rtol=1e-3)
    late = step_time(f"{P}\n{work}\n{begin}\n{end}")
    np.testing.assert_allclose(late.scheduled, waiting.scheduled, rtol=1e-6)


def test_two_collectives_share_the_links():
    begin = "  %s{} = f32[64,1024,1024]{{2,1,0}} all-reduce-start(%p), channel_id={}, replica_groups={{{{0,1,2,3}}}}"
    end = "  %d{} = f32[64,1024,1024]{{2,1,0}} all-reduce-done(%s{})"
    time = step_time("\n".join([P, begin.format(1, 1), begin.format(2, 2), end.format(1, 1), end.format(2, 2)]))
    np.testing.assert_allclose(time.scheduled, 2 * REDUCE, rtol=1e-3)


SPREAD = """
%begin (a: f32[64,1024,1024]) -> (f32[64,1024,1024], f32[256,1024,1024]) {
  %a = f32[64,1024,1024]{2,1,0} parameter(0)
  %g = f32[256,1024,1024]{2,1,0} all-gather(%a), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = (f32[64,1024,1024]{2,1,0}, f32[256,1024,1024]{2,1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%on (b: f32[64,1024,1024]) -> f32[8] {
  %b = f32[64,1024,1024]{2,1,0} parameter(0)
  %h = f32[256,1024,1024]{2,1,0} all-gather(%b), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %w = f32[8]{0} copy(%b)
}

%end (d: f32[64,1024,1024]) -> f32[256,1024,1024] {
  %d = f32[64,1024,1024]{2,1,0} parameter(0)
  %i = f32[256,1024,1024]{2,1,0} all-gather(%d), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %e = f32[256,1024,1024]{2,1,0} custom-call(%d, %i), custom_call_target="AsyncCollectiveDone"
}
"""  # noqa: E501


def test_a_collective_that_the_compiler_spreads_over_fusions_counts_once():
    entry = "\n".join(
        [
            P,
            "  %s = (f32[64,1024,1024]{2,1,0}, f32[256,1024,1024]{2,1,0}) fusion(%p), kind=kCustom, calls=%begin",
            f'  %m = f32[8]{{0}} fusion(%p), calls=%on, backend_config={{"estimated_cycles":"{5000 * MICROSECOND}"}}',
            "  %d = f32[256,1024,1024]{2,1,0} fusion(%p), kind=kCustom, calls=%end",
        ]
    )  # fmt: skip
    gather = MEGABYTES * 2**20 * 3 / 100e9 + 3e-6
    time = step_time(entry, before=SPREAD)
    np.testing.assert_allclose([time.ici, time.compute, time.scheduled], [gather, 5e-3, max(gather, 5e-3)], rtol=1e-3)
    module = hlo.parse(f"HloModule m\n{SPREAD}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry}\n}}\n")
    (one,) = collectives(module, 4)
    assert one.hidden and one.bytes == MEGABYTES * 2**20 * 3, one


def test_more_dimensions_and_rings_are_faster():
    def of(members, devices, kind="all-gather"):
        text = f"  %g = f32[8]{{0}} {kind}(%p), channel_id=1, replica_groups={{{{{','.join(map(str, members))}}}}}"
        entry = f"HloModule m\nENTRY %main (p: f32[8]) -> f32[8] {{\n{P}\n{text}\n}}\n"
        (one,) = collectives(hlo.parse(entry), len(devices))
        network, duration = seconds(one, CHIP, devices)
        return network, one.bytes / duration / 1e9

    cube = [Device(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    half = [device for device in cube if device.coords[0] < 2]
    np.testing.assert_allclose(of(range(64), cube)[1], 600, rtol=0.01)
    np.testing.assert_allclose(of(range(4), cube)[1], 200, rtol=0.01)
    np.testing.assert_allclose(of(range(2), cube)[1], 100, rtol=0.01)
    np.testing.assert_allclose(of(range(32), half)[1], 300, rtol=0.01)
    np.testing.assert_allclose(of(range(4), cube, "all-to-all")[1], 200, rtol=0.01)
    two = [*cube, *(Device(*device.coords, slice_index=1) for device in cube)]
    network, rate = of([0, 64], two)
    assert network == "dcn"
    np.testing.assert_allclose(rate, CHIP.dcn_bandwidth / 1e9, rtol=0.01)


def test_a_kernel_costs_what_attention_must_compute():
    b, h, length, k = 2, 8, 2048, 128
    q = f"bf16[{b},{h},{length},{k}]{{3,2,1,0}}"
    operands = f"  %q = {q} parameter(0)\n  %k = {q} parameter(1)"
    call = 'custom-call(%q, %k, %k), custom_call_target="tpu_custom_call"'
    product = 2 * b * h * length**2 * k * 0.5 / CHIP.bf16_flops / KERNEL_SHARE
    expected = {("fwd", q): 2, ("dq", q): 3, ("dkv", f"({q}, {q})"): 4, ("dkv", f"({q}, {q}, {q})"): 5}
    for (name, results), products in expected.items():
        time = step_time(f"{operands}\n  %splash_mha_{name} = {results} {call}", visible=0.5)
        np.testing.assert_allclose(time.scheduled, products * product, rtol=1e-6, err_msg=f"{name} {results}")


def test_a_kernel_of_joined_rows_visits_the_blocks_of_its_lists():
    h, rows, length, block, k = 8, 3, 2048, 512, 128
    q = f"bf16[{h},{rows * length},{k}]{{2,1,0}}"
    product = 2 * h * rows * length**2 * k * 0.5 / CHIP.bf16_flops / KERNEL_SHARE
    lists = {"fwd": (rows * length // block, length // block), "dkv": (length // block, rows * length // block)}
    for name, (first, second) in lists.items():
        visits = f"  %v = s32[1,{first},{second}]{{2,1,0}} parameter(2)"
        result = q if name == "fwd" else f"({q}, {q})"
        call = f'  %splash_{name} = {result} custom-call(%v, %q, %k), custom_call_target="tpu_custom_call"'
        time = step_time(f"  %q = {q} parameter(0)\n  %k = {q} parameter(1)\n{visits}\n{call}", visible=0.5)
        np.testing.assert_allclose(time.scheduled, {"fwd": 2, "dkv": 4}[name] * product, rtol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def absent():
    """Eight chips that are not there."""
    pytest.importorskip("libtpu")
    from qrpo_jax.devices.topologies import open_topology

    return open_topology("v5e:2x4")


def test_a_program_for_absent_chips(absent):
    """Two layers, weights split 8 ways: what is read equals what one computes by hand."""
    mesh = Mesh(np.asarray(absent), ("fsdp",))
    rows, d, layers = 1024, 4096, 2

    def f(x_BxD, w_NxDxD):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, x_BxD, w_NxDxD)[0]

    x = jax.ShapeDtypeStruct((8 * rows, d), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    w = jax.ShapeDtypeStruct((layers, d, d), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    found = analyse(compile_program(jax.jit(f).lower(x, w), "tpu"), absent)
    assert found.executed_flops == layers * 2 * rows * d * d
    gathered = layers * d * d * 2 * 7 / 8
    np.testing.assert_allclose(found.received("ici"), gathered, rtol=0.01)
    assert found.received("dcn") == 0
    assert found.fits and found.memory.arguments == rows * d * 2 + layers * d * d * 2 / 8
    mfu = found.mfu(8 * found.executed_flops)
    time = found.time
    assert time.overlapped <= time.scheduled <= time.serial * (1 + 1e-9), time
    at_peak = found.executed_flops / found.chip.bf16_flops
    assert at_peak < time.compute < 1.5 * at_peak, (at_peak, time)
    assert 0.3 < mfu < 1, (mfu, time)
    assert found.seconds_by_kind()["matmul"] > 0.6 * time.compute, found.costs


def test_a_program_that_does_not_fit_names_its_largest_arrays(absent):
    one = jax.sharding.SingleDeviceSharding(absent[0])
    x = jax.ShapeDtypeStruct((65536, 128), jnp.float32, sharding=one)
    lowered = jax.jit(lambda x: jnp.sort(x @ x.T, axis=0)[:, 0]).lower(x)
    with pytest.raises(DoesNotFitError, match="largest arrays: 16.*f32\\[65536,65536\\]") as caught:
        compile_program(lowered, "tpu")
    assert caught.value.needed > 32e9 and 15e9 < caught.value.available < 17e9, caught.value
    assert "from jit" in caught.value.largest[0], caught.value.largest
