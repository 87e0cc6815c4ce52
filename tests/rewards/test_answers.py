"""Reward `answer`: which number a completion ends with, and the agreement with graded solutions of GSM8K."""

import json
import time
from fractions import Fraction

import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.answers import final_answer, read_answer
from qrpo_jax.rewards.rewards import make_reward
from tests.helpers.tables import opened


def row(payload, *texts):
    completions = tuple(Completion(text, NO_TOKENS, True, "dataset") for text in texts)
    return Row("r", (Message("user", "q"),), payload, completions)


def scored(rows):
    with make_reward("answer") as reward:
        return reward.score(rows)


def test_every_verdict_on_four_models_solutions_is_that_of_the_data_set(fixtures):
    source = opened(f"jsonl:{fixtures}/gsm8k/example_model_solutions.jsonl")
    rows = source.rows(range(source.count))
    scores = scored(rows)
    graded = [completion.reward for row in rows for completion in row.completions]
    got = [reward for rewards in scores.rewards for reward in rewards]
    texts = [completion.text for row in rows for completion in row.completions]
    wrong = [(a, b, text[-80:]) for a, b, text in zip(graded, got, texts, strict=True) if a != b]
    assert len(got) > 5200 and not wrong, (len(got), len(wrong), wrong[:5])
    assert scores.outcomes == {"passed": 2001, "wrong": len(got) - 2002, "no answer": 1}, scores.outcomes


@pytest.mark.parametrize(
    "text, answer",
    [
        ("5 and 6\n#### 18", "18"),
        ("#### 5\nNo.\n#### 1,018", "1018"),  # the last one
        ("#### $18.00.", "18"),
        (r"#### 18\%", "18"),
        ("#### -3 dollars", "-3"),
        ("#### eighteen, or 18", "18"),
        (r"so \boxed{5} no \boxed{1,234.50} of 7", "1234.5"),
        (r"$\boxed{\frac{1}{2}}$", "1/2"),
        (r"\boxed{\text{18 eggs}}", "18"),
        ("A: 18\nA: Let us see 3", "18"),
        ("A: Janet has 16 eggs and sells 9", "9"),  # no number right behind the mark: the last of all
        ("The answer is **18**. It took 3 steps.", "18"),
        ("The final answer is 2 * 9 = 18 of 20.", "18"),
        ("Answer: x = -1/2", "-1/2"),
        ("the answer is: 18 because of 5", "18"),
        ("It costs -$5", "-5"),
        ("It costs $-5", "-5"),
        ("16-3-4=9", "9"),
        ("10-12", "12"),
        ("5 - 3", "3"),
        ("3/4 of it, that is 75%", "75"),
        ("1.5e-2", "0.015"),
        ("0.5", "1/2"),
        (".5", "1/2"),
        ("18.", "18"),
        ("x2, CO2 and v1.2.3", None),
        ("eighteen", None),
        ("", None),
        ("1/0", None),
        ("9" * 500, None),
        ("#### 2^3", None),  # expressions, which a number in them does not answer
        ("#### 2 + 3", None),
        ("The answer is 10 - 2.", None),
        (r"\boxed{2\sqrt{3}}", None),
        (r"\boxed{\sqrt{3}}", None),
        ("Answer: 1 1/2", None),
        ("#### 18 17 19", None),
        ("#### 2x", None),
    ],
)
def test_the_final_answer_is_the_number_behind_the_last_mark_or_the_last_number(text, answer):
    assert final_answer(text) == (None if answer is None else Fraction(answer)), final_answer(text)


@pytest.mark.parametrize(
    "unit", ["1", "1,", "$-", "answer is ", "\\boxed{", "1/", "\nA: ", " ", "\\frac{1", "1e9", "-"]
)
def test_reading_hostile_text_takes_time_in_proportion_to_its_length(unit):
    def seconds(repeats):
        start = time.process_time()
        final_answer(unit * repeats)
        return time.process_time() - start

    took = [min(seconds(repeats) for _ in range(3)) for repeats in (5_000, 50_000)]
    assert took[1] < 40 * max(took[0], 0.005), took


def test_verdicts_say_which_completions_were_wrong_and_which_had_no_answer():
    scores = scored([row('{"answer": "18"}', "A: 18", "18.0", "17", "none"), row('{"answer": 0.5}', "1/2", "0.3")])
    assert scores.rewards == [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0]]
    assert scores.outcomes == {"passed": 3, "wrong": 2, "no answer": 1}


@pytest.mark.parametrize("answer", ["18", "1,018", "$18", "-3", "1/2", "0.25", "50%", "18 eggs"])
def test_answers_of_data_sets_are_numbers_in_any_of_these_forms(answer):
    assert read_answer(row(json.dumps({"answer": answer}))) == final_answer(answer)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "[]",
        "not json",
        "{}",
        *(json.dumps({"answer": a}) for a in ("", "A", "x = 3", "2^3", True, None, [18], 1e400)),
    ],
)
def test_a_row_without_a_number_is_refused_in_one_line(payload):
    with pytest.raises(UserError, match=r"^data.jsonl, line 7: its payload is .*reward 'answer' needs") as caught:
        read_answer(row(payload), "data.jsonl, line 7")
    assert "\n" not in str(caught.value)
