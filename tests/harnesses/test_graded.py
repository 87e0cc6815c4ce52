"""Code and GSM8K: published solutions have pass@1 = 1 through the whole stage, and changed ones do not."""

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data.rows import Message, Row
from qrpo_jax.evaluation.passes import pass_at_k
from qrpo_jax.harnesses import questions
from qrpo_jax.harnesses.exemplars import EXEMPLARS
from qrpo_jax.job import answering
from qrpo_jax.job.scoring import score_rows
from tests.helpers.harness_jobs import harness_job, long_model, problems, results_of, writes
from tests.helpers.problem_sets import fenced

STEPS = {"humaneval": 4, "mbpp": 23, "leetcode": 19}
WRONG = ("MBPP/64", "MBPP/160", "MBPP/367", "MBPP/596", "MBPP/601", "MBPP/607", "MBPP/631", "MBPP/642", "MBPP/927")
WRONG += ("MBPP/966", "MBPP/123")  # published solutions that fail or exceed their own tests (docs/data.md)


def solution(row: Row) -> str:
    """The published one: of HumanEval and MBPP a body behind the prompt."""
    return row.completions[0].text


@pytest.mark.parametrize("name", STEPS)
def test_published_solutions_have_pass_at_1_of_1_and_programs_that_return_nothing_have_0(
    name: str, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = problems(fixtures, name, tmp_path / "problems.jsonl", STEPS[name])
    long = {"model__path": str(long_model(fixtures, tmp_path / "model")), "harness__max_prompt_tokens": 8000}
    asked, without_package = list[str](), set[str]()

    def right(row: Row) -> list[str]:
        asked.append(row.id)
        if "Sorted" in solution(row):  # of sortedcontainers, which the sandbox does not have
            without_package.add(row.id)
        return [solution(row)]

    def nothing(row: Row) -> list[str]:
        tree = ast.parse(re.findall(r"```python\n(.*?)```", solution(row), re.DOTALL)[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = [ast.Pass()]
        return [fenced(ast.unparse(tree))]

    for texts, least, most in ((right, 1.0, 1.0), (nothing, 0.0, 0.0)):
        writes(monkeypatch, texts)
        run = harness_job(tmp_path / texts.__name__, fixtures, f"{name} source={source}", **long)
        assert pipeline.run(run)
        record = results_of(run)[name]
        figure = record["policy"]["figures"]["pass_at_1"]
        wrong = len(set(asked) & ({*WRONG} | without_package)) / len(set(asked))
        assert least - wrong <= figure["value"] <= most, (figure, sorted(set(asked)))
        assert record["policy"]["prompts"] == len(set(asked)) > 9 > 5 * wrong and len(record["prompts_sha256"]) == 64, (
            record
        )
        assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1], figure


def test_pass_at_k_is_the_unbiased_estimator_over_problems_and_an_unasked_or_lost_problem_has_failed(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = problems(fixtures, "humaneval", tmp_path / "problems.jsonl", 11, most=7)
    task = f"humaneval source={source} completions=5 temperature=1"

    def some(row: Row) -> list[str]:
        right = int(row.id.partition("/")[2]) % 4  # of five
        return [solution(row)] * right + [fenced("def nothing(): pass")] * (5 - right)

    writes(monkeypatch, some)
    run = harness_job(tmp_path / "run", fixtures, task)
    assert pipeline.run(run)
    figures = results_of(run)["humaneval"]["policy"]["figures"]
    lines = (tmp_path / "problems.jsonl").read_text().splitlines()
    right = [int(json.loads(line)["task_id"].partition("/")[2]) % 4 for line in lines]
    for k in (1, 2, 4):
        expected = np.mean([pass_at_k(c, 5, k) for c in right])
        assert math.isclose(figures[f"pass_at_{k}"]["value"], expected), (k, figures, right)
    assert set(figures) == {"pass_at_1", "pass_at_2", "pass_at_4", "mean_tokens", "share_finished"}, figures

    monkeypatch.undo()  # the story model itself, which can read few of these prompts
    lost = list[str]()

    def without_first(*given: Any, **named: Any) -> Any:  # whose completions lose their reward, as by a failing server
        kept, counts = score_rows(*given, **named)
        if not lost and kept:
            lost.append(kept.pop(0).id)
        return kept, counts

    monkeypatch.setattr(answering, "score_rows", without_first)
    run = harness_job(tmp_path / "few", fixtures, task, harness__max_prompt_tokens=300)
    assert pipeline.run(run)
    record = results_of(run)["humaneval"]["policy"]
    assert record["prompts"] == 7 > record["not_asked"] > 0 and record["figures"]["pass_at_1"]["value"] == 0.0, record
    assert record["without_reward"] == len(lost) == 1, (record, lost)


def test_eight_examples_are_turns_of_a_conversation_or_one_text() -> None:
    row = Row("row-1", (Message("user", "How many?"),), '{"answer": "3"}')
    turns = questions.arithmetic(row, True, 8).messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 8 + ["user"]
    assert turns[-1].content == "Q: How many?\nA:" and turns[1].content.endswith("The answer is 6.")
    (text,) = questions.arithmetic(row, False, 8).messages
    assert text.content == "\n\n".join(
        [f"{q.content} {a.content}" for q, a in zip(turns[::2], turns[1::2], strict=False)] + [turns[-1].content]
    )
    (alone,) = questions.arithmetic(row, True, 0).messages
    assert alone.content.startswith("How many?\n\nThink step by step.")


def test_a_function_head_is_asked_to_be_completed_and_a_text_to_be_answered_with_a_function() -> None:
    payload = json.dumps({"entry_point": "f"})
    head = questions.function(Row("row-1", (Message("user", "def f(x):\n  pass\n"),), payload), True, 0)
    assert head.messages[0].content.endswith("```python\ndef f(x):\n  pass\n```"), head.messages
    words = questions.function(Row("row-1", (Message("user", "Write f.\n"),), payload), True, 0)
    assert words.messages[0].content == f"Write f.{questions.IN_A_BLOCK}"


@pytest.mark.parametrize("shots", [0, 8])
def test_right_numbers_pass_by_value_and_by_both_rules_of_extraction(
    shots: int, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = problems(fixtures, "gsm8k", tmp_path / "questions.jsonl", most=41)
    asked: list[str] = []

    def texts(row: Row) -> list[str]:
        asked.append(row.messages[-1].content)
        answer = json.loads(row.payload)["answer"]
        kind = len(asked) % 4
        marked, both = f"So. The answer is {answer}.", f"The answer is {answer}, not 99999."
        return [(marked, f"It is ${answer}.", both, "The answer is -77777.")[kind]]

    writes(monkeypatch, texts)
    long = {"model__path": str(long_model(fixtures, tmp_path / "model")), "harness__max_prompt_tokens": 8000}
    run = harness_job(tmp_path / "run", fixtures, f"gsm8k source={source} shots={shots}", **long)
    assert pipeline.run(run)
    record = results_of(run)["gsm8k"]
    shares = {name: round(41 * one["value"]) for name, one in record["policy"]["figures"].items()}
    counts = [sum(1 for i in range(1, 42) if i % 4 == kind) for kind in range(4)]
    assert shares["strict_match"] == counts[0] + counts[2], (shares, counts)
    assert shares["flexible_extract"] == counts[0] + counts[1], (shares, counts)
    assert shares["pass_at_1"] >= counts[0] + counts[1], (shares, counts)
    assert all((question in asked[0]) == (shots == 8) for question, _ in EXEMPLARS), asked[0]
    # A base model goes on with questions of its own, whose numbers are no answer to this one.
    assert record["settings"]["stop"] == (["Q:"] if shots else []), record["settings"]
    assert record["settings"]["shots"] == shots and asked[0].count("\nA:") == (9 if shots else 0), asked[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "passing", "of"), [("humaneval", 164, 164), ("mbpp", 963, 974)])
def test_all_published_solutions_have_the_pass_at_1_that_their_own_harness_gives(
    name: str, passing: int, of: int, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = problems(fixtures, name, tmp_path / "problems.jsonl")
    long = {"model__path": str(long_model(fixtures, tmp_path / "model")), "harness__max_prompt_tokens": 8000}
    writes(monkeypatch, lambda row: [solution(row)])
    run = harness_job(tmp_path / "run", fixtures, f"{name} source={source}", **long)
    assert pipeline.run(run)
    record = results_of(run)[name]["policy"]
    assert record["prompts"] == of
    assert record["figures"]["pass_at_1"]["value"] == pytest.approx(passing / of, abs=0.5 / of), record
