"""Problems with tests: published solutions pass their tests, other code does not, and payloads are checked."""

import dataclasses
import json

import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.problems import read_problem
from qrpo_jax.rewards.rewards import Reward
from qrpo_jax.rewards.sandbox.pool import Limits
from tests.helpers.tables import opened

TESTS = [[[3], {"b": 4}, 7], [[1, 2], {}, 3], [[0, 0], {}, 1]]
PAYLOAD = {"tests": TESTS, "entry_point": "Solution().add", "prelude": "from math import *"}
ADD = "class Solution:\n    def add(self, a, b):\n        return a + b + int(sin(0))\n"


def row(payload, *texts):
    completions = tuple(Completion(text, NO_TOKENS, True, "dataset") for text in texts)
    return Row("r", (Message("user", "q"),), json.dumps(payload), completions)


def scored(rows, memory_mb=256):
    with Reward("tests", limits=Limits(memory_mb=memory_mb), workers=2) as reward:
        return reward.score(rows)


def test_a_completion_is_its_first_block_of_code_and_passes_a_share_of_the_tests():
    block = f"Adding.\n```python\n{ADD}```\nAnd:\n```python\nno code\n```"
    got = scored([row(PAYLOAD, block, ADD, f"```\n{ADD}```", "```python\ndef (\n```", "```python\nx = 1\n```")])
    assert got.rewards == [[2 / 3, 0.0, 2 / 3, 0.0, 0.0]]
    assert got.outcomes == {"ok": 3, "no code block": 1, "error": 1}


def test_a_wrong_name_of_an_argument_fails_its_test_alone():
    renamed = ADD.replace("a, b", "a, c").replace("a + b", "a + c")
    assert scored([row(PAYLOAD, f"```python\n{renamed}```")]).rewards == [[1 / 3]]


def test_published_solutions_pass_their_tests_and_each_others_fail(fixtures):
    source = opened(f"jsonl:{fixtures}/humaneval/*.gz")
    rows = source.rows(range(0, source.count, 3))
    assert len(rows) > 40 and scored(rows).rewards == [[1.0]] * len(rows)
    others = [dataclasses.replace(a, completions=b.completions) for a, b in zip(rows, rows[1:], strict=False)]
    assert max(rewards[0] for rewards in scored(others).rewards) == 0


@pytest.mark.parametrize(
    "payload, message",
    [
        ({"tests": TESTS}, "row 'r': its payload is .*, reward 'tests' needs"),
        (PAYLOAD | {"tests": [[[3, 4], 7]]}, "reward 'tests' needs .*, or those of the function"),
        (PAYLOAD | {"tests": []}, "reward 'tests' needs"),
        (PAYLOAD | {"entry_point": 3}, "'entry_point' and 'prelude' of its payload must be text"),
        ([1], "reward 'tests' needs"),
    ],
)
def test_payloads_of_another_form_are_refused(payload, message):
    with pytest.raises(UserError, match=message):
        read_problem(row(payload))
