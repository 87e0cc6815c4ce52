"""Seconds of a collective on a chip's links."""

from collections.abc import Sequence
from typing import Any

from qrpo_jax.devices.chips import Chip
from qrpo_jax.devices.program.collectives import Collective, crosses_slices

HOP_SECONDS = 1e-6  # from one chip to the next: https://jax-ml.github.io/scaling-book/tpus


def seconds(one: Collective, chip: Chip, devices: Sequence[Any]) -> tuple[str, float]:
    """The network that a collective uses, "ici" or "dcn", and its seconds if it has that network for itself.

    Args:
      devices: in the order of the program's mesh.
    """
    if crosses_slices(one, devices):
        return "dcn", one.bytes / chip.dcn_bandwidth
    members = [devices[member] for member in one.members]
    if chip.torus == 0:
        hosts = {getattr(device, "process_index", 0) for device in members}
        if len(hosts) > 1:
            return "dcn", one.bytes / chip.dcn_bandwidth
        return "ici", one.bytes / chip.link_bandwidth + HOP_SECONDS
    spans = _spans(members, devices, chip)
    if one.kind == "collective-permute":
        return "ici", one.bytes / chip.link_bandwidth + HOP_SECONDS
    links = sum(2 if ring else 1 for _, ring in spans)
    # Cores of one chip share its memory; their traffic is counted at the rate of all links.
    links = links or 2 * chip.torus
    hops = sum(size // 2 if ring else size - 1 for size, ring in spans)
    slowdown = (
        max([1.0, *(size / 4 if ring else size / 2 for size, ring in spans)]) if one.kind == "all-to-all" else 1.0
    )
    return "ici", one.bytes * slowdown / (links * chip.link_bandwidth) + hops * HOP_SECONDS


def _spans(members: Sequence[Any], devices: Sequence[Any], chip: Chip) -> list[tuple[int, bool]]:
    """For each dimension of the torus along which members differ: how many places they take, and if they are a ring."""
    extents = [max(places) + 1 for places in zip(*(device.coords for device in devices), strict=True)]
    extents = extents[: chip.torus]
    rings = [extent % chip.ring == 0 for extent in extents]
    if chip.torus == 3:
        rings = [all(rings)] * 3
    found = []
    for dimension, extent in enumerate(extents):
        places = {device.coords[dimension] for device in members}
        if len(places) > 1:
            found.append((len(places), rings[dimension] and len(places) == extent))
    return found
