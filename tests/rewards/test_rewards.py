"""Rewards: the share of tests that the code passes, or the number that a function returns."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.sources.programs import program_row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards import rewards
from qrpo_jax.rewards.problems import read_problem
from qrpo_jax.rewards.rewards import make_reward
from qrpo_jax.rewards.sandbox.pool import Limits, Sandbox
from qrpo_jax.rewards.texts import dialogue_share

NONE = np.zeros(0, np.int32)


def row(*texts, tests=(((1, 2), 3), ((3, 4), 7), ((5, 5), 10), ((0, 6), 6))):
    completions = tuple(Completion(text, NONE, True, "reference") for text in texts)
    return Row("r", (Message("user", "add"),), json.dumps({"tests": tests}), completions, np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def tests_reward():
    with make_reward("tests", sandbox=Sandbox(Limits(cpu_seconds=0.5), 1)) as reward:
        yield reward


def test_reward_is_the_share_of_tests_that_the_code_passes(tests_reward):
    expected = {
        "a + b": 1.0,
        "b + a": 1.0,
        "a + b if a < b else 0": 0.75,
        "10": 0.25,
        "a - b": 0.0,
        "(a": 0.0,
        "": 0.0,
        "1 // 0": 0.0,
        "[3, 7]": 0.0,
        "float(a + b)": 0.0,  # equal, but of another type
    }
    scores = tests_reward.score([row(*expected)])
    assert dict(zip(expected, scores.rewards[0], strict=True)) == expected
    assert sum(scores.outcomes.values()) == len(expected)


HOSTILE = [
    "exit(0)",
    "__import__('os')._exit(0)",
    "print('[3, 7, 10, 6]')",
    "a\n    while True: pass",
    "' ' * 10**10",
    "type('X', (int,), {'__eq__': lambda s, o: True})(0)",
    "__import__('os').kill(__import__('os').getppid(), 9)",
    "__import__('sys').stdout.write('ok')",
    "(lambda f: f(f))(lambda f: f(f))",
]


def test_hostile_code_earns_nothing_and_the_next_completion_is_scored_correctly(tests_reward):
    scores = tests_reward.score([row("a + b", *HOSTILE, "a + b")])
    assert scores.rewards[0] == [1.0, *[0.0] * len(HOSTILE), 1.0], dict(
        zip(HOSTILE, scores.rewards[0][1:], strict=False)
    )


def test_solutions_of_the_programs_pass_all_their_tests(tests_reward):
    rows = []
    for split, index in itertools.product(programs.SPLITS, range(11)):
        solution = Completion(programs.problem(0, split, index).solution, NONE, True, "policy")
        rows.append(dataclasses.replace(program_row(0, split, index), completions=(solution,)))
    scores = tests_reward.score(rows)
    assert scores.rewards == [[1.0]] * len(rows) and scores.outcomes == {"passed": len(rows)}


def test_equal_completions_of_other_prompts_are_scored_by_their_own_tests(tests_reward):
    other = row("a + b", tests=(((1, 2), 4),))
    assert tests_reward.score([row("a + b"), other]).rewards == [[1.0], [0.0]]


@pytest.mark.parametrize("payload", ["", "{}", "[]", '{"tests": []}', '{"tests": [1]}', "not json"])
def test_a_row_without_tests_is_refused_in_one_line(tests_reward, payload):
    bad = dataclasses.replace(row("a"), payload=payload)
    with pytest.raises(ValueError, match="row 'r': its payload is") as caught:
        tests_reward.score([bad])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, share",
    [
        ("", 0.0),
        ("no words spoken", 0.0),
        ('He said, "Come here."', 0.5),
        ('"All of it."', 1.0),
        ('"One" and "two" here', 0.5),
        ('never "closed again', 0.0),
        ('"" empty', 0.0),
        ('"line\nbreak" outside', 2 / 3),
    ],
)
def test_dialogue_share_counts_words_between_quotes(text, share):
    assert dialogue_share("", text, "") == pytest.approx(share)


def test_dialogue_share_is_at_most_one_for_any_quotes():
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = "".join(rng.choice(list('ab" \n'), 23))
        assert 0 <= dialogue_share("", text, "") <= 1, text


def shout(prompt, completion, payload):
    return float(completion.isupper()) + len(prompt) / 10 + (payload == "{}") / 100


def test_a_user_function_is_called_with_prompt_completion_and_payload():
    data = dataclasses.replace(row("A", "b"), payload="{}")
    with make_reward(f"{__name__}:shout") as reward:
        scores = reward.score([data])
    np.testing.assert_allclose(scores.rewards, [[1.31, 0.31]])
    assert scores.outcomes == {"ok": 2} and reward.protections == {}


@pytest.mark.parametrize(
    "name, message",
    [
        ("test", "reward is 'test'; allowed: tests, answer, math_verify, model, dialogue_share"),
        ("no_such_module:f", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json:__name__", "is not a function"),
        (":f", "cannot be imported"),
        ("math:sqrt", r"does not take \(prompt, completion, payload\)"),
    ],
)
def test_unknown_rewards_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        rewards.check_name(name)
    assert "\n" not in str(caught.value) and caught.value.about == ("name",)


def test_a_reward_that_is_no_number_is_named_with_its_row(tmp_path, monkeypatch):
    (tmp_path / "praise.py").write_text("def score(prompt, completion, payload):\n    return 'good'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with make_reward("praise:score") as reward, pytest.raises(UserError) as caught:
        reward.score([row("a + b")])
    assert str(caught.value) == "reward 'praise:score' returned 'good' for row 'r', completion 0; it must be a number"


@pytest.mark.parametrize(
    "body, message",
    [
        ("return None", "returned None for row 'r', completion 0; it must be a number"),
        ("return '0.5'", "returned '0.5' for row 'r', completion 0; it must be a number"),
        ("return b'1'", "returned b'1' for row 'r', completion 0; it must be a number"),
        ("return [1]", "returned [1] for row 'r', completion 0; it must be a number"),
        ("import numpy; return numpy.ones(1)", "returned array([1.]) for row 'r', completion 0; it must be a number"),
        ("return 1j", "returned 1j for row 'r', completion 0; it must be a number"),
        (
            "return float('nan')",
            "returned nan for row 'r', completion 0; it must be finite, and at most 3.4e+38 in size",
        ),
        ("return 1e39", "returned 1e+39 for row 'r', completion 0; it must be finite, and at most 3.4e+38 in size"),
        ("return 10 ** 5000", "returned a int for row 'r', completion 0; it must be a number"),
        ("return ('x' * 5000,)", "returned ('xxxxx"),
        ("return {}['x']", "failed for row 'r', completion 0 (KeyError: 'x' in FILE, line 2)"),
        ("raise SystemExit(0)", "failed for row 'r', completion 0 (SystemExit: 0 in FILE, line 2)"),
        ("import os; os._exit(0)", "failed for row 'r', completion 0 (Exit: os._exit(0) in FILE, line 2)"),
        ("yield 1", "is a generator; it must return a number"),
    ],
)
def test_a_function_that_gives_no_reward_is_one_line(tmp_path, monkeypatch, body, message):
    name = f"a_reward_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def score(prompt, completion, payload):\n    {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught, make_reward(f"{name}:score") as reward:
        reward.score([row("a + b")])
    line = str(caught.value)
    expected = f"reward '{name}:score' {message.replace('FILE', str(tmp_path / f'{name}.py'))}"
    assert line.startswith(expected) and "\n" not in line and len(line) < 400, line
    assert caught.value.about == ("name",)


@pytest.mark.parametrize(
    "tests",
    [[["ab", 3]], ["ab"], {"ab": 1}, [[[1], 3]], [[[1, 2, 3], 3]], [[{"a": 1, "b": 2}, 3]], None, [[[1, 2], 3], 5]],
)
def test_tests_of_another_form_are_refused_by_the_row(tests):
    bad = dataclasses.replace(row("a"), payload=json.dumps({"tests": tests}))
    with pytest.raises(UserError, match="^data.jsonl, line 7: its payload is .*the values of a function of a and b"):
        read_problem(bad, "data.jsonl, line 7")
