"""The page of a sweep: from what sweep.json says to HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from qrpo_jax.report import run_tables
from qrpo_jax.report.page import render
from qrpo_jax.report.run_tables import Starts
from qrpo_jax.report.sweep_methods import Found, methods, setting_name
from qrpo_jax.report.sweep_pictures import SPREAD, pictures
from qrpo_jax.report.tables import Cell, Mean, Table

TEMPLATE = "sweep.html"


def build(found: Found, tables: Mapping[str, Table], starts: Starts) -> str:
    """The page as HTML.

    Args:
      found: content of sweep.json.
      tables: `table`, and `choice` if settings were chosen.
      starts: of the stages of all points and shared parts, see `provenance`.
    """
    states = [point["state"] for point in found["points"]]
    return render(
        TEMPLATE,
        title=f"Sweep of {len(found['settings'])} settings",
        eyebrow=eyebrow(found, starts),
        lead=lead(found),
        tiles=tiles(found),
        states=said_of(states),
        pictures=pictures(found),
        tables=tables,
        stages=run_tables.stages(starts) if starts else None,
        failures=[point for point in found["points"] if point["message"]],
        missing=[line for line in (found["choice_missing"], found["best_of_missing"]) if line],
        within=f", with at most {found['max_kl']:g} nats of KL to the reference there" if found["max_kl"] else "",
        shared=shared_table(found),
        points=points_table(found),
        provenance=run_tables.provenance(starts),
        spread=SPREAD,
    )


def said_of(states: Sequence[str]) -> str:
    """How many points are in which state.

    >>> said_of(["complete", "failed", "complete"])
    '2 of 3 points are complete, 1 failed'
    """
    others = [f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state != "complete"]
    return ", ".join([f"{states.count('complete')} of {len(states)} points are complete", *others])


def eyebrow(found: Found, starts: Starts) -> list[str]:
    seeds = {point["settings"].get("seed") for point in found["points"]}
    parts = [f"{len(found['points'])} points", f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"]
    parts.append(f"swept: {', '.join(found['columns'].values())}" if found["columns"] else "swept: seeds")
    started = [one["started"] for several in starts.values() for one in several]
    return [*parts, *([run_tables.time_of(max(started))[:10]] if started else [])]


def best_method(found: Found) -> tuple[str, Mapping[str, Any]]:
    """The method whose chosen setting has the highest reward on the selection half, so that the other half reports."""
    return max(methods(found), key=lambda one: one[1]["selection"]["mean"])


def lead(found: Found) -> str:
    """The result in a sentence."""
    if found["choice"]:
        name, best = best_method(found)
        chosen = setting_name(best["settings"], found["columns"])
        reward = written(best["reporting"]["reward"])
        text = f"Best on the selection half: {name}{f' ({chosen})' if chosen else ''}. "
        text += f"On the reporting half it has {reward}"
        if "reference" in best["reporting"]:
            text += f", the reference {written(best['reporting']['reference'])}"
        return f"{text}; nothing was chosen there."
    lines = [line for line in found["settings"] if "reward" in line["figures"]]
    if not lines:
        return "No point has held-out figures yet."
    best = max(lines, key=lambda line: line["figures"]["reward"]["mean"])
    name = setting_name(best["settings"], found["columns"]) or "the setting"
    return (
        f"Highest reward: {name} with {written(best['figures']['reward'])}. The best of many settings looks better "
        "than it is, because it was chosen on the prompts that it is reported on."
    )


def written(figure: Mapping[str, Any]) -> str:
    return Mean(figure["mean"], figure["spread"]).text()


def tiles(found: Found) -> list[tuple[str, str, str]]:
    """Headline figures: a label, a figure, and a note."""
    if not found["choice"]:
        return []
    name, best = best_method(found)
    figures, of_best = best["reporting"], []
    if "reference" in figures:
        of_best.append(("Reference", f"{figures['reference']['mean']:.3f}", spread_note(figures["reference"])))
    of_best.append((f"Best method: {name}", f"{figures['reward']['mean']:.3f}", spread_note(figures["reward"])))
    best_of = [line for line in found["best_of"] if "reporting" in line]
    if best_of:
        last = best_of[-1]
        of_best.append((f"Best-of-{last['n']}", f"{last['reporting']['mean']:.3f}", spread_note(last["reporting"])))
    return of_best


def spread_note(figure: Mapping[str, Any]) -> str:
    count = len(figure["values"])
    return "one seed" if figure["spread"] is None else f"± {figure['spread']:.3f} over {count} seeds"


def points_table(found: Found) -> Table:
    """Each point with its state and its figures."""
    rows: list[list[Cell]] = []
    for point in found["points"]:
        figures = point["figures"]
        rows.append([point["name"], point["state"], figures.get("reward"), figures.get("gain"), figures.get("kl")])
    return Table(["point", "state", "reward", "gain", "kl"], rows)


def shared_table(found: Found) -> Table | None:
    """What points share."""
    rows: list[list[Cell]] = [[part["folder"], ", ".join(part["stages"]), part["points"]] for part in found["shared"]]
    return Table(["folder", "stages", "points that share it"], rows) if rows else None


def starts_of(several: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> dict[str, list[Mapping[str, Any]]]:
    """The starts of each stage over all folders, each once: points have copies of what they share.

    Args:
      several: stages with their starts, of all folders.
    """
    found: dict[str, dict[float, Mapping[str, Any]]] = {}
    for stage, starts in several:
        found.setdefault(stage, {}).update({one["started"]: one for one in starts})
    return {stage: [starts[at] for at in sorted(starts)] for stage, starts in found.items() if starts}
