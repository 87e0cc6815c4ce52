"""Compiler options for each kind of chip, the launch record: what every program is compiled with, and why.

They are passed with each program, so that a run needs no environment variable, and what stage `compile` has measured
is what runs. `python -m qrpo_jax.devices.xla_flags` prints them as LIBTPU_INIT_ARGS for programs of other packages.
"""

from collections.abc import Mapping

from jax.sharding import Mesh

# Windowed einsums turn the products of gathered weights into loops over the devices, each round a product too small to
# fill the matrix units.
_WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}
# Collectives run on the sparse cores of v5p, v6e and TPU7x, beside products on the main core. Without it the main core
# waits for all of them there; without the last two kinds, for gathers along more than one dimension of the torus. v5e
# has no sparse cores, and spreads a gather over several products by default.
# Estimated with libtpu 0.0.52 on 2026-11-27 for a feed-forward of four layers as wide as 8B's, its weights split over
# the slice: on v5p:2x4x4 without, with the first three and with all 91, 85 and 81 ms, of which 79 are products; on
# v6e:8x8 66, 60 and 54 ms.
_SPARSE_CORES = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true"
    for kind in ("all_gather", "reduce_scatter", "all_reduce", "2d_all_gather", "3d_all_gather")
}

# Matrix products work on tiles in the core's own memory, of which they may use 16 MiB by default. Larger tiles read
# less from HBM: for 8B on v5p:2x4x4, products reach 98 % of their peak in the estimate, and 78 % with the default.
_TILES = "xla_tpu_scoped_vmem_limit_kib"

# Where the CPU has such vectors; 256 by default. On a core of an Intel Xeon, a step of the stories model takes 6 % less
# time (2026-11-27).
_WIDE_VECTORS = {"xla_cpu_prefer_vector_width": "512"}

FLAGS: dict[str, Mapping[str, str]] = {
    "cpu": _WIDE_VECTORS,
    "TPU v4": _WHOLE_PRODUCTS,
    "TPU v5 lite": _WHOLE_PRODUCTS,
    "TPU v5": _WHOLE_PRODUCTS | _SPARSE_CORES | {_TILES: "65536"},
    "TPU v6 lite": _WHOLE_PRODUCTS | _SPARSE_CORES | {_TILES: "98304"},
    "TPU7x": _WHOLE_PRODUCTS | _SPARSE_CORES,
}


# Of programs with a backward pass. Intermediate values lie in blocks of at most this many bytes and not in one, where
# no single value is larger: the allocator can keep blocks up to 2**25 bytes (`cores.keep_freed_memory`). XLA cannot
# write a program with several blocks to disk, so other programs, which allocate less, have one (`program.cache`).
BACKWARD_FLAGS: dict[str, Mapping[str, str]] = {"cpu": {"xla_multiheap_size_constraint_per_heap": "30000000"}}


def compiler_options(mesh: Mesh, *, backward: bool = False) -> dict[str, str] | None:
    """Options of `jax.jit` for programs on this mesh; None where the record has no entry.

    Args:
      backward: the program has a backward pass.
    """
    kind = mesh.devices.flat[0].device_kind
    return {**FLAGS.get(kind, {}), **(BACKWARD_FLAGS.get(kind, {}) if backward else {})} or None


def init_args(kind: str) -> str:
    """The value of LIBTPU_INIT_ARGS that gives every program on such chips these options.

    >>> init_args("TPU v5 lite").split()[0]
    '--xla_jf_spmd_threshold_for_windowed_einsum_mib=100000'
    """
    return " ".join(f"--{name}={value}" for name, value in FLAGS.get(kind, {}).items())


if __name__ == "__main__":
    for kind in FLAGS:
        print(f"{kind}: LIBTPU_INIT_ARGS='{init_args(kind)}'")
