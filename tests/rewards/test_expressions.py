"""Reward `math_verify`: expressions that are equal pass, and hostile text costs its limit and nothing else."""

import importlib.util
import json
import sys

import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards import expressions
from qrpo_jax.rewards.code_reward import Judged
from qrpo_jax.rewards.sandbox.pool import Limits, Sandbox

needs_library = pytest.mark.skipif(
    importlib.util.find_spec(expressions.PACKAGE) is None, reason="needs math-verify (extra 'math')"
)


def row(answer, *texts):
    completions = tuple(Completion(text, NO_TOKENS, True, "dataset") for text in texts)
    return Row("r", (Message("user", "q"),), json.dumps({"answer": answer}), completions)


@pytest.fixture(scope="module")
def sandbox():
    limits = Limits(cpu_seconds=2.0, memory_mb=512)
    with Sandbox(limits, 1, python=sys.executable, preload=(expressions.PACKAGE,), require="limits") as sandbox:
        yield sandbox


EQUAL = [
    ("18", "#### 18"),
    (18, r"\boxed{18.0}"),
    (r"\frac{1}{2}", r"so \boxed{0.5}"),
    ("1/2", r"$\frac12$"),
    ("x+1", r"\boxed{1+x}"),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    (r"$\sqrt{8}$", r"\boxed{2\sqrt{2}}"),
    (r"\boxed{-3}", "$x=-3$"),
]
OTHER = {"wrong": r"$\frac13$", "no answer": "nothing", "time": r"\boxed{9^{9^{9^{9^9}}}}"}


@needs_library
def test_equal_expressions_pass_and_others_say_why_not(sandbox):
    got = expressions.judge(sandbox, [row(answer, text) for answer, text in EQUAL])
    assert got == [[Judged(1.0, "passed")]] * len(EQUAL), list(zip(EQUAL, got, strict=True))
    (got,) = expressions.judge(sandbox, [row(r"\frac{1}{2}", *OTHER.values(), "$0.5$")])
    assert [(one.verdict, one.reward) for one in got] == [*((name, 0.0) for name in OTHER), ("passed", 1.0)], got
    assert expressions.judge(sandbox, [row("{", "18")])[0][0].reward == 0


HOSTILE = [
    r"\boxed{10^{10^{10}}}",
    r"\boxed{__import__('os')._exit(0)}",
    "(" * 5000,
    r"\boxed{" + r"\frac{1}{" * 500 + "}" * 501,
    "9" * 20_000,
    "\x00\ud7ff$",
]


@needs_library
def test_hostile_text_passes_nothing_and_the_next_completion_is_right(sandbox):
    (got,) = expressions.judge(sandbox, [row("17", *HOSTILE, r"\boxed{17}")])
    assert [one.reward for one in got] == [0.0] * len(HOSTILE) + [1.0], got


def test_an_output_of_another_kind_is_an_error():
    class Forging:
        def run(self, tasks):
            return [(1,), (True,), ([],), (None,), ("wrong",), ("passed",)][: len(tasks)]

    (got,) = expressions.judge(Forging(), [row("1", *"abcdef")])
    error = Judged(0.0, "error", "another output")
    assert got == [error] * 4 + [Judged(0.0, "wrong"), Judged(1.0, "passed")], got


def test_without_the_library_the_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(expressions, "PACKAGE", "no_such_library")
    with pytest.raises(UserError, match=r"needs the library math-verify.*pip install -e '.\[math\]'") as caught:
        expressions.check_package()
    assert "\n" not in str(caught.value) and caught.value.about == ("name",)


@pytest.mark.parametrize(
    "payload", ["", "[]", "not json", "{}", '{"answer": ""}', '{"answer": [1]}', '{"answer": true}']
)
def test_a_row_without_an_answer_is_refused_in_one_line(payload):
    bad = Row("r", (Message("user", "q"),), payload)
    with pytest.raises(UserError, match=r"^data.jsonl, line 7: its payload is .*reward 'math_verify' needs") as caught:
        expressions.read_expression(bad, "data.jsonl, line 7")
    assert "\n" not in str(caught.value)
