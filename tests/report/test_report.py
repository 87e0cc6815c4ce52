"""The report of a run: its figures, its claims, hostile text in it, and that it depends on the run alone."""

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
from qrpo_jax import transforms
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.evaluation import curve
from qrpo_jax.evaluation.achieved import achieved
from qrpo_jax.evaluation.compare import SIDES, compare
from qrpo_jax.evaluation.histogram import spread
from qrpo_jax.faults.records import write_record
from qrpo_jax.files import write_json
from qrpo_jax.job import manifest, pace
from qrpo_jax.job.held_out import answers
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.report import forecast, run_page, run_plots
from qrpo_jax.report.run_pictures import predicted_log_ratios
from qrpo_jax.stages import STAGES, evaluate, report
from tests.helpers import tiny

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e</pre><img src=x onerror=alert(2)>"
WITH_SFT = ("sft", "sample", "score", "reference", "train", "evaluate", "report")
PROMPTS, COMPLETIONS, STEPS = 53, 7, 101
VERDICTS = {"completions: passed": 45, "completions: wrong": 228, "completions: error": 300, "completions: time": 27}


def completion(text: str, reward: float, source: str) -> Completion:
    tokens = np.arange(len(text) % 11 + 1, dtype=np.int32)
    return Completion(text, tokens, bool(len(text) % 7), source, reward=reward, log_prob=-5.0, reference_log_prob=-5.0)


def held_out(side: str, skill: float, scale: float = 1.0, shift: float = 0.0) -> list[Row]:
    """Rows with rewards in tenths, higher for a higher skill; the first text attacks the page."""
    rng = np.random.default_rng(3)
    rows = []
    for prompt in range(PROMPTS):
        ease = rng.beta(1.2, 1.2)
        share = np.clip(ease + skill, 0, 1)
        passed = np.round(rng.beta(0.2 + 3 * share, 0.2 + 3 * (1 - share), COMPLETIONS) * 10) / 10
        texts = [HOSTILE if prompt == 0 and i == 0 else f"a * {i} + b\n" for i in range(COMPLETIONS)]
        completions = [completion(t, float(r * scale + shift), side) for t, r in zip(texts, passed, strict=True)]
        message = Message("user", f"Write f(a, b):\nf(2,5)={prompt} & <b>")
        rows.append(Row(f"eval-{prompt}", (message,), "", tuple(completions), np.zeros(0, np.float32)))
    return rows


def metrics(calibrated: bool) -> list[dict[str, float]]:
    rng = np.random.default_rng(5)
    lines = []
    for step in range(1, STEPS):
        t = step / STEPS
        line = {
            "loss": 0.1 * math.exp(-2 * t) + 0.01 * rng.normal(),
            "gradient_norm": math.exp(-3 * t + 0.2 * rng.normal()),
            "quantile": 0.5 + 0.02 * rng.normal(),
            "log_ratio_high": 0.8 * t + 0.1 * rng.normal(),
            "log_ratio_low": -2.5 * t + 0.1 * rng.normal(),
            "learning_rate": 1e-3 * min(step / 10, (1 + math.cos(math.pi * t)) / 2),
            "tokens_per_second": math.nan if step == 1 else 12345.0,
        }
        if calibrated:
            line["calibrated_target"] = -0.27 + 0.02 * rng.normal()
            line |= {"predicted_log_ratio_high": 0.875, "predicted_log_ratio_low": -3.125}
        lines.append({"step": step, **line})
    return lines


def forecast_of(job: Job) -> dict[str, Any] | None:
    """The forecast that stage train puts on record."""
    config = job.config.train
    if config.objective != "qrpo":
        return None
    transform, table = transforms.parse(config.transform), tiny.examples(10)
    beta_C = np.full(10, config.beta)
    return forecast.figures(table, transform, beta_C, partition_name=config.partition, estimator="ecdf")


def make_job(workdir: Path, stages: tuple[str, ...] = WITH_SFT, objective: str = "qrpo", **of_rewards: float) -> Job:
    """A work directory as the stages before the report leave it, and its job."""
    config: ConfigDict = default.get_config()
    config.stages, config.train.objective = stages, objective
    config.evaluate.completions = COMPLETIONS
    job = Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)
    sides = {side: held_out(side, skill, **of_rewards) for side, skill in (("reference", 0.0), ("policy", 0.35))}
    for side, rows in sides.items():
        row_files.write_unit(job.folder("evaluate") / side, 0, 1, rows)
        row_files.finish(job.folder("evaluate") / side, 1)
    results = compare({side: [answers(row) for row in rows] for side, rows in sides.items()})
    results["reference"] |= {"kl_to_policy_k1": 1.75, "kl_to_policy_k3": 1.5}
    results["policy"] |= {"kl_to_reference_k1": 1.25, "kl_to_reference_k3": 1.125}
    results["policy"]["intervals"]["kl_to_reference_k1"] = [1.0, 1.5]
    row_files.write_unit(job.folder("reference"), 0, 1, sides["reference"])
    row_files.finish(job.folder("reference"), 1)
    counts = {"rows": PROMPTS, "dropped: too long": 4321}
    for stage in ("sft", "train"):
        if stage in stages:
            job.folder(stage).mkdir()
            lines = [json.dumps(line) + "\n" for line in metrics(stage == "train" and objective == "qrpo")]
            (job.folder(stage) / "metrics.jsonl").write_text("".join(lines))
            manifest.complete(job.folder(stage), {"counts": counts, "padding": 0.0625, "forecast": forecast_of(job)})
    results |= {"settings": evaluate.shown_settings(job), "optimum": evaluate.training_forecast(job)}
    results["achieved"] = achieved(results["optimum"], results["policy"])
    write_json(workdir / "evaluate" / "results.json", results)
    protections = {"network": False, "filesystem": True, "memory": True}
    lines = {"error": {HOSTILE: 203, "NameError: name 'b' is not defined": 4}, "time": {"more than 1 s": 7}}
    found = {"counts": VERDICTS | {"rows": PROMPTS}, "first_lines": lines, "units": 2}
    found |= {"row_flow": {"in": 67, "out": PROMPTS}, "rewards": spread({0.0: 250, 0.25: 187, 1.0: 163})._asdict()}
    for unit, seconds in enumerate((9.0, 2.0)):
        pace.write_pace(job.folder("score"), unit, seconds, first=unit == 0)
        write_record(job.folder("score") / "counts" / f"{unit:05d}.json", {"completions: wrong": 300})
    manifest.complete(job.folder("score"), found | {"isolation": "kernel", "protections": protections})
    of_side = {"prompts": PROMPTS, "completions: passed": 3, "completions: wrong": 1}
    of_side |= {"completions": 4, "completions cut by length limit": 3}
    flow = {"in": PROMPTS, "out": PROMPTS}
    evaluated = {"counts": dict.fromkeys(sides, of_side), "row_flow": dict.fromkeys(sides, flow), "units": 1}
    manifest.complete(job.folder("evaluate"), evaluated)
    for side in sides:
        write_record(job.folder("evaluate") / side / "counts" / "00000.json", of_side)
    job.folder("report").mkdir()
    return job


def page_of(job: Job) -> str:
    report.run(job)
    return (job.folder("report") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(job: Job) -> str:
    return page_of(job)


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
    assert "The interval lies above zero" in page


def test_the_page_has_the_verdict_on_what_was_asked_for_and_figures_with_their_intervals(job: Job, page: str) -> None:
    results = json.loads((job.workdir / "evaluate" / "results.json").read_text())
    assert results["achieved"]["verdict"].startswith("asked for quantile")
    assert page.count(f"A{results['achieved']['verdict'][1:]}.") == 2  # below the table, and below the plot
    assert "at KL" in results["achieved"]["verdict"]
    assert 'aria-label="Asked for and achieved"' in page
    low, high = results["policy"]["intervals"]["win_rate"]
    assert f"{results['policy']['win_rate']:.1%} ({low:.1%} to {high:.1%})" in page
    for name in ("length_controlled_reward", "length_controlled_reward_own_slope"):
        assert f"{results['policy'][name]:.3f} (" in page, name


def test_a_curve_over_training_is_drawn_with_the_step_that_is_best(job: Job, page: str, tmp_path: Path) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "curve"), job.shard, STAGES)
    path = moved.folder("evaluate") / "results.json"
    results = json.loads(path.read_text())
    answered = [answers(row) for row in held_out("reference", 0.0)]
    ids = [f"eval-{i}" for i in range(PROMPTS)]
    steps = {step: [answers(row) for row in held_out("policy", step / 100)] for step in (10, 20, 35)}
    results["curve"] = curve.curve(ids, answered, steps)
    results["best"] = curve.best(results["curve"])
    write_json(path, results)
    drawn = page_of(moved)
    label = 'aria-label="Held-out figures over training"'
    assert label in drawn and label not in page
    assert "Best on the selection half: step 35, with mean reward 0." in drawn


def test_log_ratios_stand_beside_those_of_the_optimum_where_it_is_known(page: str, tmp_path: Path) -> None:
    assert predicted_log_ratios(metrics(True)) == (0.875, -3.125) and predicted_log_ratios(metrics(False)) is None
    dpo = page_of(make_job(tmp_path, objective="dpo"))
    for label in ("optimum, high", "optimum, low"):
        assert label in page and label not in dpo, label


def test_a_policy_alone_has_a_page_without_a_reference(tmp_path: Path) -> None:
    config: ConfigDict = default.get_config()
    config.stages, config.model.path = ("evaluate", "report"), "models/<b>mine</b>"
    alone = Job(FrozenConfigDict(config), tmp_path, Shard(0, 1), STAGES)
    rows = held_out("policy", 0.35)
    row_files.write_unit(alone.folder("evaluate") / "policy", 0, 1, rows)
    row_files.finish(alone.folder("evaluate") / "policy", 1)
    results: dict[str, Any] = compare({"policy": [answers(row) for row in rows]}, tests=True)
    results |= {"settings": evaluate.shown_settings(alone), "optimum": {}, "achieved": {}}
    write_json(tmp_path / "evaluate" / "results.json", results)
    alone.folder("report").mkdir()
    text = page_of(alone)
    assert f"{results['policy']['pass_rate']:.1%} (" in text and "Pass@4" in text
    assert "models/&lt;b&gt;mine&lt;/b&gt;" in text and "Held-out rewards" in text
    for absent in ("Gain", "Win rate", "reference</th>", "optimum of"):
        assert absent not in text, absent


def test_the_page_lists_dropped_rows_and_what_the_machine_could_not_prevent(page: str) -> None:
    assert "dropped: too long" in page and "4,321" in page and "6.2%" in page
    not_prevented = page[page.index("could not prevent the following") : page.index("<h2>Settings")]
    assert "connect to the network" in not_prevented and "write files" not in not_prevented
    assert "Level of isolation: <b>kernel</b>" in page


def test_verdicts_have_shares_by_stage_and_side_and_their_first_lines(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<h2>Verdicts") : page.index("<h2>Data")]).split())
    assert "Stage Completions passed wrong error time score 600 7.5% 45 38.0% 228 50.0% 300 4.5% 27" in text, text
    for side in SIDES:
        assert f"evaluate, {side} 4 75.0% 3 25.0% 1 – –" in text, text
    assert "error 203 &lt;script&gt;alert(1)&lt;/script&gt;⟨U+001B⟩" in text and "time 7 more than 1 s" in text, text
    assert "4 NameError: name &#39;b&#39; is not defined" in text, text


def test_a_reward_that_is_a_number_has_no_verdicts(job: Job, tmp_path: Path) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "plain"), job.shard, STAGES)
    manifest.complete(moved.folder("score"), {"counts": {"completions: ok": 371}, "isolation": "", "protections": {}})
    manifest.complete(moved.folder("evaluate"), {"counts": {side: {"completions: ok": 7} for side in SIDES}})
    plain = page_of(moved)
    assert "Verdicts" not in plain and "The reward ran no model-written code" in plain and "371" in plain


def test_hostile_completions_are_shown_and_inert(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+001B⟩[2J⟨U+202E⟩&lt;/pre&gt;&lt;img" in page
    for live in ("<script", "<img", "\x1b", "\u202e"):
        assert live not in page, live
    assert "f(2,5)=0 &amp; &lt;b&gt;" in page


def test_the_page_fetches_nothing(page: str) -> None:
    links = re.findall(r"https?://[^\s\"<]*|@import|url\((?!#)[^)]*\)|<link|<iframe|\ssrc=", page)
    links = [link for link in links if link != " src="]  # in the hostile completion, escaped
    assert not links, links
    assert "default-src 'none'" in page


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(job: Job, page: str, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(job.workdir, tmp_path / "elsewhere")
    assert page_of(Job(job.config, elsewhere, job.shard, STAGES)) == page


def test_the_page_has_rows_in_and_out_the_share_cut_and_the_rewards_of_stage_score(page: str) -> None:
    data = " ".join(page[page.index("<h2>Data") : page.index("<h3>Protections")].split())
    assert "<th>score</th><td>67</td><td>53</td>" in data
    assert '<th>evaluate, policy</th><td>53</td><td>53</td><td>75.0% <span class="soft">3</span>' in data
    assert "Training rewards" in page and "600 completions, mean reward 0.350" in page


def test_the_speed_section_has_the_work_of_stages_in_units_and_a_rate_without_first_units(page: str) -> None:
    speed = " ".join(page[page.index('<section id="speed">') :].split())
    assert "<th>score</th><td>600 completions</td><td>11.0</td><td>150 completions/s</td>" in speed, speed[:3000]


def test_only_the_speed_section_depends_on_speed(job: Job, page: str, tmp_path: Path) -> None:
    moved = Job(job.config, shutil.copytree(job.workdir, tmp_path / "slower"), job.shard, STAGES)
    for stage in ("sft", "train"):
        path = moved.folder(stage) / "metrics.jsonl"
        path.write_text(path.read_text().replace("12345.0", "77.0"))
    pace.write_pace(moved.folder("score"), 1, 17.0, first=False)
    slower = page_of(moved)
    assert slower != page
    timeless = [re.sub(r'<section id="speed">.*?</section>', "", p, flags=re.DOTALL) for p in (page, slower)]
    assert timeless[0] == timeless[1]


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


def test_ids_of_plots_are_unique_and_all_references_resolve(page: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)), sorted(i for i in set(ids) if ids.count(i) > 1)[:5]
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', page))
    assert used <= set(ids), used - set(ids)


def test_a_run_without_sft_has_no_sft_plot(page: str, tmp_path: Path) -> None:
    without = page_of(make_job(tmp_path, WITH_SFT[1:]))
    assert "SFT loss" in page and "SFT loss" not in without


def test_an_objective_without_a_known_optimum_claims_none(page: str, tmp_path: Path) -> None:
    dpo = page_of(make_job(tmp_path, objective="dpo"))
    for claim in ("The optimum and the policy", "optimum of identity", "At the optimum", "β log Z"):
        assert claim in page and claim not in dpo, claim


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
        text = run_page.verdict(results | {"gain": {"mean_reward": 0.0, "ci95": ci95}})
        assert words in text and "improved" not in text, text


@pytest.mark.parametrize("values", [[0.0, 0.1, 0.30000001, 1.0], [-3.25, 0.1, 17.0, 17.01], [2.0], [0.0, 1 / 3, 0.5]])
def test_every_reward_falls_into_a_bin(values: list[float]) -> None:
    edges = run_plots.bins(values)
    counts, _ = np.histogram(values, edges)
    assert counts.sum() == len(values) and len(edges) <= run_plots.MOST_BINS + 2, (edges, counts)


def test_rewards_on_a_grid_lie_in_the_middle_of_their_bins() -> None:
    edges = run_plots.bins([0.0, np.float32(0.1), 0.7, 1.0])
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, np.arange(11) / 10, atol=1e-6)
