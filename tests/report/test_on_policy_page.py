"""The page of an on-policy run: what it drew is in plots and a table, each where its figures are there."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from qrpo_jax.files import write_json
from qrpo_jax.job import accounting, manifest
from qrpo_jax.job.job import Job
from qrpo_jax.report import picture, rollout_pictures
from qrpo_jax.report.optimum_rewards import frontier
from qrpo_jax.report.rollout_table import SHOWN
from qrpo_jax.report.run_record import OnPolicy
from qrpo_jax.stages import STAGES
from tests.helpers.on_policy_records import ITERATIONS, SAMPLES, iteration, make_on_policy_job, rollout_rows
from tests.helpers.report_pages import page_of, plain, plots, words_of

ROLLOUTS = ["rollout-kl", "rollout-reward", "rollout-signal", "rollout-length", "rollout-sampler", "clipping"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_on_policy_job(tmp_path_factory.mktemp("qrpo"))


@pytest.fixture(scope="module")
def page(job: Job) -> str:
    """Only plots of rollouts are drawn."""
    draw = picture.draw_svg

    def some(name: str, *rest: Any) -> str:
        return draw(name, *rest) if name in ROLLOUTS else f"<svg>{name}</svg>"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture, "draw_svg", some)
        return page_of(job)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with empty plots: most of the time goes into drawing."""
    monkeypatch.setattr(picture, "draw_svg", lambda name, *_: f"<svg>{name}</svg>")


def test_what_was_drawn_is_in_plots_with_the_optimum_where_it_is_known(page: str) -> None:
    found = plots(page)
    names = [name for name in found if name.startswith("rollout") or name == "clipping"]
    assert names == ROLLOUTS, names
    wanted = {
        "rollout-kl": ("optimum of identity, any β", "asked for", "first", "last", "mean reward"),
        "rollout-reward": ("completions drawn in training", "500"),
        "rollout-signal": ("entropy (nats)", "with signal"),
        "rollout-length": ("tokens", "finished"),
        "rollout-sampler": ("staleness", "gap (nats)", "largest"),
        "clipping": ("ratio", "to the reference", "to the policy that sampled"),
    }
    for name, labels in wanted.items():
        words = words_of(found[name][0])
        assert all(label in words for label in labels), (name, words)
    assert "clip share" not in words_of(found["clipping"][0])  # QRPO does not clip
    assert "On-policy QRPO run" in page


def test_the_line_of_the_optimum_has_the_rewards_that_the_run_ranked_among() -> None:
    references = [row.reference_rewards.astype(float) for row in rollout_rows(0)]
    found = frontier(references, "identity", 0.3)
    low, high = np.mean([r.mean() for r in references]), np.mean([r.max() for r in references])
    assert low < found.reward.min() < found.reward.max() < high, (low, found.reward, high)


def test_the_table_has_the_figures_of_iterations_and_the_page_some_of_them(job: Job, page: str) -> None:
    with (job.folder("report") / "tables" / "iterations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ITERATIONS > SHOWN
    for index, row in enumerate(rows):
        one = iteration(index)
        assert float(row["reward"]) == one["figures"]["reward"] and int(row["samples"]) == one["samples"]
        assert [float(row["KL, k1 low"]), float(row["KL, k1 high"])] == one["intervals"]["kl_to_reference"]
        assert int(row["staleness"]) == one["staleness"]
    text = plain(page[page.index('<h2 id="iterations">') : page.index('<h2 id="training">')])
    first, last = iteration(0)["figures"]["reward"], iteration(ITERATIONS - 1)["figures"]["reward"]
    for mean in (first, last):
        assert f"{mean:.3f} ({mean - 0.03:.3f} to {mean + 0.03:.3f})" in text, text
    assert f"{SHOWN} of {ITERATIONS}" in text and text.count(" to ") < 4 * ITERATIONS


def test_the_time_of_rollouts_is_useful_and_gives_the_rate(job: Job, page: str) -> None:
    text = plain(page)
    drawn = ITERATIONS * SAMPLES
    assert f"{ITERATIONS} iterations, {drawn} completions drawn: {drawn / 50:.3f} a second" in text, text[:3000]
    assert accounting.times(job)["train"].goodput == pytest.approx(0.88)
    row = next(line for line in csv.DictReader((job.folder("report") / "tables" / "times.csv").open()))
    assert float(row["goodput"]) == pytest.approx(0.88) and float(row["rollout"]) == pytest.approx(0.5), row
    assert "and in rollouts" in text and "groups replaced: no signal 23" in text


def test_padding_comes_from_metrics_where_nothing_was_planned(job: Job, page: str) -> None:
    assert accounting.paddings(job)["train"] == pytest.approx(0.2)
    assert "Padding in stage train: 20.0%" in plain(page)


def test_stored_completions_are_shown_only_where_the_policy_was_ranked_among_them(
    page: str, tmp_path: Path, undrawn: None
) -> None:
    assert "Quantiles of stored reference completions" in page and "training-rewards" in plots(page)
    of_ppo = page_of(make_on_policy_job(tmp_path, "ppo"))
    found = plots(of_ppo)
    assert {"clipping", "value-error"} <= found.keys()
    assert not {"training-quantiles", "training-rewards", "log-ratios"} & found.keys(), found.keys()


def test_protections_are_those_of_its_own_scoring_where_no_other_stage_scores(tmp_path: Path, undrawn: None) -> None:
    job = make_on_policy_job(tmp_path, "grpo")
    folder = job.folder("train")
    found = (manifest.read_manifest(folder) or {}) | {"isolation": "none", "protections": {"network": False}}
    manifest.complete(folder, found)
    config = ConfigDict(job.config.to_dict())
    config.stages = ("train", "report")
    page = page_of(Job(FrozenConfigDict(config), tmp_path, job.shard, STAGES))
    assert "could not prevent" in page and "connect to the network" in page


def change(job: Job, **new: Any) -> None:
    """Other iterations: figures and entries by name; None removes a figure."""
    path = job.folder("train") / "iterations.json"
    several = json.loads(path.read_text())
    for place, one in enumerate(several):
        for name, value in new.items():
            if value is None:
                one["figures"].pop(name, None)
                one["intervals"].pop(name, None)
            else:
                one[name] = value(place)
    write_json(path, several)


def test_without_its_figures_a_plot_is_missing_and_the_page_is_whole(tmp_path: Path, undrawn: None) -> None:
    job = make_on_policy_job(tmp_path, "grpo")
    change(job, kl_to_reference=None, entropy=None, sampler_gap=None, largest_sampler_gap=None, groups_with_signal=None)
    change(job, intervals=lambda place: {}, beta=lambda place: 0.1 * 2**place)
    found = plots(page_of(job))
    assert not {"rollout-kl", "rollout-signal"} & found.keys(), found.keys()
    assert {"rollout-reward", "rollout-length", "rollout-sampler", "rollout-beta"} <= found.keys(), found.keys()
    change(job, reward=None, tokens=None, share_finished=None)  # as where all completions were dropped
    found = plots(page_of(job))
    assert "rollout-sampler" in found and not {"rollout-reward", "rollout-length"} & found.keys(), found.keys()


@pytest.mark.parametrize("count", [1, 510])
def test_one_iteration_and_many_are_drawn(count: int) -> None:
    iterations = [iteration(index % ITERATIONS) | {"samples": (index + 1) * SAMPLES} for index in range(count)]
    drawn = [
        rollout_pictures.reward_picture(iterations),
        rollout_pictures.kl_picture(OnPolicy(iterations, [], False), {}),
    ]
    for found in drawn:
        assert found is not None and "mean reward" in words_of(next(iter(plots(found.image).values()))[0])
