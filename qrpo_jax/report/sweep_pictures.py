"""The plots of a sweep's page with their captions, each where its figures are there."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qrpo_jax.report import sweep_plots
from qrpo_jax.report.run_pictures import Picture
from qrpo_jax.report.sweep_methods import Found, method_of, methods, places, setting_name
from qrpo_jax.report.sweep_plots import Drawn, Estimate, Setting, estimate

COUNTS = ("select.reference_count", "sample.completions")  # keys that set the number of references
ALL = "all"  # what a reference_count of 0 means
SPREAD = "Bars are ± a standard deviation over seeds (dots), or the 95 % interval over prompts of a single seed."


def pictures(found: Found) -> list[Picture]:
    """The plots that the sweep has figures for."""
    some = [method_picture(found), kl_picture(found)]
    some += [drawn_picture(found, x) for x in ("samples", "kl")]
    some += [length_picture(found), references_picture(found)]
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


def drawn_picture(found: Found, x: str) -> Picture | None:
    """Reward over training against samples or KL, if policies drew their own; beside them those of stored data."""
    lines = {json.dumps(line["settings"], sort_keys=True): line for line in found["settings"]}
    settings: dict[str, Drawn] = {}
    if found["choice"]:
        for method, one in methods(found):
            line = lines[json.dumps({**one["method"], **one["settings"]}, sort_keys=True)]
            settings[method] = drawn(line, one["reporting"], one["reporting_ci95"], x)
    else:
        for line in found["settings"]:
            if "reward" in line["figures"]:
                settings[setting_name(line["settings"], found["columns"])] = drawn(
                    line, line["figures"], line["ci95"], x
                )
    if not any(one.curve is not None and x in one.curve for one in settings.values()):
        return None
    where = "the reporting half of held-out prompts" if found["choice"] else "held-out prompts"
    caption = (
        "Curves: mean reward of what an on-policy run drew for training prompts, by iteration. Marks: finished "
        f"policies on {where}, so a mark need not lie on its curve. {SPREAD}"
    )
    if x == "kl":
        title, label = "Reward against KL over training", "KL(policy ‖ reference), nats a completion"
    else:
        title, label = "Reward against samples drawn", "completions drawn"
        caption += (
            " Bands are the same of a curve. Completions of stage sample count where training learns from them or "
            "ranks among them."
        )
    return Picture(sweep_plots.over_training(f"drawn-{x}", title, x, label, settings, places(found)), caption)


def drawn(line: Mapping[str, Any], figures: Mapping[str, Any], ci95: Sequence[float] | None, x: str) -> Drawn:
    """A setting in these plots.

    Args:
      figures, ci95: of the finished policy.
    """
    at = line["drawn"]["samples"] if x == "samples" else figures["kl"]["mean"] if "kl" in figures else None
    return Drawn(line["drawn"]["curve"], at, estimate(figures["reward"], ci95))


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
