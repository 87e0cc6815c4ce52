"""What is read from compiled programs: products, rounds of loops, collectives, memory, arrays."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.collectives import collectives, replica_groups
from qrpo_jax.devices.program.matmuls import matmul_flops
from qrpo_jax.devices.program.memory import large_arrays, largest_allocations, memory

ROUNDS, M, K, N = 5, 7, 11, 13


def module_of(f, *arguments):
    return hlo.parse(jax.jit(f).lower(*arguments).compile().as_text())


def test_products_in_a_loop_count_once_a_round():
    def f(x_MxM, w_NxMxM):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_MxM, w_NxMxM)[0]

    module = module_of(f, jnp.ones((64, 64)), jnp.ones((ROUNDS, 64, 64)))
    assert matmul_flops(module) == ROUNDS * 2 * 64**3


def test_products_in_nested_loops_multiply():
    def f(x, w):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=ROUNDS)[0]

    module = module_of(f, jnp.ones((64, 64)), jnp.ones((64, 64)))
    assert matmul_flops(module) == 3 * ROUNDS * 2 * 64**3


def test_a_loop_that_may_end_early_counts_as_its_limit():
    """Such as that of the sampler, which ends when all completions are finished."""

    def f(x):
        def more(state):
            step, x = state
            return (step < 17) & ~jnp.all(x > 1e6)

        return jax.lax.while_loop(more, lambda s: (s[0] + 1, jnp.sin(s[1] @ x)), (3, x))[1]

    module = module_of(f, jnp.ones((64, 64)))
    assert matmul_flops(module) == (17 - 3) * 2 * 64**3


@pytest.mark.parametrize("pattern", ["MK,KN->MN", "BMK,BKN->BMN", "MKB,NBK->BNM"])
def test_products_of_any_axes(pattern):
    sizes = {"M": 64, "K": 96, "N": 32, "B": 5}
    shapes = [tuple(sizes[axis] for axis in part) for part in pattern.split("->")[0].split(",")]
    module = module_of(lambda a, b: jnp.einsum(pattern, a, b), *(jnp.ones(shape) for shape in shapes))
    expected = 2 * math.prod(sizes[axis] for axis in set(pattern) - set("->,"))
    assert matmul_flops(module) == expected


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"))


# Bytes that a device receives, for an array of 8 x 6 float32 a device and a group of 4 devices.
BYTES = 8 * 6 * 4
COMMUNICATION = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "a"), BYTES * 3),
    "all-reduce": (lambda x: jax.lax.psum(x, "a"), BYTES * 2 * 3 / 4),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "a", tiled=True), BYTES * 3 / 4),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "a", 0, 0, tiled=True), BYTES * 3 / 4),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)]), BYTES),
}


@pytest.mark.parametrize("kind", COMMUNICATION)
def test_bytes_of_collectives_in_a_loop(mesh, kind):
    f, expected = COMMUNICATION[kind]

    def looped(x):
        def once(total, _):
            y = f(x + total)
            return total + jnp.sum(y) / y.size, None

        return jax.lax.scan(once, jnp.float32(0), None, length=ROUNDS)[0][None]

    spec = PartitionSpec(("a", "b"))
    mapped = jax.shard_map(looped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    found = [one for one in collectives(module_of(mapped, jnp.ones((64, 6))), 8) if one.kind == kind]
    assert sum(one.bytes * one.times for one in found) == pytest.approx(ROUNDS * expected), found
    members = {one.members for one in found}
    if kind != "collective-permute":
        assert members == {(0, 2, 4, 6)}, members


def test_groups_along_a_part_of_a_mesh_axis():
    text = "replica_groups=mesh['x'=4,'y'=2] {'x':(2)2}, dimensions={0}"
    assert replica_groups(text, 8) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert replica_groups("replica_groups={}, x=1", 3) == [[0, 1, 2]]


def test_memory_counts_a_donated_argument_once():
    def f(x, y):
        return x + y

    x, y = jnp.ones((1024, 256)), jnp.ones((1024, 256))
    kept, donated = (memory(jax.jit(f, donate_argnums=d).lower(x, y).compile()) for d in ((), (0,)))
    size = x.nbytes
    assert kept.arguments == donated.arguments == 2 * size
    assert kept.aliased == 0 and donated.aliased == size
    assert kept.total - donated.total == size, (kept, donated)
    assert donated.gigabytes()["arguments"] == round(2 * size / 1e9, 3)


def test_a_stored_array_is_listed():
    def f(x_MxN):
        return jnp.sort(x_MxN[:, None] * x_MxN[None], axis=0).sum()

    elements = 32 * 32 * 257
    module = module_of(f, jnp.ones((32, 257)))
    found = large_arrays(module, elements)
    assert found and found[0].shape.dims == (32, 32, 257) and "jit(f)" in found[0].source, found
    assert not large_arrays(module, elements + 1)


def test_an_array_inside_a_fusion_is_not_stored():
    module = hlo.parse("""HloModule m

%inner (a: f32[64]) -> f32[] {
  %a = f32[64]{0} parameter(0)
  %wide = f32[64,64]{1,0} broadcast(%a), dimensions={0}
  ROOT %s = f32[] custom-call(%wide), custom_call_target="sum"
}

ENTRY %main (p: f32[64]) -> f32[] {
  %p = f32[64]{0} parameter(0)
  ROOT %f = f32[] fusion(%p), kind=kLoop, calls=%inner
}
""")
    assert [str(one.shape) for one in large_arrays(module, 64)] == ["f32[64]"]


def test_the_largest_allocations_of_a_program_that_is_too_large():
    report = """Memory Space: default (color=0)
Total bytes: 34393576448 (32.03GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   16.00GiB( 50%);   512.0MiB;            0;                2; 2×bf16[8,4096,8192]
   32.00GiB(100%);   16.00GiB;  17179869184;                3; (f32[64,4096,16384], u32[]), s32[3]

Memory Space: vmem (color=1)
Total bytes: 33554432 (32.00MiB)
   32.00MiB(100%);   32.00MiB;            0;                1; f32[65536,128]
"""
    program = """HloModule m

ENTRY %main (p: f32[2]) -> f32[64,4096,16384] {
  %p = f32[2]{0} parameter(0)
  ROOT %c = f32[64,4096,16384]{2,1,0} broadcast(%p), metadata={op_name="jit(step)/dot_general"}
}
"""
    total, largest = largest_allocations(report, program)
    assert total == 34393576448
    assert largest == ["16.00GiB f32[64,4096,16384] from jit(step)/dot_general", "512.0MiB bf16[8,4096,8192]"]
    assert largest_allocations("", "") == (0, [])


def test_an_instruction_over_several_lines_is_one():
    text = """HloModule m

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %c = f32[2]{0} custom-call(%p), custom_call_target="k", frontend_attributes={kernel_metadata={
}}, metadata={op_name="jit(f)/kernel" stack_frame_id=1}
}
"""
    root = hlo.parse(text).computations["main"].root
    assert (root.opcode, root.operands, root.source) == ("custom-call", ("p",), "jit(f)/kernel")
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule empty")
