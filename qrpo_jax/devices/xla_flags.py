"""Compiler options for each kind of chip, the launch record: what every program is compiled with, and why.

They are passed with each program, so that a run needs no environment variable, and what stage `compile` has measured
is what runs. `python -m qrpo_jax.devices.xla_flags` prints them as LIBTPU_INIT_ARGS for programs of other packages.
"""

from collections.abc import Mapping

from jax.sharding import Mesh

# Windowed einsums turn the products of gathered weights into loops over the devices, each round a product too small to
# fill the matrix units.
_WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}

FLAGS: dict[str, Mapping[str, str]] = {
    "TPU v4": _WHOLE_PRODUCTS,
    "TPU v5 lite": _WHOLE_PRODUCTS,
    "TPU v5": _WHOLE_PRODUCTS,
    "TPU v6 lite": _WHOLE_PRODUCTS,
    "TPU7x": _WHOLE_PRODUCTS,
}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options of `jax.jit` for programs on this mesh; None where the record has no entry."""
    return dict(FLAGS.get(mesh.devices.flat[0].device_kind, {})) or None


def init_args(kind: str) -> str:
    """The value of LIBTPU_INIT_ARGS that gives every program on such chips these options.

    >>> init_args("TPU v5 lite").split()[0]
    '--xla_jf_spmd_threshold_for_windowed_einsum_mib=100000'
    """
    return " ".join(f"--{name}={value}" for name, value in FLAGS.get(kind, {}).items())


if __name__ == "__main__":
    for kind in FLAGS:
        print(f"{kind}: LIBTPU_INIT_ARGS='{init_args(kind)}'")
