"""One table of chips: peaks, memory and links, each with its public source.

Figures are those of one JAX device. That is a chip, except for TPU v4 in ahead-of-time compilation and for TPU7x, where
each of a chip's two cores is a device of its own and gets half of the chip's memory and links.
"""

from typing import NamedTuple

import jax

from qrpo_jax.errors import UserError

TERA, GIGA, GIB = 1e12, 1e9, float(1 << 30)


class Chip(NamedTuple):
    """What one device can do.

    Attributes:
      kind: as `jax.Device.device_kind` names it.
      bf16_flops: peak FLOP/s of bfloat16 matrix products with float32 sums, without sparsity.
      hbm_bytes: capacity of its memory.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s that one link carries in one direction. A GPU counts as having one link, NVLink, to a
        switch that connects all GPUs of its host.
      torus: dimensions of the torus that links span, two links a dimension; 0 for a switch.
      ring: dimensions of the torus close to a ring where the slice's size along them is a multiple of this, and are
        lines elsewhere. A three-dimensional slice has rings only if all its dimensions have.
      dcn_bandwidth: bytes/s of the network between slices or hosts, the device's share of its host's.
      matrix_units: as many as explain the peak at the chip's clock; 0 where the compiler estimates no cycles.
      matrix_size: rows and columns of a matrix unit. A product that contracts fewer numbers leaves a part of it idle.
      source: where the figures are published.
    """

    kind: str
    bf16_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus: int
    ring: int
    dcn_bandwidth: float
    matrix_units: int
    matrix_size: int
    source: str

    @property
    def clock(self) -> float:
        """Cycles/s, by which the TPU compiler's cycle estimates become seconds; 0 where it estimates none."""
        flops_per_cycle = self.matrix_units * self.matrix_size**2 * 2
        return self.bf16_flops / flops_per_cycle if flops_per_cycle else 0.0


# The compiler's estimates of a bfloat16 product of 4096 x 4096 by 4096 x 14336 are for v4 90 %, v5e 98 %, v5p 97 %,
# v6e 89 % and TPU7x 82 % of what the units below would do (libtpu 0.0.52).
_CLOUD = "https://cloud.google.com/tpu/docs"
_RINGS = "rings: https://jax-ml.github.io/scaling-book/tpus"

CHIPS: dict[str, Chip] = {
    chip.kind: chip
    for chip in (
        Chip(
            "TPU v4",
            bf16_flops=137.5 * TERA,
            hbm_bytes=16 * GIB,
            hbm_bandwidth=600 * GIGA,
            link_bandwidth=25 * GIGA,
            torus=3,
            ring=4,
            dcn_bandwidth=3.1 * GIGA,
            matrix_units=4,
            matrix_size=128,
            source=f"{_CLOUD}/v4, half a chip: 275 TFLOP/s, 32 GiB, 1,200 GB/s; arXiv 2304.01433: 6 links; {_RINGS}",
        ),
        Chip(
            "TPU v5 lite",
            bf16_flops=197 * TERA,
            hbm_bytes=16 * GIB,
            hbm_bandwidth=819 * GIGA,
            link_bandwidth=50 * GIGA,
            torus=2,
            ring=16,
            dcn_bandwidth=3.1 * GIGA,
            matrix_units=4,
            matrix_size=128,
            source=f"{_CLOUD}/v5e: 4 links, 400 GB/s in both directions; 6.4 Tbit/s for 256 chips; {_RINGS}",
        ),
        Chip(
            "TPU v5",
            bf16_flops=459 * TERA,
            hbm_bytes=95 * GIB,
            hbm_bandwidth=2765 * GIGA,
            link_bandwidth=100 * GIGA,
            torus=3,
            ring=4,
            dcn_bandwidth=6.25 * GIGA,
            matrix_units=8,
            matrix_size=128,
            source=f"{_CLOUD}/v5p: 6 links, 1,200 GB/s in both directions; 50 Gbit/s a chip; {_RINGS}",
        ),
        Chip(
            "TPU v6 lite",
            bf16_flops=918 * TERA,
            hbm_bytes=32 * GIB,
            hbm_bandwidth=1638 * GIGA,
            link_bandwidth=100 * GIGA,
            torus=2,
            ring=16,
            dcn_bandwidth=12.5 * GIGA,
            matrix_units=4,
            matrix_size=256,
            source=f"{_CLOUD}/v6e: 4 links, 800 GB/s in both directions; 25.6 Tbit/s for 256 chips; {_RINGS}",
        ),
        Chip(
            "TPU7x",
            bf16_flops=1153.5 * TERA,
            hbm_bytes=96 * GIB,
            hbm_bandwidth=3690 * GIGA,
            link_bandwidth=50 * GIGA,
            torus=3,
            ring=4,
            dcn_bandwidth=6.25 * GIGA,
            matrix_units=4,
            matrix_size=256,
            source=f"{_CLOUD}/tpu7x, half a chip: 2,307 TFLOP/s, 192 GiB, 7,380 GB/s; 6 links, 1,200 GB/s in both "
            f"directions; 100 Gbit/s a chip; {_RINGS}",
        ),
        Chip(
            "NVIDIA A100-SXM4-80GB",
            bf16_flops=312 * TERA,
            hbm_bytes=80 * GIGA,
            hbm_bandwidth=2039 * GIGA,
            link_bandwidth=300 * GIGA,
            torus=0,
            ring=0,
            dcn_bandwidth=25 * GIGA,
            matrix_units=0,
            matrix_size=0,
            source="https://www.nvidia.com/en-us/data-center/a100; network of a DGX A100: 200 Gbit/s a GPU",
        ),
        Chip(
            "NVIDIA A100-SXM4-40GB",
            bf16_flops=312 * TERA,
            hbm_bytes=40 * GIGA,
            hbm_bandwidth=1555 * GIGA,
            link_bandwidth=300 * GIGA,
            torus=0,
            ring=0,
            dcn_bandwidth=25 * GIGA,
            matrix_units=0,
            matrix_size=0,
            source="https://www.nvidia.com/en-us/data-center/a100; network of a DGX A100: 200 Gbit/s a GPU",
        ),
        Chip(
            "NVIDIA H100 80GB HBM3",
            bf16_flops=989 * TERA,
            hbm_bytes=80 * GIGA,
            hbm_bandwidth=3350 * GIGA,
            link_bandwidth=450 * GIGA,
            torus=0,
            ring=0,
            dcn_bandwidth=50 * GIGA,
            matrix_units=0,
            matrix_size=0,
            source="https://www.nvidia.com/en-us/data-center/h100, SXM; network of a DGX H100: 400 Gbit/s a GPU",
        ),
        Chip(
            "NVIDIA H200",
            bf16_flops=989 * TERA,
            hbm_bytes=141 * GIGA,
            hbm_bandwidth=4800 * GIGA,
            link_bandwidth=450 * GIGA,
            torus=0,
            ring=0,
            dcn_bandwidth=50 * GIGA,
            matrix_units=0,
            matrix_size=0,
            source="https://www.nvidia.com/en-us/data-center/h200, SXM; network of a DGX H200: 400 Gbit/s a GPU",
        ),
        Chip(
            "NVIDIA B200",
            bf16_flops=2250 * TERA,
            hbm_bytes=180 * GIGA,
            hbm_bandwidth=8000 * GIGA,
            link_bandwidth=900 * GIGA,
            torus=0,
            ring=0,
            dcn_bandwidth=50 * GIGA,
            matrix_units=0,
            matrix_size=0,
            source="https://www.nvidia.com/en-us/data-center/hgx, B200; network of a DGX B200: 400 Gbit/s a GPU",
        ),
    )
}


def chip_of(device: jax.Device) -> Chip:
    """The chip of a device.

    Raises:
      UserError: about "device": the table does not have it.
    """
    if device.device_kind not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"no peaks are known for a {device.device_kind!r}; known: {known}", about="device")
    return CHIPS[device.device_kind]
