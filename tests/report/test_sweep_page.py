"""The page of a sweep: its figures are those of sweep.json, and it names what failed and what is missing."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from qrpo_jax.files import write_json
from qrpo_jax.job import provenance
from qrpo_jax.report import sweep_page, sweep_plots
from qrpo_jax.report.sweep_plots import estimate
from qrpo_jax.sweep import collect
from qrpo_jax.sweep.plan import Part, Plan
from tests.helpers.report_jobs import HOSTILE, START
from tests.helpers.report_pages import plain, plots, words_of
from tests.helpers.sweep_jobs import toy_config
from tests.helpers.sweep_points import NO_PLAN, SWEEP, references, write_points


def page_of(workdir: Path, config: Any, plan: Plan = NO_PLAN, **options: Any) -> tuple[str, dict[str, Any]]:
    """The page of a sweep with made-up figures, and its record."""
    points = write_points(workdir, config, **options)
    found = collect.collect(workdir, points, plan)
    return collect.write_page(workdir, points, found).read_text(encoding="utf-8"), found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    config = toy_config(SWEEP, collect__best_of=(2, 4))
    return page_of(tmp_path_factory.mktemp("sweep"), config, references=references)


def test_methods_stand_in_the_order_of_their_reward_on_the_reporting_half(sweep):
    page, found = sweep
    order = sorted(found["choice"], key=lambda one: -one["reporting"]["reward"]["mean"])
    names = [one["method"]["train.objective"] for one in order]
    assert names == ["qrpo", "dpo"]
    words = words_of(plots(page)["methods"][0])
    assert words.index("qrpo") < words.index("dpo") and "Best-of-4" in words, words


def test_the_best_method_is_chosen_on_the_selection_half_and_reported_on_the_other(sweep):
    page, found = sweep
    qrpo, dpo = sorted(found["choice"], key=lambda one: -one["reporting"]["reward"]["mean"])
    best = qrpo["reporting"]["reward"]
    said = f"qrpo (beta={qrpo['settings']['train.beta']:g}). On the reporting half it has {best['mean']:.4f}"
    assert f"{said} ± {best['spread']:.4f}" in plain(page), sweep_page.lead(found)
    # Where the halves disagree, the reporting half has no say.
    other = {"choice": [qrpo, dpo | {"selection": {"mean": 0.9, "spread": None, "values": [0.9]}}]}
    lead, tiles = sweep_page.lead(found | other), sweep_page.tiles(found | other)
    figure = f"{dpo['reporting']['reward']['mean']:.4f}"
    assert lead.startswith("Best on the selection half: dpo") and figure in lead, lead
    assert [label for label, *_ in tiles][1] == "Best method: dpo", tiles


def test_every_setting_is_in_the_table_with_its_spread(sweep):
    page, found = sweep
    text = plain(page[page.index('<h2 id="all">') :])
    for line in found["settings"]:
        for name in ("reward", "kl"):
            figure = line["figures"][name]
            assert f"{figure['mean']:.4f} ± {figure['spread']:.4f}" in text, (line["settings"], name)


def test_length_bias_and_kl_are_drawn_where_they_are_known(sweep):
    assert set(plots(sweep[0])) == {"methods", "reward-kl", "length"}
    words = words_of(plots(sweep[0])["reward-kl"][0])
    assert "N = 2" in words and "N = 4" in words and "dpo" in words, words


def test_a_method_has_the_same_color_in_every_plot(sweep, monkeypatch):
    drawn = {}

    def render(name: str, title: str, draw: Any, **size: Any) -> Markup:
        drawn[name] = Figure().subplots()
        draw(drawn[name])
        return Markup()

    monkeypatch.setattr(sweep_plots, "render", render)
    found = sweep[1] | {"choice": sweep[1]["choice"][::-1]}  # whatever the order of the choice
    sweep_page.pictures(found)
    colors: dict[str, dict[str, str]] = {}
    for name in ("methods", "length"):
        labels = [label.get_text() for label in drawn[name].get_yticklabels()]
        marks = [line for line in drawn[name].lines if len(line.get_xdata()) == 1]
        colors[name] = dict(zip(labels, [mark.get_color() for mark in marks], strict=True))
    named = {line.get_label(): line.get_color() for line in drawn["reward-kl"].lines}
    colors["reward-kl"] = {method: named[method] for method in ("qrpo", "dpo")}
    assert colors["methods"] == colors["length"] == colors["reward-kl"], colors
    assert len(set(colors["methods"].values())) == 2, colors


def test_reward_by_the_number_of_references_is_drawn_where_that_is_swept(tmp_path):
    grid = {"train.objective": ["qrpo"], "select.reference_count": [1, 3, 0], "train.beta": [0.1, 0.3], "seed": [0, 1]}
    page, found = page_of(tmp_path, toy_config(grid, collect__method=("select.reference_count",)))
    words = words_of(plots(page)["references"][0])
    assert re.search(r"\b1 3 all\b", words) and "chosen, on the reporting half" in words, words
    assert "references a prompt" in words and len(found["choice"]) == 3


def test_one_seed_has_the_interval_over_prompts(tmp_path):
    page, found = page_of(tmp_path, toy_config({**SWEEP[0], "seed": [1]}))
    (chosen,) = found["choice"]
    one = estimate(chosen["reporting"]["reward"], chosen["reporting_ci95"])
    assert one.high - one.low == pytest.approx(0.2) and one.low < one.mean < one.high, one
    assert "one seed" in page


def test_failed_points_are_named_with_what_they_said_and_it_is_inert(tmp_path):
    config = toy_config(SWEEP)
    points = write_points(tmp_path, config)
    name = points[0].name
    (tmp_path / "points" / name / points[0].config.stages[0] / "manifest.json").unlink()
    write_json(tmp_path / "failures" / f"{name}.json", {"message": HOSTILE})
    found = collect.collect(tmp_path, points, NO_PLAN)
    page = collect.write_page(tmp_path, points, found).read_text(encoding="utf-8")
    failures = page[page.index('<h2 id="failures">') : page.index('<h2 id="points">')]
    assert html.escape("<script>alert(1)</script>") in failures and "<script>alert" not in page, failures
    assert name in html.unescape(failures) and "11 of 12 points are complete, 1 failed" in plain(page)


def test_without_figures_the_page_says_so(tmp_path):
    config = toy_config({"train.beta": [0.1, 0.3]})
    from qrpo_jax.sweep.points import points_of

    points = points_of(config)
    found = collect.collect(tmp_path, points, NO_PLAN)
    page = collect.write_page(tmp_path, points, found).read_text(encoding="utf-8")
    assert (
        "No point has held-out figures yet." in page
        and plots(page) == {}
        and "0 of 2 points are complete, 2 not complete" in plain(page)
    )


def test_a_stage_that_points_share_counts_once(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP[:1]))
    shared = tmp_path / "shared" / "first-0"
    folders = [shared / "first", *(tmp_path / "points" / point.name / "first" for point in points)]
    for folder in folders:
        write_json(folder / provenance.FOLDER / "0-of-1.json", [START])
    for place, point in enumerate(points):
        start = START | {"started": START["started"] + 100 + place, "seconds": 2.0, "command": ["other"]}
        write_json(tmp_path / "points" / point.name / "second" / provenance.FOLDER / "0-of-1.json", [start])
    plan = Plan({shared: Part(shared, ("first",), None, tuple(range(len(points))))}, (shared,) * len(points))
    found = collect.collect(tmp_path, points, plan)
    text = plain(collect.write_page(tmp_path, points, found).read_text(encoding="utf-8"))
    assert "first 2026-11-28 08:34:00 UTC 1 0 79.2" in text and "second 2026-11-28 08:35:40 UTC 6 0 12.0" in text, text
    assert "'--config=a b' other" in text


def test_the_tables_of_a_sweep_are_json_too(tmp_path):
    points = write_points(tmp_path, toy_config(SWEEP))
    found = collect.write(tmp_path, points, NO_PLAN)
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["reward"] for row in rows] == [line["figures"]["reward"]["mean"] for line in found["settings"]]
    assert (tmp_path / "choice.json").exists()
