"""Stage compare_transforms: its numbers are the library's, its page shows them, and bad settings are refused."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from scipy.stats import norm

from configs import optimum as config_file
from qrpo_jax import optimum, partition, pipeline, transforms
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.report import picture, transform_figures
from qrpo_jax.stages import STAGES
from tests.helpers.report_pages import plots, words_of

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("identity", "normal-icdf", "logit")
BETAS = (0.1, 0.03, 1.7)
COUNTS = (1, 7)


def make_job(workdir: Path, **overrides: object) -> Job:
    config = config_file.get_config()
    config.compare_transforms.update({"transforms": NAMES, "betas": BETAS, "references": COUNTS} | overrides)
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = make_job(tmp_path_factory.mktemp("optimum") / "run")
    assert pipeline.run(job)
    return job


@pytest.fixture(scope="module")
def numbers(job: Job) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((job.folder("compare_transforms") / "figures.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def page(job: Job) -> str:
    return (job.folder("compare_transforms") / "report.html").read_text(encoding="utf-8")


def test_figure_5_of_the_paper_has_77_and_23_percent(page: str, numbers: dict[str, Any]) -> None:
    figure = numbers["figure_5"]
    closed = 0.1 * math.log(0.1 * math.expm1(10))
    np.testing.assert_allclose([figure["share_losing"], figure["crossing_level"]], closed, rtol=1e-12)
    assert "<b>77 %</b>" in page and "<b>23 %</b>" in page
    words = words_of(plots(page)["figure-5"][0])
    assert "77% lose" in words and "23% gain" in words, words
    for beta in ("0.1", "0.01", "0.001"):
        assert f"β = {beta}" in words_of(plots(page)["figure-5-betas"][1]), beta


def test_numbers_are_those_of_the_library(numbers: dict[str, Any]) -> None:
    optima = {(row["transform"], row["beta"]): row for row in numbers["optima"]}
    assert list(optima) == [(name, beta) for name in NAMES for beta in BETAS]
    with jax.enable_x64(True):
        for name, beta in (("identity", 0.03), ("identity", 1.7), ("normal-icdf", 1.7), ("logit", 1.7)):
            transform, row = transforms.parse(name), optima[name, beta]
            for key, function in {
                "crossing_level": optimum.crossing_level,
                "share_losing": optimum.crossing_share,
                "kl": optimum.kl,
                "expected_quantile": optimum.expected_quantile,
                "effective_n": optimum.best_of_n,
            }.items():
                np.testing.assert_allclose(row[key], function(beta, transform), rtol=1e-9, err_msg=f"{name} {key}")
            np.testing.assert_allclose(row["log_z"], transform.log_z(beta), rtol=1e-12)
            np.testing.assert_allclose(row["share_in_top_percent"], 1 - optimum.cdf(0.99, beta, transform), rtol=1e-9)
    assert optima["identity", 0.1]["peak_density"] == pytest.approx(10 / (1 - math.exp(-10)), rel=1e-12)
    assert optima["normal-icdf", 1.7]["peak_density"] is None


def test_an_effective_n_that_float64_cannot_resolve_is_null(numbers: dict[str, Any]) -> None:
    """For normal-icdf it is 1 / Phi(-1 / (beta sqrt 2)) - 1."""
    for row in numbers["optima"]:
        if row["transform"] == "normal-icdf":
            exact = 1 / norm.cdf(-1 / (row["beta"] * math.sqrt(2))) - 1
            expected = None if exact > transform_figures.MOST_N else pytest.approx(exact, rel=1e-8)
            assert row["effective_n"] == expected, (row, exact)


def test_gaps_are_those_of_the_partition_and_missing_ones_have_a_reason(numbers: dict[str, Any], page: str) -> None:
    rows = numbers["gaps"]
    assert len(rows) == len(NAMES) * len(BETAS) * 2 * len(COUNTS)
    with jax.enable_x64(True):
        for row in rows:
            transform = transforms.parse(row["transform"])
            clamped = row["transform"] != "identity" and row["estimator"] == "ecdf" and row["references"] == 1
            infinite = row["transform"] == "logit" and row["beta"] <= 1
            if clamped:
                assert "needs at least 2 references" in row["refused"] and "log_z_n" not in row, row
                continue
            finite = partition.finite_sample_log_z(transform, row["beta"], row["references"], row["estimator"])
            np.testing.assert_allclose(row["log_z_n"], finite, rtol=1e-9, err_msg=str(row))
            if infinite:
                assert row["refused"] == "Z is infinite: β must be above 1" and "gap" not in row, row
            else:
                gap = row["log_z_n"] - float(transform.log_z(row["beta"]))
                np.testing.assert_allclose(row["gap"], gap, rtol=1e-9, atol=1e-12, err_msg=str(row))
    assert "Z is infinite: β must be above 1" in page and ">refused</td>" in page and ">Z = ∞</td>" in page


def test_at_equal_kl_nothing_beats_identity_in_quantile_and_normal_icdf_in_a_normal_reward(
    numbers: dict[str, Any],
) -> None:
    for kl in transform_figures.EQUAL_KL:
        rows = {row["transform"]: row for row in numbers["equal_kl"] if row["kl"] == kl}
        assert set(rows) == set(NAMES)
        assert max(rows, key=lambda name: rows[name]["expected_quantile"]) == "identity", rows
        assert max(rows, key=lambda name: rows[name]["normal_reward"]) == "normal-icdf", rows
        # N(1 / beta, 1) has KL 1 / (2 beta^2).
        assert rows["normal-icdf"]["beta"] == pytest.approx(1 / math.sqrt(2 * kl), rel=1e-9)
        assert rows["normal-icdf"]["normal_reward"] == pytest.approx(math.sqrt(2 * kl), abs=1e-6)


def test_the_frontier_of_log_runs_through_best_of_n() -> None:
    with jax.enable_x64(True):
        for n in transform_figures.BEST_OF[:4]:
            row = transform_figures.figures(transforms.log, [1 / (n - 1)])[1 / (n - 1)]
            assert row["kl"] == pytest.approx(math.log(n) - (n - 1) / n, rel=1e-9), n
            assert row["effective_n"] == pytest.approx(n, rel=1e-9)


def test_a_bounded_reward_has_a_kl_that_no_beta_exceeds() -> None:
    with jax.enable_x64(True):
        rows = transform_figures.at_equal_kl(transforms.threshold(0.7))
    most = -math.log(0.3)
    assert [row["kl"] for row in rows if "refused" in row] == [kl for kl in transform_figures.EQUAL_KL if kl > most]
    assert rows[-1]["refused"] == f"not reached: KL is at most {most:.4g}"


def test_the_page_fetches_nothing_and_its_references_resolve(page: str) -> None:
    assert not re.findall(r"https?://[^\s\"<]*|@import|url\((?!#)[^)]*\)|<link|<iframe|<script|\ssrc=\"(?!data:)", page)
    assert "default-src 'none'" in page
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def test_every_plot_is_there_for_light_and_for_dark_schemes(page: str) -> None:
    found = plots(page)
    assert len(found) == 4 + 3 * len(NAMES), list(found)
    for name, (dark, light) in found.items():
        assert picture.DARK.ink in dark and picture.LIGHT.ink in light and picture.LIGHT.ink not in dark, name


def test_names_of_functions_cannot_put_markup_into_the_page() -> None:
    element = picture.render("x", 'a"<b>&', lambda axes: axes.set_xlabel("<i>&"))
    assert 'alt="Plot: a&#34;&lt;b&gt;&amp;"' in element and "<i>" not in element and "<b>" not in element
    (dark, light) = plots(element)["x"]
    assert "&lt;i&gt;&amp;" in dark and "&lt;i&gt;&amp;" in light


def test_a_rerun_skips_and_other_settings_are_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("report.html", "figures.json", "manifest.json")
    before = {name: (job.folder("compare_transforms") / name).read_bytes() for name in files}
    assert pipeline.run(job) and "compare_transforms: complete, skipped" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"compare_transforms\.betas: \[0\.1, 0\.03, 1\.7\] -> \[0\.2\].*choose another --workdir"
    ):
        pipeline.run(make_job(job.workdir, betas=(0.2,)))
    assert {name: (job.folder("compare_transforms") / name).read_bytes() for name in files} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"transforms": ("cube",)}, r"transform is 'cube'; allowed: .*\(config.compare_transforms.transforms\)"),
        ({"transforms": ()}, "compare_transforms.transforms is \\(\\); name at least one"),
        ({"transforms": ("log", "log")}, "each once"),
        ({"transforms": ("scaled-normal-icdf",)}, r"differs from prompt to prompt; name one with a fixed spread"),
        ({"transforms": ("piecewise-linear((0, 0), (0.5, 1), (1, 0))",)}, "decreases somewhere"),
        ({"betas": (0.1, 0.0)}, r"compare_transforms.betas has 0.0; each must be a number from 1e-05 to 100000"),
        ({"betas": (float("nan"),)}, "compare_transforms.betas has nan"),
        ({"betas": (float("inf"),)}, "compare_transforms.betas has inf"),
        ({"betas": ()}, "compare_transforms.betas is"),
        ({"references": (0, 3)}, "compare_transforms.references has 0; each must be a whole number"),
        ({"references": ()}, "compare_transforms.references is"),
        ({"estimators": ("mean",)}, r"compare_transforms.estimators has 'mean'; allowed: ecdf, midpoint"),
    ],
)
def test_settings_that_cannot_be_computed_are_refused_before_anything_is_written(tmp_path, overrides, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        pipeline.run(make_job(tmp_path / "run", **overrides))
    assert "\n" not in str(error.value) and "config.compare_transforms." in str(error.value), error.value
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_other_transforms_and_refuses_with_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qrpo_jax.main", "--config=configs/optimum.py", f"--workdir={tmp_path}/run"]
    command += ["--config.compare_transforms.transforms=('gaussian(0, 0.5)', 'power(-1)')"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "power" in line and "config.compare_transforms.transforms" in line, line
    assert not (tmp_path / "run").exists()
