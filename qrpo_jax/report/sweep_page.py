"""The page of a sweep: from what sweep.json says to pictures and HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from qrpo_jax.report import run_tables, sweep_plots
from qrpo_jax.report.page import render
from qrpo_jax.report.run_pictures import Picture
from qrpo_jax.report.run_tables import Starts
from qrpo_jax.report.sweep_plots import Estimate, Setting, estimate
from qrpo_jax.report.tables import Cell, Mean, Table

TEMPLATE = "sweep.html"
COUNTS = ("select.reference_count", "sample.completions")  # keys that set the number of references
ALL = "all"  # what a reference_count of 0 means
SPREAD = "Bars are ± a standard deviation over seeds (dots), or the 95 % interval over prompts of a single seed."

Found = Mapping[str, Any]  # content of sweep.json


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


def methods(found: Found) -> list[tuple[str, Mapping[str, Any]]]:
    """The chosen setting of each method, the best on the reporting half first."""
    ordered = sorted(found["choice"], key=lambda one: -one["reporting"]["reward"]["mean"])
    return [(method_name(one["method"], found["columns"]), one) for one in ordered]


def best_method(found: Found) -> tuple[str, Mapping[str, Any]]:
    """The method whose chosen setting has the highest reward on the selection half, so that the other half reports."""
    return max(methods(found), key=lambda one: one[1]["selection"]["mean"])


def method_name(method: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """A method on one line; a number stands behind the name of its key.

    >>> method_name({"train.objective": "dpo", "select.reference_count": 3}, {"select.reference_count": "references"})
    'dpo, references=3'
    """
    parts = [value if isinstance(value, str) else setting_name({key: value}, columns) for key, value in method.items()]
    return ", ".join(parts) or "all settings"


def setting_name(settings: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """A setting on one line, such as "beta=0.3, objective=qrpo"."""
    values = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in settings.items()}
    return ", ".join(f"{columns.get(key, key)}={value}" for key, value in values.items())


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


def pictures(found: Found) -> list[Picture]:
    """The plots that the sweep has figures for."""
    some = [method_picture(found), kl_picture(found), length_picture(found), references_picture(found)]
    return [one for one in some if one is not None]


def compared_figures(found: Found, name: str) -> dict[str, Estimate]:
    """A figure of each method on the reporting half; without a choice, of each setting on all prompts."""
    if found["choice"]:
        several = [(method, one["reporting"], one["reporting_ci95"]) for method, one in methods(found)]
    else:
        columns = found["columns"]
        several = [
            (setting_name(line["settings"], columns), line["figures"], line["ci95"]) for line in found["settings"]
        ]
    return {
        method: estimate(figures[name], ci95 if name == "reward" else None)
        for method, figures, ci95 in several
        if name in figures
    }


def places(found: Found) -> dict[str, int]:
    """The place of each method, and of each setting, in the order of the sweep, which gives them their colors."""
    of_methods = [method_of(line, found) for line in found["settings"]]
    of_settings = [setting_name(line["settings"], found["columns"]) for line in found["settings"]]
    numbered = {name: place for place, name in enumerate(dict.fromkeys(of_settings))}
    return numbered | {name: place for place, name in enumerate(dict.fromkeys(of_methods))}


def method_of(line: Mapping[str, Any], found: Found) -> str:
    """The name of a setting's method."""
    method = {key: line["settings"][key] for key in found["method"] if key in line["settings"]}
    return method_name(method, found["columns"])


def method_picture(found: Found) -> Picture | None:
    of_methods = compared_figures(found, "reward")
    if not of_methods:
        return None
    part = "reporting" if found["choice"] else "all"
    baselines = {}
    references = compared_figures(found, "reference")
    if references and len({round(one.mean, 9) for one in references.values()}) == 1:
        baselines["reference"] = next(iter(references.values())).mean
    baselines |= {f"Best-of-{line['n']}": line[part]["mean"] for line in found["best_of"] if part in line}
    what = "method" if found["choice"] else "setting"
    where = "the reporting half of held-out prompts" if found["choice"] else "held-out prompts"
    image = sweep_plots.compared(
        "methods", f"Reward by {what}", "mean reward", of_methods, places(found), baselines=baselines
    )
    return Picture(image, f"Mean reward on {where}. {SPREAD}")


def kl_picture(found: Found) -> Picture | None:
    """All settings on all held-out prompts, by method."""
    groups: dict[str, list[Setting]] = {}
    lines = [line for line in found["settings"] if {"kl", "reward"} <= line["figures"].keys()]
    for line in lines:
        setting = Setting(estimate(line["figures"]["kl"]), estimate(line["figures"]["reward"], line["ci95"]))
        groups.setdefault(method_of(line, found), []).append(setting)
    if not groups:
        return None
    references = {round(line["figures"]["reference"]["mean"], 9) for line in lines if "reference" in line["figures"]}
    reference = references.pop() if len(references) == 1 else None
    best_of = {line["n"]: line["all"]["mean"] for line in found["best_of"]}
    caption = f"Each mark is a setting, on all held-out prompts; settings of a method are joined. {SPREAD}"
    if best_of:
        caption += " Best-of-N of the reference at its KL of log N − (N − 1)/N."
    return Picture(sweep_plots.reward_by_kl(groups, places(found), reference, best_of), caption)


def length_picture(found: Found) -> Picture | None:
    of_methods = compared_figures(found, "length_rho")
    if not of_methods:
        return None
    label = "Spearman’s ρ of implicit reward and length"
    image = sweep_plots.compared("length", "Length bias", label, of_methods, places(found), baselines={}, zero=True)
    caption = "Correlation of β (log π − log π_ref) with length over the policy’s held-out completions; 0 is no bias. "
    return Picture(image, caption + "Bars are ± a standard deviation over seeds (dots).")


def references_picture(found: Found) -> Picture | None:
    """Reward against the number of references, if the sweep changes it."""
    key = next((key for key in COUNTS if key in found["columns"]), None)
    lines = [line for line in found["settings"] if key in line["settings"] and "reward" in line["figures"]]
    counts = sorted({line["settings"][key] for line in lines}, key=lambda n: (n == 0, n))
    if key is None or len(counts) < 2:
        return None
    curves: dict[str, dict[str, Estimate]] = {}
    if key in found["method"] and found["choice"]:
        chosen = {one["method"][key]: one for one in found["choice"] if key in one["method"]}
        curves[""] = {
            str(n or ALL): estimate(chosen[n]["reporting"]["reward"], chosen[n]["reporting_ci95"])
            for n in counts
            if n in chosen
        }
    for n in counts:
        for line in lines:
            if line["settings"][key] == n:
                others = {name: value for name, value in line["settings"].items() if name != key}
                name = setting_name(others, found["columns"]) or "mean over seeds"
                curves.setdefault(name, {})[str(n or ALL)] = estimate(line["figures"]["reward"], line["ci95"])
    image = sweep_plots.by_references([str(n or ALL) for n in counts], curves, "chosen, on the reporting half")
    return Picture(image, f"config.{key}. {SPREAD}")


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
