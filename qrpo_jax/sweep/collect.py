"""The table of a sweep: sweep.json, the same as CSV, JSON, Markdown, LaTeX and text, and its page.

It is made from the folders of the points whenever a process has run its points, so it is never older than they are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import qrpo_jax
from qrpo_jax.config.config import keys_of
from qrpo_jax.files import write_json, write_text
from qrpo_jax.job import provenance
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.report import sweep_page, tables
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.tables import Cell, Mean, Table, as_text
from qrpo_jax.sweep.drawn import read_drawn
from qrpo_jax.sweep.figures import FIGURES, NOTHING, REWARD, UNDRAWN, best_of_lines, choose, over_seeds, read_point
from qrpo_jax.sweep.plan import FAILURES, POINTS, RECORD, Plan
from qrpo_jax.sweep.points import SEED, Point, short_key

REPORT = "report"  # folder of the page
COMPLETE, FAILED, OPEN = "complete", "failed", "not complete"


def collect(workdir: Path, points: Sequence[Point], plan: Plan) -> dict[str, Any]:
    """What sweep.json says of the points as they are now; see docs/sweeps.md."""
    config = points[0].config.collect
    entries = [entry(workdir, point, config.best_of) for point in points]
    lines = over_seeds(entries)
    halved = [line for line in lines if line["halves"]]
    choice, unchosen = choose(halved, config.method, config.max_kl)
    if not halved:
        unchosen = ["no choice of settings: no results.json has halves of held-out prompts"]
    best, why_not = best_of_lines(entries) if config.best_of else ([], "")
    if config.sort != "order":
        lines.sort(key=lambda line: -line["figures"].get(config.sort, {"mean": float("-inf")})["mean"])
    return {
        "version": qrpo_jax.__version__,
        "points": entries,
        "settings": lines,
        "sort": config.sort,
        "method": list(config.method),
        "max_kl": config.max_kl,
        "choice": choice,
        "choice_missing": "; ".join(unchosen),
        "best_of": best,
        "best_of_missing": why_not,
        "shared": [
            {"folder": str(part.folder.relative_to(workdir)), "stages": list(part.stages), "points": len(part.points)}
            for part in plan.parts.values()
        ],
        "columns": column_names(points),
    }


def entry(workdir: Path, point: Point, counts: Sequence[int]) -> dict[str, Any]:
    """What sweep.json says of one point."""
    folder, failure = workdir / POINTS / point.name, workdir / FAILURES / f"{point.name}.json"
    done = all(read_manifest(folder / name) is not None for name in point.config.stages)
    state = COMPLETE if done else FAILED if failure.exists() else OPEN
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in point.settings.items()}
    return {
        "name": point.name,
        "folder": f"{POINTS}/{point.name}",
        "settings": settings,
        "state": state,
        "message": json.loads(failure.read_text())["message"] if state == FAILED else "",
        **(read_point(folder, counts) if done else NOTHING),
        "drawn": read_drawn(folder) if done else dict(UNDRAWN),
    }


def column_names(points: Sequence[Point]) -> dict[str, str]:
    """The swept keys without the seed, each with its name in tables."""
    known = [key for key, _ in keys_of(points[0].config)]
    return {key: short_key(key, known) for point in points for key in point.settings if key != SEED}


def tables_of(found: Mapping[str, Any]) -> dict[str, Table]:
    """The tables by the name of their files: `table`, a line for each setting, and `choice`, one for each method."""
    columns: dict[str, str] = found["columns"]
    figures = [name for name in FIGURES if any(name in line["figures"] for line in found["settings"])]
    rows: list[list[Cell]] = []
    for line in found["settings"]:
        values = [text(line["settings"].get(key)) for key in columns]
        rows.append([*values, len(line["seeds"]), *(mean_cell(line["figures"].get(name)) for name in figures)])
    blank: list[Cell] = [None] * max(len(columns) - 1, 0)
    for line in found["best_of"]:
        rest: list[Cell] = [None] * (len(figures) - 1)
        rows.append([f"best of {line['n']}", *blank, len(line["seeds"]), mean_cell(line["all"]), *rest])
    named = {"table": Table([*columns.values(), "seeds", *figures], rows)}
    return named | ({"choice": choice_table(found)} if found["choice"] else {})


def choice_table(found: Mapping[str, Any]) -> Table:
    """Each method with its chosen setting, in the order of its reward on the reporting half."""
    columns: dict[str, str] = found["columns"]
    figures = [name for name in FIGURES if any(name in one["reporting"] for one in found["choice"])]
    rows: list[tuple[float, list[Cell]]] = []
    for one in found["choice"]:
        chosen = ", ".join(f"{columns[key]}={text(value)}" for key, value in one["settings"].items())
        cells: list[Cell] = [
            ", ".join(map(str, one["method"].values())) or "all settings",
            chosen or None,
            one["candidates"],
            len(one["seeds"]),
            mean_cell(one["selection"]),
            *(mean_cell(one["reporting"].get(name)) for name in figures),
        ]
        rows.append((one["reporting"][REWARD]["mean"], cells))
    for line in found["best_of"]:
        if "selection" in line and "reporting" in line:
            rest: list[Cell] = [None] * (len(figures) - 1)
            halves = [mean_cell(line["selection"]), mean_cell(line["reporting"])]
            cells = [f"best of {line['n']}", None, None, len(line["seeds"]), *halves, *rest]
            rows.append((line["reporting"]["mean"], cells))
    rows.sort(key=lambda row: -row[0])
    names = ["method", "chosen", "of settings", "seeds", "selection reward", *figures]
    return Table(names, [cells for _, cells in rows])


def mean_cell(figure: Mapping[str, Any] | None) -> Mean | None:
    return None if figure is None else Mean(figure["mean"], figure["spread"])


def text(value: Any) -> str | None:
    """The value of a key in a table."""
    if isinstance(value, float):
        return f"{value:g}"
    return None if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def write(workdir: Path, points: Sequence[Point], plan: Plan) -> dict[str, Any]:
    """Writes sweep.json and the tables, and returns what sweep.json says.

    Other processes write them too. Each looks again after it has written, so the last one has seen all points.
    """
    found: dict[str, Any] = {}
    while found != (now := collect(workdir, points, plan)):
        found = now
        write_json(workdir / RECORD, found)
        tables.write(workdir, tables_of(found))
    return found


def write_page(workdir: Path, points: Sequence[Point], found: Mapping[str, Any]) -> Path:
    """Writes the page of a sweep, and returns where it is.

    Args:
      found: content of sweep.json.
    """
    folders = [workdir / part["folder"] for part in (*found["shared"], *found["points"])]
    stages = list(points[0].config.stages)
    starts = sweep_page.starts_of([(name, provenance.starts(folder / name)) for name in stages for folder in folders])
    path = workdir / REPORT / PAGE
    write_text(path, sweep_page.build(found, tables_of(found), starts))
    return path


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """What a terminal shows: the tables, if there are figures, and what is missing."""
    named, lines = tables_of(found), []
    if any(line["figures"] for line in found["settings"]):
        lines += ["", "Held-out figures, mean ± standard deviation over seeds:", as_text(named["table"]), ""]
        lines += [line for line in (found["choice_missing"], found["best_of_missing"]) if line]
    if "choice" in named:
        within = f" within {found['max_kl']:g} nats of the reference" if found["max_kl"] else ""
        title = f"Chosen on the selection half of held-out prompts{within}, with figures of the reporting half:"
        lines += [title, as_text(named["choice"]), ""]
    states = [point["state"] for point in found["points"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (COMPLETE, FAILED, OPEN) if state in states)
    lines.append(f"sweep: {len(states)} points: {counts}")
    return lines + [f"  failed: {p['name']}: {p['message']}" for p in found["points"] if p["state"] == FAILED]
