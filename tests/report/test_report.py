"""The report of a run: its figures, its claims, hostile text in it, and that it depends on the run alone."""

import base64
import csv
import hashlib
import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import default
from qrpo_jax.data import row_files
from qrpo_jax.evaluation import curve
from qrpo_jax.evaluation.compare import SIDES, compare
from qrpo_jax.files import write_json
from qrpo_jax.job import manifest, pace
from qrpo_jax.job.held_out import answers
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.report import held_out_plots, picture, run_page
from qrpo_jax.report.picture import DARK, LIGHT
from qrpo_jax.report.training_pictures import predicted_log_ratios
from qrpo_jax.stages import STAGES, evaluate
from tests.helpers.report_jobs import PROMPTS, WITH_SFT, held_out, make_job, metrics, ratios
from tests.helpers.report_pages import page_of, plain, plots, words_of


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(job: Job) -> str:
    return page_of(job)


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run without a known optimum."""
    return page_of(make_job(tmp_path_factory.mktemp("dpo"), objective="dpo"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with empty plots, for tests of what stands beside them: most of the time goes into drawing."""
    monkeypatch.setattr(picture, "draw_svg", lambda name, *_: f"<svg>{name}</svg>")


def test_the_headline_figures_are_those_of_results_json(job: Job, page: str) -> None:
    results: dict[str, Any] = json.loads((job.workdir / "evaluate" / "results.json").read_text())
    gain = results["gain"]
    assert gain["ci95"][0] > 0, gain
    shown = [results[side]["mean_reward"] for side in ("reference", "policy")]
    shown += [end for side in ("reference", "policy") for end in results[side]["ci95"]]
    shown += [results["policy"]["mean_quantile"], results["optimum"]["expected_quantile"], 1.75, 1.5, 1.25, 1.125]
    for figure in shown:
        assert f"{figure:.3f}" in page, figure
    assert f"+{gain['mean_reward']:.3f}" in page
    assert "better than the reference: the interval of the gain lies above zero" in page


def test_the_page_has_the_verdict_on_what_was_asked_for_and_figures_with_their_intervals(job: Job, page: str) -> None:
    results = json.loads((job.workdir / "evaluate" / "results.json").read_text())
    assert results["achieved"]["verdict"].startswith("asked for quantile")
    assert page.count(f"A{results['achieved']['verdict'][1:]}.") == 1
    assert page.index("Asked for quantile") < page.index("<nav>")  # on the first screen
    assert "at KL" in results["achieved"]["verdict"]
    low, high = results["policy"]["intervals"]["win_rate"]
    text = plain(page)
    assert f"{results['policy']['win_rate']:.1%} ({low:.1%} to {high:.1%})" in text
    for name in ("length_controlled_reward", "length_controlled_reward_own_slope"):
        assert f"{results['policy'][name]:.3f} (" in text, name
    words = words_of(plots(page)["achieved"][0])
    for label in ("optimum of identity, any β", "asked for", "policy", "mean reward", "mean quantile"):
        assert label in words, words


def test_a_curve_over_training_is_drawn_with_the_step_that_is_best(job: Job, page: str, tmp_path: Path) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "curve"), job.shard, STAGES)
    path = moved.folder("evaluate") / "results.json"
    results = json.loads(path.read_text())
    answered = [answers(row, ratios(row)) for row in held_out("reference", 0.0)]
    ids = [f"eval-{i}" for i in range(PROMPTS)]
    steps = {step: [answers(row, ratios(row)) for row in held_out("policy", step / 100)] for step in (10, 20, 35)}
    results["curve"] = curve.curve(ids, answered, steps)
    results["best"] = curve.best(results["curve"])
    write_json(path, results)
    drawn = page_of(moved)
    assert "held-out-curve" in plots(drawn).keys() - plots(page).keys()
    assert "checkpoints" in words_of(plots(drawn)["achieved"][0])
    assert "Best on the selection half: step 35, with mean reward 0." in drawn


def test_log_ratios_stand_beside_those_of_the_optimum_where_it_is_known(page: str, dpo: str) -> None:
    predicted = {"high": 0.875, "low": -3.125}
    assert predicted_log_ratios(metrics(True)) == predicted and predicted_log_ratios(metrics(False)) is None
    of_qrpo, of_dpo = (words_of(plots(one)["log-ratios"][0]) for one in (page, dpo))
    for label in ("optimum, high", "optimum, low"):
        assert label in of_qrpo and label not in of_dpo, label


def test_figures_of_held_out_rows_and_prompts_stand_beside_those_of_training(page: str, dpo: str) -> None:
    of_run, of_dpo = plots(page), plots(dpo)
    assert "held-out rows" in words_of(of_run["loss"][0]) and "held-out rows" not in words_of(of_dpo["loss"][0])
    assert "held-out rows, low" in words_of(of_run["log-ratios"][0])
    assert "sampled-reward" in of_run.keys() - of_dpo.keys()


def test_a_policy_alone_has_a_page_without_a_reference(tmp_path: Path) -> None:
    config: ConfigDict = default.get_config()
    config.stages, config.model.path = ("evaluate", "report"), "models/<b>mine</b>"
    alone = Job(FrozenConfigDict(config), tmp_path, Shard(0, 1), STAGES)
    rows = held_out("policy", 0.35)
    row_files.write_unit(alone.folder("evaluate") / "policy", 0, 1, rows)
    row_files.finish(alone.folder("evaluate") / "policy", 1)
    results: dict[str, Any] = compare({"policy": [answers(row, graded="") for row in rows]})
    results |= {"settings": evaluate.shown_settings(alone), "optimum": {}, "achieved": {}}
    write_json(tmp_path / "evaluate" / "results.json", results)
    alone.folder("report").mkdir()
    text = plain(page_of(alone))
    assert f"{results['policy']['pass_rate']:.1%} (" in text and "Pass@4" in text
    assert "models/<b>mine</b>" in text and "Distribution of rewards" in text
    assert "Highest rewards" in text and "Lowest rewards" in text
    for absent in ("Gain", "Win rate", "Improved", "optimum of", "Reward against KL"):
        assert absent not in text, absent


def test_the_page_lists_dropped_rows_and_what_the_machine_could_not_prevent(page: str) -> None:
    assert "dropped: too long" in page and "4,321" in page and "6.2%" in page
    not_prevented = page[page.index("could not prevent the following") : page.index("What the code could not do")]
    assert "connect to the network" in not_prevented and "write files" not in not_prevented
    assert "Level of isolation: <b>kernel</b>" in page


def test_verdicts_have_shares_by_stage_and_side_and_their_first_lines(page: str) -> None:
    text = plain(page[page.index("Verdicts on completions</h3>") : page.index("Protections while scoring")])
    assert "stage completions passed wrong error time score 600 7.5% (45) 38.0% (228) 50.0% (300) 4.5% (27)" in text
    for side in SIDES:
        assert f"evaluate, {side} 4 75.0% (3) 25.0% (1) – –" in text, text
    assert "error 203 <script>alert(1)</script>⟨U+001B⟩" in text and "time 7 more than 1 s" in text, text
    assert "error 4 NameError: name 'b' is not defined" in text, text


@pytest.mark.usefixtures("undrawn")
def test_a_reward_that_is_a_number_has_no_verdicts(job: Job, tmp_path: Path) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "plain"), job.shard, STAGES)
    manifest.complete(moved.folder("score"), {"counts": {"completions: ok": 371}, "isolation": "", "protections": {}})
    manifest.complete(moved.folder("evaluate"), {"counts": {side: {"completions: ok": 7} for side in SIDES}})
    plain = page_of(moved)
    assert "Verdicts" not in plain and "The reward ran no model-written code" in plain and "371" in plain


def test_hostile_completions_are_shown_and_inert(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+001B⟩[2J⟨U+202E⟩&lt;/pre&gt;&lt;img" in page
    for live in ("<script>alert", "<img src=x", "\x1b", "\u202e"):
        assert live not in page, live
    (code,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in html.unescape(policy), policy  # browsers run this script and no other
    assert "f(2,5)=0 &amp; &lt;b&gt;" in page


def test_the_page_fetches_nothing(page: str) -> None:
    links = re.findall(r"https?://[^\s\"<]*|@import|url\((?!#)[^)]*\)|<link|<iframe|\ssrc=", page)
    escaped = page.count("&lt;img src=")  # hostile text
    assert links.count(" src=") == len(plots(page)) + escaped and escaped > 1, (len(links), escaped)
    assert set(links) == {" src="}, links
    addresses = re.findall(r'(?:src|srcset)="([^"]*)"', page)
    assert addresses and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "default-src 'none'" in page and "img-src data:" in page


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(job: Job, page: str, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(job.workdir, tmp_path / "elsewhere")
    assert page_of(Job(job.config, elsewhere, job.shard, STAGES)) == page


def test_the_page_has_rows_in_and_out_the_share_cut_and_the_rewards_of_stage_score(page: str) -> None:
    data = plain(page[page.index('<h2 id="data">') : page.index("Protections while scoring")])
    assert "score 67 53 – –" in data and "evaluate, policy 53 53 3 75.0%" in data, data
    assert "Rewards of training completions" in page and "600 completions, mean reward 0.350" in page


def test_the_speed_section_has_the_work_of_stages_in_units_and_a_rate_without_first_units(page: str) -> None:
    speed = plain(page[page.index('<section id="speed">') :])
    assert "score 600 completions 11.000 150 completions/s" in speed, speed


def test_the_page_says_when_how_and_on_what_the_run_was_made(page: str) -> None:
    section = plain(page[page.index('<section id="speed">') :])
    for shown in (
        "Date 2026-11-28 08:34:00 UTC to 2026-11-28 08:35:19 UTC",
        "Command python -m qrpo_jax.main '--config=a b'",
        "Version qrpo-jax 0.1.0, commit abcdef123456",
        "Hardware a processor, 2 cores",
        "sft 2026-11-28 08:34:00 UTC 1 0 79.2 1.50",
    ):
        assert shown in section, section


@pytest.mark.usefixtures("undrawn")
def test_only_the_speed_section_depends_on_speed(job: Job, tmp_path: Path) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "slower"), job.shard, STAGES)
    page = page_of(moved)
    for stage in ("sft", "train"):
        path = moved.folder(stage) / "metrics.jsonl"
        path.write_text(path.read_text().replace("12345.0", "77.0"))
    pace.write_pace(moved.folder("score"), 1, 17.0, first=False)
    slower = page_of(moved)
    assert slower != page
    timeless = [re.sub(r'<section id="speed">.*?</section>', "", p, flags=re.DOTALL) for p in (page, slower)]
    assert timeless[0] == timeless[1]


@pytest.mark.usefixtures("undrawn")
def test_skew_between_hosts_is_in_the_speed_section_of_a_run_of_several_processes(
    job: Job, page: str, tmp_path: Path
) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "moved"), job.shard, STAGES)
    path = moved.folder("train") / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line |= {"host_skew_seconds": 0.75 if line["step"] == 7 else 0.25, "slowest_process": 3 * (line["step"] < 51)}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = " ".join(page_of(moved).split())
    assert "Stage train: 0.255 on average, 0.750 at worst; 51% of it by process 3." in text
    assert text.index("by process 3") > text.index('<section id="speed">') and "Skew between hosts" not in page


@pytest.mark.usefixtures("undrawn")
def test_a_benchmark_has_a_table_in_the_speed_section(job: Job, page: str, tmp_path: Path) -> None:
    workdir = shutil.copytree(job.workdir, tmp_path / "measured")
    figures = {"tokens_per_second": 98765.4, "seconds": 0.4, "model_tflops_per_second": 1.75, "mfu": 0.4321}
    figures |= {"host_share": 0.0625, "compile_seconds": 71.0, "peak_memory_gb": 5.5}
    record = {"mix": "many_short", "devices": 4, "device": "cpu", "compute_dtype": "float32", "peak": "product"}
    manifest.complete(workdir / "benchmark", record | dict.fromkeys(("train", "reference", "sample"), figures))
    config = ConfigDict(job.config.to_dict())
    config.stages = (*WITH_SFT[:-1], "benchmark", "report")
    measured = page_of(Job(FrozenConfigDict(config), workdir, job.shard, STAGES))
    section = measured[measured.index('<section id="speed">') :]
    for shown in ("many_short", "98,765", "1.75", "43.2%", "6.2%", "71", "5.5", "Sampling"):
        assert shown in section, shown
    assert "Benchmark" not in page


def test_ids_are_unique_and_all_references_resolve(page: str) -> None:
    for text in (re.sub(r'"data:[^"]*"', '""', page), *(svg for both in plots(page).values() for svg in both)):
        ids = re.findall(r'\sid="([^"]*)"', text)
        assert len(ids) == len(set(ids)), sorted(i for i in set(ids) if ids.count(i) > 1)[:5]
        used = set(re.findall(r'(?:href="|url\()#([^")]*)', text))
        assert used <= set(ids), used - set(ids)


def test_a_plot_has_the_same_words_in_both_schemes_in_other_colors(page: str) -> None:
    for name, (dark, light) in plots(page).items():
        assert words_of(dark) == words_of(light) and words_of(light), name
        assert DARK.ink in dark and DARK.ink not in light and LIGHT.ink in light and LIGHT.ink not in dark, name


def test_the_tables_beside_the_page_have_its_figures(job: Job, page: str) -> None:
    folder = job.folder("report") / "tables"
    results = json.loads((job.workdir / "evaluate" / "results.json").read_text())
    rows = {row["held-out prompts"]: row for row in json.loads((folder / "headline.json").read_text())}
    for side in SIDES:
        assert rows["Mean reward"][side] == results[side]["mean_reward"]
        assert [rows["Mean reward"][f"{side} {end}"] for end in ("low", "high")] == results[side]["ci95"]
    with (folder / "headline.csv").open() as file:
        (gain,) = [row for row in csv.DictReader(file) if row["held-out prompts"].startswith("Gain")]
    assert float(gain["policy"]) == results["gain"]["mean_reward"] and gain["reference"] == ""
    shown = f"{results['policy']['mean_reward']:.3f} ({' to '.join(f'{end:.3f}' for end in results['policy']['ci95'])})"
    for ending in ("md", "tex"):
        assert shown in (folder / f"headline.{ending}").read_text(), ending
    assert shown in plain(page)
    names = {path.stem for path in folder.iterdir()}
    assert {"headline", "optimum", "stages", "rows", "counts", "verdicts", "paces"} <= names, names


def test_samples_are_those_that_changed_most_and_the_first(page: str, job: Job) -> None:
    part = page[page.index('<h2 id="samples">') : page.index('<h2 id="data">')]
    changes = [float(text.replace("−", "-")) for text in re.findall(r'class="change[^>]*>([^<]*)<', part)]
    count = job.config.report.examples
    means = [
        np.asarray([np.mean([c.reward for c in row.completions]) for row in held_out(side, skill)])
        for side, skill in (("policy", 0.35), ("reference", 0.0))
    ]
    change = np.sort(means[0] - means[1])
    best, worst = change[::-1][:count], change[:count][change[:count] < 0]
    np.testing.assert_allclose(changes[:count], best, atol=6e-4)
    np.testing.assert_allclose(changes[count : count + len(worst)], worst, atol=6e-4)
    assert len(changes) == 2 * count + len(worst) and len(worst) > 0, changes
    titles = re.findall(r'class="title">([^<]*)<', part)
    assert len(set(titles)) == len(titles), titles  # a prompt is in one part only


def test_length_bias_has_spearmans_rho_of_each_side(page: str, job: Job) -> None:
    results = json.loads((job.workdir / "evaluate" / "results.json").read_text())
    assert results["policy"]["length_correlation"] == pytest.approx(-1) and "policy ρ = −1.000" in plain(page)
    assert results["reference"]["length_correlation"] == pytest.approx(1)
    assert "Implicit reward against length" in page


def test_counts_of_zero_are_folded_away_and_what_was_dropped_stands_out(page: str) -> None:
    data = page[page.index('<h2 id="data">') : page.index("Verdicts on completions</h3>")]
    before, _, folded = data.partition('<details class="fold">')
    assert "dropped: too long" in before and "4,321" in before and "prompts" not in plain(before)[-40:]
    assert " 0 " not in plain(folded), plain(folded)


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_sft_has_no_sft_plot(page: str, tmp_path: Path) -> None:
    without = page_of(make_job(tmp_path, WITH_SFT[1:]))
    assert "SFT loss" in page and "SFT loss" not in without


def test_an_objective_without_a_known_optimum_claims_none(page: str, dpo: str) -> None:
    for claim in ("Asked for and achieved", "At the optimum", "β log Z", "optimum’s"):
        assert claim.replace("’", "'") in html.unescape(page) and claim.replace("’", "'") not in html.unescape(dpo), (
            claim
        )
    assert "no policy of the same KL exceeds" in dpo and "no policy of the same KL exceeds" not in page


@pytest.mark.usefixtures("undrawn")
def test_full_reward_is_named_only_where_rewards_are_shares(page: str, tmp_path: Path) -> None:
    raw = page_of(make_job(tmp_path, scale=37.0, shift=-11.0))
    assert "full reward" in page and "full reward" not in raw
    assert "−11.000" in raw  # a completion that passes nothing


def test_an_interval_around_or_below_zero_is_not_called_a_gain() -> None:
    results = {side: {"mean_reward": 0.5, "prompts": 2, "completions": 4, "mean_quantile": 0.5} for side in SIDES} | {
        "settings": {"temperature": 1.0}
    }
    for ci95, words in (
        ([-0.1, 0.1], "contains zero"),
        ([-0.2, -0.1], "became worse"),
        ([math.nan, math.nan], "too few prompts"),
    ):
        text = run_page.conclusion(results | {"gain": {"mean_reward": 0.0, "ci95": ci95}})
        assert words in text and "better" not in text, text


@pytest.mark.parametrize("values", [[0.0, 0.1, 0.30000001, 1.0], [-3.25, 0.1, 17.0, 17.01], [2.0], [0.0, 1 / 3, 0.5]])
def test_every_reward_falls_into_a_bin(values: list[float]) -> None:
    edges = held_out_plots.bins(values)
    counts, _ = np.histogram(values, edges)
    assert counts.sum() == len(values) and len(edges) <= held_out_plots.MOST_BINS + 2, (edges, counts)


def test_rewards_on_a_grid_lie_in_the_middle_of_their_bins() -> None:
    edges = held_out_plots.bins([0.0, np.float32(0.1), 0.7, 1.0])
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, np.arange(11) / 10, atol=1e-6)
