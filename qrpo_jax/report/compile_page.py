"""The page of stage `compile`: from its results to table cells, HTML and terminal lines."""

from typing import Any

from qrpo_jax.report.page import render
from qrpo_jax.report.texts import number

TEMPLATE = "compile.html"
TITLES = {"train": "Training step", "reference": "Reference log-probs", "sample": "Sampling"}
ON_POLICY_TITLES = {"train": "Training step", "reference": "Log-probs of tokens", "sample": "Rollout"}
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
        "programs": [cells(title, results[name]) for name, title in titles(results).items()],
        "memory_names": MEMORY,
        "memory": [
            memory_cells(title, results[name]) for name, title in titles(results).items() if results[name]["fits"]
        ],
        "reading": reading_lines(results),
        "iteration": iteration_lines(results.get("iteration")),
        "errors": {
            title: results[name]["error"] for name, title in titles(results).items() if "error" in results[name]
        },
        "traffic": [row for name, title in titles(results).items() for row in traffic_rows(title, results[name])],
        "assumptions": results["assumptions"],
        "source": results["machine"]["chip"]["source"],
    }


def titles(results: dict[str, Any]) -> dict[str, str]:
    """Titles of the programs that were compiled, by their names in the results."""
    shown = ON_POLICY_TITLES if results["machine"].get("on_policy") else TITLES
    return {name: title for name, title in shown.items() if name in results}


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
    apart = f"{groups} times {machine['unit_devices']} devices, side by side; mesh: {unit_axes}"
    return [
        f"{machine['topology']}: {machine['devices']} x {chip['kind']} of {chip['bf16_flops'] / 1e12:.4g} TFLOP/s and "
        f"{chip['hbm_bytes'] / 1e9:.1f} GB; mesh: {axes}",
        f"{machine['model']}: {size}, {machine['parameter_dtype']} in memory, {machine['compute_dtype']} in products; "
        f"remat {machine['remat']}",
        "sampling and log-probs: " + ("on the same devices, between steps" if machine.get("on_policy") else apart),
    ]


def cells(title: str, program: dict[str, Any]) -> list[str]:
    """One row of the main table."""
    memory = program["memory_gb"]
    if not program["fits"]:
        needed = f"{memory['total']:.1f} of {memory['hbm']:.1f}" if "total" in memory else f"over {memory['hbm']:.1f}"
        return [title, "", "", f"does not fit: {needed}", "", "", "", "", ""]
    low, high = program["mfu_range"]
    fast, slow = program["step_seconds_range"]
    ici, dcn = (sum(program["received_gb"][network].values()) for network in ("ici", "dcn"))
    largest = " (largest)" if program["largest_batch"] else ""
    return [
        title,
        str(program["devices"]),
        f"{program['rows']} x {program['row_tokens']}{largest}",
        f"{memory['total']:.1f} of {memory['hbm']:.1f}",
        f"{number(program['step_seconds'])} ({number(fast)} to {number(slow)})",
        f"{program['tokens_per_second']:,.0f}",
        f"{program['mfu']:.1%} ({low:.1%} to {high:.1%})",
        f"{ici:.1f}",
        f"{dcn:.1f}",
    ]


def memory_cells(title: str, program: dict[str, Any]) -> list[str]:
    """Gigabytes by kind."""
    return [title, *(f"{program['memory_gb'][kind]:.2f}" for kind in MEMORY)]


def reading_lines(results: dict[str, Any]) -> list[str]:
    """What reading weights and caches takes of the programs that compute few tokens at a time."""
    found = [(title, results[name]) for name, title in titles(results).items() if "reading_seconds" in results[name]]
    return [
        f"{title}: reading weights and caches takes at least {number(program['reading_seconds'])} s, "
        f"{program['reading_seconds'] / program['step_seconds']:.0%} of what is predicted"
        for title, program in found
    ]


def iteration_lines(iteration: dict[str, Any] | None) -> list[str]:
    """What a whole on-policy iteration takes and holds."""
    if iteration is None:
        return []
    seconds, memory = iteration["seconds"], iteration["memory_gb"]
    parts = ", ".join(f"{name} {number(seconds[name])} ({limit})" for name, limit in iteration["limits"].items())
    at = ", ".join(f"{size:.1f} with {name}" for name, size in memory.items() if name not in ("between", "hbm"))
    return [
        f"An iteration of {iteration['prompts']} prompts x {iteration['completions']} completions takes "
        f"{number(seconds['total'])} s: {parts}; {iteration['tokens_per_second']:,.0f} tokens sampled a second",
        f"Its bottleneck: {iteration['bottleneck']}",
        f"GB a device: {memory['between']:.1f} of training state and reference all the while, {at}, of "
        f"{memory['hbm']:.1f}" + ("" if iteration["fits"] else ": it does not fit"),
        decoding_line(iteration["decoding"]),
    ]


def decoding_line(decoding: dict[str, Any]) -> str:
    """How weights come to where they are decoded from."""
    step = (
        f"each of {decoding['steps']:,} decode steps receives {decoding['step_bytes']:,.0f} bytes, "
        f"{number(1e3 * decoding['step_seconds_on_links'])} ms on the links"
    )
    if not decoding["devices_of_a_copy"]:
        return f"Decoding has no copy of the weights: {step}"
    shared = decoding["devices_of_a_copy"]
    return (
        f"Weights for decoding, {decoding['copy_gb']:.1f} GB a device, a copy for "
        f"{f'{shared} devices' if shared > 1 else 'each device'}: once a call a device receives "
        f"{decoding['layout_gb']:.1f} GB in {number(decoding['layout_seconds'])} s; {step}"
    )


def traffic_rows(title: str, program: dict[str, Any]) -> list[list[str]]:
    """One row for each kind of collective on each network."""
    received = program.get("received_gb", {})
    return [
        [title, network.upper(), kind, f"{size:.3g}"]
        for network, kinds in received.items()
        for kind, size in kinds.items()
        if size >= 0.001
    ]


def terminal_lines(results: dict[str, Any]) -> list[str]:
    """The main table with aligned columns."""
    rows = [list(COLUMNS), *(cells(title, results[name]) for name, title in titles(results).items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, *reading_lines(results), *iteration_lines(results.get("iteration"))]
