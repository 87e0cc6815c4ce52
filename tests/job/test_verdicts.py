"""Verdicts among counts: their shares on the progress bar, first lines that add up, and hostile text in them."""

import json
import random
import re

import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.job import verdicts
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.units import add_counts
from qrpo_jax.rewards.code_reward import WITHIN_REACH
from qrpo_jax.rewards.scores import Scores
from qrpo_jax.stages import STAGES
from tests.helpers import reward_folders as folders
from tests.helpers.jobs import override, refused

ERRORS = [f"NameError: name 'x{i}' is not defined" for i in range(7)]


def test_shares_are_of_completions_in_a_fixed_order_and_a_plain_number_has_none():
    counts = {"completions: time": 7, "completions: error": 20, "completions: wrong": 61, "completions: passed": 12}
    assert verdicts.shares(counts | {"rows": 9, WITHIN_REACH: 3}) == "passed 12 %, wrong 61 %, error 20 %, time 7 %"
    assert verdicts.shares({"completions: passed": 999, "completions: error": 1}) == "passed >99 %, error <1 %"
    assert verdicts.shares({"completions: ok": 7, "rows": 3}) == "" and verdicts.shares({}) == ""


def test_first_lines_of_units_add_up_whatever_the_order_of_units():
    units = [
        verdicts.counts_of(Scores([], [["error"] * n], messages={"error": {line: n for line in ERRORS[: n + 1]}}))
        for n in (1, 3, 5)
    ]
    expected = dict(zip(ERRORS[:5], (9, 9, 8, 8, 5), strict=True))
    for seed in range(3):
        random.Random(seed).shuffle(units)
        counts, lines = verdicts.parted(add_counts(units))
        assert counts == {"completions: error": 9} and lines == {"error": expected}, (seed, lines)
        assert list(lines["error"]) == ERRORS[:5]


def test_first_lines_are_bounded_and_harmless():
    hostile = {f"E{i}: \x1b[2J\u202e<b>{'x' * 10**6}\nsecond line {i}": 2 for i in range(1000)}
    unit = verdicts.counts_of(Scores([], [["error"] * 2000], messages={"error": hostile}))
    assert len(unit) == 1 + verdicts.UNIT_LINES and len(json.dumps(unit)) < 20_000, len(unit)
    _, lines = verdicts.parted(unit)
    assert len(lines["error"]) == verdicts.SHOWN_LINES, lines
    for line in lines["error"]:
        assert line.isprintable() and len(line) <= verdicts.CHARACTERS and line.endswith("x…"), line
        assert "⟨U+001B⟩[2J⟨U+202E⟩<b>" in line and "second" not in line, line


def test_a_line_that_looks_like_a_count_stays_a_line():
    message = "completions: passed: 3"
    counts, lines = verdicts.parted(verdicts.counts_of(Scores([], [["error"]], messages={"error": {message: 1}})))
    assert counts == {"completions: error": 1} and lines == {"error": {message: 1}}


def test_lines_of_failures_stand_under_their_own_verdict():
    messages = {
        "failed: ValueError": {"ValueError: a: b": 2},
        "failed: time": {"no answer within 1 s": 3},
        "error": {"x: y": 1},
    }
    each = [verdict for verdict, lines in messages.items() for _ in range(sum(lines.values()))]
    counts, lines = verdicts.parted(verdicts.counts_of(Scores([], [each], messages=messages)))
    assert lines == messages and set(lines) == set(verdicts.all_verdicts(counts)), (lines, counts)


@pytest.fixture
def scoring(tmp_path):
    """A job that scores numbers in a file, three prompts a unit."""
    folders.write(tmp_path / "policy", folders.CLASSIFIER)
    causal = folders.CLASSIFIER | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (tmp_path / "policy" / "config.json").write_text(json.dumps(causal))

    def make(records, **overrides):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        config = default.get_config()
        config.stages = ("score",)
        config.model.path = str(tmp_path / "policy")
        config.prompts.update({"source": f"jsonl:{path}", "count": 0, "held_out": 0, "unit": 3, "max_tokens": 64})
        config.pack.max_tokens = 128
        config.reward.name = "answer"
        override(config, overrides)
        return Job(FrozenConfigDict(config), tmp_path / "run", Shard(0, 1), STAGES)

    return make


def record(i, payload=None):
    return {"prompt": f"{i} + 1?", "completions": [f"{i + 1}", f"{i}", "many"], "payload": payload or {"answer": i + 1}}


def test_the_bar_the_last_line_and_the_manifest_have_the_verdicts_of_all_units_also_resumed_ones(scoring, capsys):
    run = scoring([record(i) for i in range(7)])
    assert pipeline.run(run)
    shares = "passed 33 %, wrong 33 %, no answer 33 %"
    said = capsys.readouterr().err
    assert f"score: 21 completions: {shares}" in said
    assert re.search(rf"3/3 .*{shares}", said), said
    manifest = read_manifest(run.folder("score"))
    assert manifest["first_lines"] == {}
    assert {n: c for n, c in manifest["counts"].items() if "completions" in n} == {
        "completions: passed": 7,
        "completions: wrong": 7,
        "completions: no answer": 7,
    }
    (run.folder("score") / "manifest.json").unlink()
    (run.folder("score") / "counts" / "00001.json").unlink()
    assert pipeline.run(run) and read_manifest(run.folder("score"))["counts"] == manifest["counts"]
    said = capsys.readouterr().err
    assert re.search(rf"3/3 .*{shares}", said) and f"score: 21 completions: {shares}" in said


def test_rows_without_an_answer_are_refused_before_the_run(scoring):
    with pytest.raises(ValueError, match=r"line 2.*reward 'answer' needs .*\(config.reward.name.*\)"):
        pipeline.check(scoring([record(0), record(1, {"answer": "many"})]))
    with pytest.raises(ValueError, match=r"line 2.*reward 'math_verify' needs|needs the library math-verify"):
        pipeline.check(scoring([record(0), record(1, {"tests": []})], reward__name="math_verify"))


@pytest.mark.parametrize("name", ["answer", "math_verify"])
def test_a_source_without_answers_is_refused(tmp_path, name):
    refused(
        tmp_path, f"reward '{name}' needs prompts with answers, which prompts from 'programs' lack", reward__name=name
    )
