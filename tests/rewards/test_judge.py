"""A judge behind a server: its grades, and what becomes of completions where it fails."""

import json

import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import FailuresError, UserError
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.judge import NO_ANSWER, NO_GRADE, JudgeReward, Questions
from qrpo_jax.rewards.judge_words import check_template, fill, make_reader
from qrpo_jax.servers.client import Access
from qrpo_jax.servers.failures import BadAnswerError
from tests.helpers.fake_judge import FakeJudge, grade_of

TEMPLATE = "{prompt}|{completion}|{payload.truth}"


def rows(count=5, each=4):
    return [
        Row(
            f"r{i}",
            (Message("user", f"q{i}"),),
            json.dumps({"truth": i}),
            tuple(Completion(f"a{i}{j}{{prompt}}", NO_TOKENS, True, "dataset") for j in range(each)),
        )
        for i in range(count)
    ]


def question(row, completion):
    return f"{row.messages[0].content}|{completion.text}|{json.loads(row.payload)['truth']}"


def score(judge, data, *, grade="number", share=1.0, attempts=3, seconds=5.0, concurrency=4, **questions):
    failures = Failures(share)
    failures.begin(sum(len(row.completions) for row in data))
    asked = Questions("judge", TEMPLATE, make_reader(grade, 1, 10), **questions)
    access = Access((judge.address,), concurrency=concurrency, attempts=attempts, answer_seconds=seconds)
    with JudgeReward(asked, access, failures) as reward:
        return reward.score(data)


def expected(data):
    return [[(grade_of(question(row, c)) - 1) / 9 for c in row.completions] for row in data]


def test_each_completion_is_graded_by_its_own_question():
    with FakeJudge(seconds=0.05) as judge:  # long enough that requests meet on a busy machine
        data = rows()
        found = score(judge, data, max_tokens=7)
    assert found.rewards == expected(data) and found.outcomes == {"ok": 20}
    assert {body["messages"][0]["content"] for body in judge.requests} == {
        question(row, c) for row in data for c in row.completions
    }
    assert {(b["model"], b["max_tokens"], b["temperature"], b["path"]) for b in judge.requests} == {
        ("judge", 7, 0.0, "/v1/chat/completions")
    }
    assert 1 < judge.most <= 4, judge.most


def test_equal_completions_of_a_prompt_are_graded_once():
    with FakeJudge() as judge:
        (row,) = rows(1, 1)
        twice = Row("r", row.messages, row.payload, row.completions * 7)
        assert score(judge, [twice]).rewards == [expected([row])[0] * 7]
    assert len(judge.requests) == 1


FAULTS = ("429", "500", "half", "no json", "reset", "error", "list")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_fails_now_and_then_is_asked_for_again(fault):
    with FakeJudge(fault=lambda number: fault if number in (1, 4) else "") as judge:
        data = rows(3)
        found = score(judge, data, attempts=4)
    assert found.rewards == expected(data), (fault, found)
    assert judge.faults[fault] >= 2 or fault == "reset"


def test_a_judge_that_answers_one_question_with_garbage_fails_on_that_completion_alone():
    data = rows(3)
    bad = {question(data[1], data[1].completions[2]): "It is lovely.", question(data[0], data[0].completions[0]): "77"}

    with FakeJudge(lambda asked, grade: bad.get(asked, f"grade {grade}")) as judge:
        found = score(judge, data, attempts=2)
    wanted = expected(data)
    wanted[1][2] = wanted[0][0] = None
    assert found.rewards == wanted and found.outcomes == {"ok": 10, NO_GRADE: 2}
    assert set(found.messages[NO_GRADE]) == {
        "an answer that has no grade: 'It is lovely.'",
        "an answer that has the grade 77, which is not from 1 to 10",
    }


def test_a_slow_judge_fails_on_the_completions_that_it_is_slow_on():
    with FakeJudge(fault=lambda number: "trickle" if number == 2 else "") as judge:
        data = rows(2)
        found = score(judge, data, attempts=1, seconds=0.8, concurrency=1)
    assert found.outcomes == {"ok": 7, NO_ANSWER: 1} and found.rewards[0][2] is None, found
    assert "gave no complete answer within 0.8 s" in next(iter(found.messages[NO_ANSWER]))


def test_a_judge_that_never_answers_stops_the_run_with_its_words():
    with FakeJudge(fault=lambda number: "400") as judge, pytest.raises(FailuresError) as caught:
        score(judge, rows(), share=0.1)
    line = str(caught.value)
    assert "3 of 20 completions so far have no reward" in line and "the engine said 400" in line and "\n" not in line


def test_an_answer_that_was_cut_off_has_no_grade():
    with FakeJudge(finish="length") as judge:
        found = score(judge, rows(1, 1), attempts=1)
    assert found.outcomes == {NO_GRADE: 1} and "cut off" in next(iter(found.messages[NO_GRADE]))


@pytest.mark.parametrize(
    "grade, answer, reward",
    [
        ("number", "7 of 10, so: 4", 1 / 3),
        ("number", "**Grade: 10**.", 1.0),
        ("number", "5.5", 0.5),
        ("number", "Grade: 7/10", 2 / 3),
        ("number", "**7** / 10.", 2 / 3),
        ("number", "I'd say 7 out of 10.", 2 / 3),
        ("number", "7 of 10", 2 / 3),
        ("number", "10 points: a grade of 7", 2 / 3),
        ("number", "v1.2 is a version", None),
        ("number", "none", None),
        ("number", "-3", None),
        ("json:grade", 'First {"grade": 1}. Then {"why": "{", "grade": 10} end', 1.0),
        ("json:grade", '{"grade": "5.5"}', 0.5),
        ("json:grade", '{"grade": true}', None),
        ("json:grade", '{"grade": [7]} ' + "{" * 9999, None),
        (r"^Grade: (\d+)$", "Grade: 1\nGrade: 10\nGrade: 3.", 1.0),
        (r"\d+", "1 2 10", 1.0),
        (r"(a)?x", "x", None),
        ("number", "nan", None),
        ("number", "9" * 400, None),
    ],
)
def test_a_grade_is_found_where_the_config_says(grade, answer, reward):
    read = make_reader(grade, 1, 10)
    if reward is None:
        with pytest.raises(BadAnswerError):
            read(answer)
    else:
        assert read(answer) == pytest.approx(reward)


def test_texts_in_fields_are_not_filled_again_and_json_in_a_template_stays():
    row = Row("r", (Message("user", "{completion}"),), json.dumps({"a": {"b": [1]}}))
    template = 'Say {"grade": 7}. {prompt} {completion} {payload.a.b} {payload}'
    assert fill(template, row, "{payload}") == 'Say {"grade": 7}. {completion} {payload} [1] {"a": {"b": [1]}}'


@pytest.mark.parametrize("template", ["{prompt}", "{completion} {promt}", "{completion.text}", "{completion} {answer}"])
def test_templates_with_other_fields_or_without_the_completion_are_refused(template):
    with pytest.raises(UserError, match="the judge's template has") as caught:
        check_template(template)
    assert "\n" not in str(caught.value) and caught.value.about == ("prompt",)


def test_a_row_without_what_the_template_asks_for_is_named():
    with pytest.raises(UserError, match="^row 'r': its payload is '{}', and the judge's template asks for {payload.x}"):
        fill("{completion} {payload.x}", Row("r", (), "{}"), "a")
