"""The page of stage `compile`: from its results to table cells, HTML and terminal lines."""

from typing import Any

from qrpo_jax.report.page import render
from qrpo_jax.report.texts import number

TEMPLATE = "compile.html"
TITLES = {"train": "Training step", "reference": "Reference log-probs", "sample": "Sampling"}
MEMORY = ("arguments", "outputs", "temporaries", "code", "host")
COLUMNS = ("program", "devices", "rows", "GB a device", "seconds", "tokens/s", "MFU", "ICI GB", "DCN GB")


def build(results: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
      results: content of compile.json.
    """
    machine = results["machine"]
    return render(
        TEMPLATE,
        title=f"Compiled for {machine['topology']}",
        **parts(results),
    )


def parts(results: dict[str, Any]) -> dict[str, Any]:
    """What templates need to show the results."""
    return {
        "machine": machine_lines(results["machine"]),
        "columns": COLUMNS,
        "programs": [cells(name, results[name]) for name in TITLES if name in results],
        "memory_names": MEMORY,
        "memory": [memory_cells(name, results[name]) for name in TITLES if results.get(name, {}).get("fits")],
        "reading": reading_lines(results),
        "errors": {TITLES[name]: results[name]["error"] for name in TITLES if "error" in results.get(name, {})},
        "traffic": [row for name in TITLES for row in traffic_rows(name, results.get(name, {}))],
        "assumptions": results["assumptions"],
        "source": results["machine"]["chip"]["source"],
    }


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """What the programs were compiled for, in three lines."""
    chip, groups = machine["chip"], machine["devices"] // machine["unit_devices"]
    axes, unit_axes = (
        ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
        for mesh in (machine["mesh"], machine["unit_mesh"])
    )
    size = f"{machine['parameters'] / 1e9:.3g} billion parameters"
    if machine["adapter_parameters"]:
        size += f", {machine['adapter_parameters'] / 1e6:.3g} million in adapters"
    return [
        f"{machine['topology']}: {machine['devices']} x {chip['kind']} of {chip['bf16_flops'] / 1e12:.4g} TFLOP/s and "
        f"{chip['hbm_bytes'] / 1e9:.1f} GB; mesh: {axes}",
        f"{machine['model']}: {size}, {machine['parameter_dtype']} in memory, {machine['compute_dtype']} in products; "
        f"remat {machine['remat']}",
        f"sampling and log-probs: {groups} times {machine['unit_devices']} devices, side by side; mesh: {unit_axes}",
    ]


def cells(name: str, program: dict[str, Any]) -> list[str]:
    """One row of the main table."""
    memory = program["memory_gb"]
    if not program["fits"]:
        needed = f"{memory['total']:.1f} of {memory['hbm']:.1f}" if "total" in memory else f"over {memory['hbm']:.1f}"
        return [TITLES[name], "", "", f"does not fit: {needed}", "", "", "", "", ""]
    low, high = program["mfu_range"]
    fast, slow = program["step_seconds_range"]
    ici, dcn = (sum(program["received_gb"][network].values()) for network in ("ici", "dcn"))
    largest = " (largest)" if program["largest_batch"] else ""
    return [
        TITLES[name],
        str(program["devices"]),
        f"{program['rows']} x {program['row_tokens']}{largest}",
        f"{memory['total']:.1f} of {memory['hbm']:.1f}",
        f"{number(program['step_seconds'])} ({number(fast)} to {number(slow)})",
        f"{program['tokens_per_second']:,.0f}",
        f"{program['mfu']:.1%} ({low:.1%} to {high:.1%})",
        f"{ici:.1f}",
        f"{dcn:.1f}",
    ]


def memory_cells(name: str, program: dict[str, Any]) -> list[str]:
    """Gigabytes by kind."""
    return [TITLES[name], *(f"{program['memory_gb'][kind]:.2f}" for kind in MEMORY)]


def reading_lines(results: dict[str, Any]) -> list[str]:
    """What reading weights and caches takes of the programs that compute few tokens at a time."""
    found = [(TITLES[name], results[name]) for name in TITLES if "reading_seconds" in results.get(name, {})]
    return [
        f"{title}: reading weights and caches takes at least {number(program['reading_seconds'])} s, "
        f"{program['reading_seconds'] / program['step_seconds']:.0%} of what is predicted"
        for title, program in found
    ]


def traffic_rows(name: str, program: dict[str, Any]) -> list[list[str]]:
    """One row for each kind of collective on each network."""
    received = program.get("received_gb", {})
    return [
        [TITLES[name], network.upper(), kind, f"{size:.3g}"]
        for network, kinds in received.items()
        for kind, size in kinds.items()
        if size >= 0.001
    ]


def terminal_lines(results: dict[str, Any]) -> list[str]:
    """The main table with aligned columns."""
    rows = [list(COLUMNS), *(cells(name, results[name]) for name in TITLES if name in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, *reading_lines(results)]
