"""Figures over seeds, the choice by the selection half, Best-of-N, and what each format of the table says."""

import csv
import io
import json
import re
from itertools import combinations

import numpy as np
import pytest

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.evaluation.halves import half_of
from qrpo_jax.files import write_json
from qrpo_jax.job import manifest
from qrpo_jax.report import sweep_page
from qrpo_jax.sweep import collect, figures
from tests.helpers.sweep_jobs import toy_config
from tests.helpers.sweep_points import NO_PLAN, SWEEP, references, rewards_of, write_points


def test_means_and_spreads_are_over_seeds(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP))
    found = collect.collect(tmp_path, points, NO_PLAN)
    assert [line["settings"]["train.beta"] for line in found["settings"]] == [0.1, 0.3] * 2
    for line in found["settings"]:
        values = [sum(rewards_of(line["settings"] | {"seed": seed})) / 2 for seed in (0, 1, 2)]
        reward = line["figures"]["reward"]
        np.testing.assert_allclose(reward["values"], values, rtol=1e-12)
        np.testing.assert_allclose([reward["mean"], reward["spread"]], [np.mean(values), 0.01], rtol=1e-12)
        np.testing.assert_allclose(line["figures"]["gain"]["mean"], reward["mean"] - 0.25, rtol=1e-12)
        assert line["seeds"] == [0, 1, 2] and line["points"] == 3


def test_the_selection_half_chooses_and_the_reporting_half_reports(tmp_path):
    found = collect.collect(tmp_path, write_points(tmp_path, toy_config(SWEEP)), NO_PLAN)
    # The reporting half alone, or both together, would choose beta 0.1.
    assert [(one["method"], one["settings"]) for one in found["choice"]] == [
        ({"train.objective": "qrpo"}, {"train.beta": 0.3}),
        ({"train.objective": "dpo"}, {"train.beta": 0.3}),
    ]
    for one, base in zip(found["choice"], (0.5, 0.4), strict=True):
        means = [one["selection"]["mean"], one["reporting"]["reward"]["mean"], one["reporting"]["gain"]["mean"]]
        np.testing.assert_allclose(means, [base + 0.03, base - 0.01, base - 0.26], rtol=1e-12)
        assert one["candidates"] == 2 and one["left_out"] == 0 and one["seeds"] == [0, 1, 2]


def test_a_setting_that_moves_too_far_is_shown_and_not_chosen(tmp_path):
    config = toy_config(SWEEP)
    config.collect.max_kl = 0.705
    points = write_points(tmp_path, config)
    for point in points:
        path = tmp_path / "points" / point.name / "evaluate" / "results.json"
        content = json.loads(path.read_text())
        beta, seed = point.settings["train.beta"], point.settings["seed"]
        # The mean over seeds decides: 0.7 of DPO at 0.1, more of what has the highest reward; the other half has more.
        far = 0.7 if point.settings["train.objective"] == "dpo" and beta == 0.1 else 0.71
        content["halves"]["selection"]["policy"]["kl_to_reference_k1"] = far + 0.1 * (seed - 1)
        content["halves"]["reporting"]["policy"]["kl_to_reference_k1"] = 3.0
        write_json(path, content)
    found = collect.collect(tmp_path, points, NO_PLAN)
    (one,) = found["choice"]
    assert one["method"] == {"train.objective": "dpo"} and one["settings"] == {"train.beta": 0.1}
    assert (one["candidates"], one["left_out"], one["too_far"]) == (1, 0, 1) and len(found["settings"]) == 4
    assert (
        found["choice_missing"] == "no choice among the settings of qrpo: all 2 go beyond collect.max_kl = 0.705 nats"
    )
    said = "\n".join(collect.lines_of(found))
    assert found["choice_missing"] in said and "within 0.705 nats of the reference" in said
    assert "with at most 0.705 nats of KL" in sweep_page.build(found, collect.tables_of(found), {})


def test_a_setting_that_lacks_a_seed_is_shown_and_not_chosen(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP))
    (missing,) = [p for p in points if p.settings == {"train.objective": "qrpo", "train.beta": 0.3, "seed": 2}]
    (tmp_path / "points" / missing.name / "third" / manifest.MANIFEST).unlink()
    write_json(tmp_path / "failures" / f"{missing.name}.json", {"message": "the loss is not finite"})
    found = collect.collect(tmp_path, points, NO_PLAN)
    assert found["choice"][0]["settings"] == {"train.beta": 0.1} and found["choice"][0]["left_out"] == 1
    assert found["settings"][1]["seeds"] == [0, 1] and found["settings"][1]["points"] == 3
    said = "\n".join(collect.lines_of(found))
    assert "sweep: 12 points: 11 complete, 1 failed" in said
    assert f"failed: {missing.name}: the loss is not finite" in said


def test_a_half_without_prompts_chooses_nothing(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP[:1]))
    for point in points:
        path = tmp_path / "points" / point.name / "evaluate" / "results.json"
        content = json.loads(path.read_text())
        content["halves"]["selection"]["policy"]["mean_reward"] = float("nan")
        write_json(path, content)
    found = collect.collect(tmp_path, points, NO_PLAN)
    assert found["choice"] == [] and len(found["settings"]) == 2
    assert "choice" not in collect.tables_of(found)


def test_without_halves_there_is_a_table_and_no_choice(tmp_path):
    found = collect.collect(tmp_path, write_points(tmp_path, toy_config(SWEEP), halves=False), NO_PLAN)
    assert found["choice"] == [] and "no results.json has halves" in found["choice_missing"]
    assert list(collect.tables_of(found)) == ["table"] and len(collect.tables_of(found)["table"].rows) == 4


@pytest.mark.parametrize("sort", ["order", "reward", "kl"])
def test_lines_are_sorted_as_asked(tmp_path, sort):
    found = collect.collect(tmp_path, write_points(tmp_path, toy_config(SWEEP, collect__sort=sort)), NO_PLAN)
    order = [(line["settings"]["train.objective"], line["settings"]["train.beta"]) for line in found["settings"]]
    in_order = [("qrpo", 0.1), ("qrpo", 0.3), ("dpo", 0.1), ("dpo", 0.3)]
    rank = {setting: sum(rewards_of(dict(zip(SWEEP[0], (*setting, 0), strict=True)))) for setting in in_order}
    assert order == (in_order if sort == "order" else sorted(in_order, key=lambda s: -rank[s])), order


def test_best_of_n_is_that_of_each_seed_s_references_on_the_same_halves(tmp_path):
    config = toy_config(SWEEP, collect__best_of=(1, 3))
    found = collect.collect(tmp_path, write_points(tmp_path, config, references=references), NO_PLAN)
    assert [line["n"] for line in found["best_of"]] == [1, 3]
    for part in ("selection", "reporting", "all"):
        wanted = []
        for seed in (0, 1, 2):
            rows = [row for row in references(seed) if part in (half_of(row.id), "all")]
            assert rows, part
            best = [max(c.reward for c in row.completions if c is not left) for row in rows for left in row.completions]
            wanted.append(np.mean(best))
        three = found["best_of"][1][part]
        np.testing.assert_allclose(three["values"], wanted, rtol=1e-6)
        np.testing.assert_allclose(three["spread"], np.std(wanted, ddof=1), rtol=1e-5)
    last = [row[0] for row in collect.tables_of(found)["choice"].rows]
    assert {"best of 1", "best of 3"} < set(last), last


def test_best_of_n_is_of_the_completions_of_all_seeds_of_an_evaluation(tmp_path):
    config = toy_config(SWEEP[:1], collect__best_of=(3, 7))
    points = write_points(tmp_path, config, references=references)
    folder = tmp_path / "points" / points[0].name
    rows = folder / "evaluate" / "reference-seed-5"
    row_files.write_unit(rows, 0, 1, references(41))
    row_files.finish(rows, 1)
    found = json.loads((folder / "evaluate" / "results.json").read_text()) | {"seeds": {"0": {}, "5": {}}}
    write_json(folder / "evaluate" / "results.json", found)
    best = figures.read_point(folder, (3, 7))["best_of"]
    pairs = zip(references(0), references(41), strict=True)
    eight = [[c.reward for row in pair for c in row.completions] for pair in pairs]
    expected = {n: np.mean([np.mean(list(map(max, combinations(of, n)))) for of in eight]) for n in (3, 7)}
    assert {n: best[str(n)]["all"] for n in (3, 7)} == pytest.approx(expected) and best["7"]["prompts"] == 12


def test_best_of_n_counts_prompts_with_too_few_completions(tmp_path):
    config = toy_config(SWEEP[:1], collect__best_of=(3, 5))
    found = collect.collect(tmp_path, write_points(tmp_path, config, references=references), NO_PLAN)
    best = found["points"][0]["best_of"]
    assert best["3"]["prompts"] == 12 and best["3"]["left_out"] == 0
    assert best["5"] == {"prompts": 0, "left_out": 12} and [line["n"] for line in found["best_of"]] == [3], best


def test_without_completions_of_the_reference_policy_there_is_no_best_of_n(tmp_path):
    config = toy_config(SWEEP[:1], collect__best_of=(3,))
    found = collect.collect(tmp_path, write_points(tmp_path, config), NO_PLAN)
    assert found["best_of"] == [] and "no complete point has completions of the reference" in found["best_of_missing"]


def test_best_of_n_is_left_out_where_points_of_a_seed_have_other_references(tmp_path):
    calls: list[int] = []

    def drifting(seed: int) -> list[Row]:
        calls.append(seed)
        return references(len(calls))

    config = toy_config(SWEEP, collect__best_of=(3,))
    found = collect.collect(tmp_path, write_points(tmp_path, config, references=drifting), NO_PLAN)
    assert found["best_of"] == [] and "changes the reference policy" in found["best_of_missing"]
    assert "changes the reference policy" in "\n".join(collect.lines_of(found))


def test_all_formats_have_the_same_cells(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP))
    found = collect.write(tmp_path, points, NO_PLAN)
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(json.dumps(found))
    table = collect.tables_of(found)["table"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    markdown = (tmp_path / "table.md").read_text().splitlines()
    latex = [line for line in (tmp_path / "table.tex").read_text().splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(table.rows) == len(markdown) - 2 == len(latex) - 1 == 4
    for line, row, in_markdown, in_latex in zip(found["settings"], rows, markdown[2:], latex[1:], strict=True):
        reward = line["figures"]["reward"]
        assert float(row["reward"]) == reward["mean"] and float(row["reward spread"]) == reward["spread"]
        shown = [f"{reward['mean']:.4f}", f"{reward['spread']:.4f}"]
        assert f"| {' ± '.join(shown)} |" in in_markdown and rf"${shown[0]} \pm {shown[1]}$" in in_latex
        assert row["objective"] == line["settings"]["train.objective"]
    assert (tmp_path / "choice.csv").exists()


def test_latex_and_markdown_escape_what_they_would_obey():
    from qrpo_jax.report.tables import Table, as_latex, as_markdown

    table = Table(["units_a|b", "x"], [["50 % of {a}~b^2\\c & $d$ #1", 3]])
    latex = as_latex(table)
    assert not re.search(r"(?<!\\)[%#$_]", latex), latex
    assert latex.count("&") == 3 and latex.count(r"\&") == 1, latex
    assert as_markdown(table).splitlines()[0] == r"| units_a\|b | x |"


def test_figures_that_are_missing_are_dashes_and_not_zeros(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP[:1]))
    path = tmp_path / "points" / points[0].name / "evaluate" / "results.json"
    content = json.loads(path.read_text())
    del content["policy"]["kl_to_reference_k1"]
    write_json(path, content)
    table = collect.tables_of(collect.collect(tmp_path, points, NO_PLAN))["table"]
    column = [row[list(table.columns).index("kl")] for row in table.rows]
    assert column[0] is None and column[1] is not None, column


def test_one_seed_has_no_spread():
    assert figures.spread([0.5]) is None and figures.spread([0.0, 1.0]) == pytest.approx(0.5**0.5)
