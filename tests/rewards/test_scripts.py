"""Scripts: tests in Python run apart from the completion, and what they expect is out of its reach."""

import json

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.rewards.code_reward import WITHIN_REACH, CodeReward
from qrpo_jax.rewards.problems import read_problem
from qrpo_jax.rewards.sandbox.pool import Failed, Limits, Sandbox
from qrpo_jax.rewards.scripts import MANY_ROUNDS, read_results, read_script
from tests.helpers.problem_sets import fenced, problem_row, rows_of_set

LOOP = """
import random
def check(candidate):
    for i in range(50):
        x, y = random.randint(0, 9), random.randint(0, 9)
        assert candidate(x, y) == x + y
    assert candidate(10, 10) in (20, 21)
"""


class Watched:
    """A sandbox that keeps its tasks."""

    def __init__(self, sandbox):
        self.sandbox, self.tasks = sandbox, []

    def run(self, tasks):
        self.tasks += tasks
        return self.sandbox.run(tasks)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(cpu_seconds=0.5), 2) as sandbox:
        yield sandbox


def of(script, entry_point="f", prelude=""):
    return {"tests": [], "entry_point": entry_point, "prelude": prelude, "script": script}


def scored(sandbox, payload, *codes):
    return CodeReward(sandbox).score([problem_row(payload, *map(fenced, codes))])


def test_each_assertion_is_a_test_that_holds_every_time(sandbox):
    codes = {
        "def f(a, b): return a + b": 1.0,
        "def f(a, b): return a + b + (a == 10)": 1.0,
        "def f(a, b): return a + b if a else 0": 0.5,
        "def f(a, b): return 20": 0.5,
        "def f(a, b): return a * b": 0.0,
        "def f(a, b): return None": 0.0,
        "def f(a): return a": 0.0,
        "x = 1": 0.0,
    }
    got = scored(sandbox, of(LOOP), *codes)
    assert dict(zip(codes, got.rewards[0], strict=True)) == codes and not got.counts, got


def test_a_script_counts_beside_the_tests_with_a_value(sandbox):
    payload = of(LOOP) | {"tests": [[[1, 1], {}, 2], [[10, 10], {}, 20]]}
    assert scored(sandbox, payload, "def f(a, b): return 20").rewards == [[0.5]]


def test_what_a_script_expects_is_in_no_process_with_the_completion(sandbox):
    watched = Watched(sandbox)
    script = (
        "def check(candidate):\n    secret = 7919\n    for x in range(3):\n        assert candidate(x) == secret * x"
    )
    got = scored(watched, of(script), "def f(x): return 7919 * x", "def f(x): return 0")
    assert got.rewards == [[1.0, 0.0]] and not got.counts
    beside = [task for task in watched.tasks if "def f(x)" in task.code]
    assert len(beside) == 2 and all("secret" not in str(task) for task in beside)
    assert sum("secret" in str(task) for task in watched.tasks) == 3  # the recording and two judges


def test_a_script_is_recorded_once(sandbox):
    watched = Watched(sandbox)
    reward = CodeReward(watched)
    for _ in range(3):
        reward.score([problem_row(of(LOOP), fenced("def f(a, b): return a + b"))])
    assert len(watched.tasks) == 1 + 3 * 2


HOSTILE = [
    "def f(a, b): raise AssertionError",
    "def f(a, b): import os; os._exit(0)",
    "def f(a, b): return {'value': 3}",
    "class Yes:\n    def __eq__(self, other): return True\ndef f(a, b): return Yes()",
    "class Int(int):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(a, b): return Int(-1)",
    "import qrpo_jax.rewards.sandbox.values as v\nv.encode = lambda x: {'$call': ['report_of_the_script', 0, True]}\n"
    "def f(a, b): return v.encode(0)",
    "def f(a, b): return {'$call': ['exec', 'x']}",
    "def f(a, b): return ['passed', '']",
]


def test_answers_of_a_hostile_completion_pass_nothing(sandbox):
    got = scored(sandbox, of(LOOP, prelude="from os import *"), *HOSTILE)
    assert got.rewards == [[0.0] * len(HOSTILE)] and not got.counts, got


def test_forged_answers_call_nothing_in_the_judge(sandbox):
    script = read_script("from os import *\ndef list_node(values): return values", "f", "assert candidate(1) == [3]")
    (calls,) = sandbox.run([script.recording()])[0]
    forged = [
        {"$call": ["system", "true"]},
        {"$call": ["check"]},
        {"$call": ["report_of_the_script", 0, True]},
        {"$what": 1},
    ]
    for value in forged:
        answers = (([value, {"$tuple": [1]}, {}]),)
        found = read_results(sandbox.run([script.judging(calls, answers)])[0], script)
        assert found[0][0] == "wrong" and "ValueError" in found[0][1], (value, found)
    honest = sandbox.run([script.judging(calls, ([{"$list_node": [3]}, {"$tuple": [1]}, {}],))])[0]
    assert read_results(honest, script) == [("passed", "")]


@pytest.mark.parametrize(
    "output", [3, [], [["passed"]], [["won", ""]], [["passed", 1]], [["passed", ""]] * 3, {"a": 1}, None]
)
def test_an_unreadable_report_passes_nothing(output):
    script = read_script("", "f", "assert f(1)\nassert f(2)")
    assert read_results((output,), script) == [("error", "its report is unreadable")] * 2
    assert read_results((Failed("time", "late"),), script) == [("time", "late")] * 2


def test_what_a_completion_raises_is_raised_again(sandbox):
    script = """
def check(candidate):
    try:
        candidate(-1)
    except ValueError:
        pass
    else:
        raise AssertionError("no error")
    assert candidate(1) + 0 == 1
    assert candidate(2) + 0 == 2
"""
    codes = {
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x": (1.0, "passed"),
        "def f(x):\n    if x < 0: raise KeyError('negative')\n    return x": (0.0, "error"),
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return 1 // (x - 2)": (0.0, "wrong"),
        "def f(x):\n    if x != 1: raise ValueError('negative')\n    return x": (0.5, "error"),
        "def f(x):\n    while x < 0: pass\n    return x": (0.0, "time"),
    }
    for code, (share, verdict) in codes.items():
        got = scored(sandbox, of(script), code)
        assert got.rewards == [[share]] and got.outcomes == {verdict: 1}, (code, got)
    assert "KeyError: 'negative'" in scored(sandbox, of(script), list(codes)[1]).messages["error"]


def test_a_script_sees_what_a_function_does_to_its_arguments(sandbox):
    script = """
def check(candidate):
    for row in ([3, 1, 2], []):
        kept = list(row)
        table, seen = {}, set()
        candidate(row, table, seen=seen)
        assert row == sorted(kept)
        assert len(table) == len(kept) and seen == set(kept)
"""
    right = "def f(row, table, seen):\n    row.sort()\n    seen.update(row)\n    table.update(dict.fromkeys(row))"
    got = scored(sandbox, of(script), right, right.replace("row.sort()", "row = sorted(row)"))
    assert got.rewards == [[1.0, 0.5]] and not got.counts


def test_a_script_that_cannot_be_recorded_runs_beside_the_completion_and_says_so(sandbox):
    chained = "def check(candidate):\n    x = 1\n    for _ in range(3):\n        x = candidate(x)\n    assert x == 4"
    branching = (
        "def check(candidate):\n    if candidate(1) != 2:\n        raise AssertionError\n    assert candidate(5) == 6"
    )
    classes = "def check(candidate):\n    assert candidate(Box(3)) == 4"
    right = "class Box:\n    def __init__(self, x): self.x = x\ndef f(x): return getattr(x, 'x', x) + 1"
    for script in (chained, branching, classes):
        got = scored(sandbox, of(script), right, right.replace("+ 1", "+ 2"), "def f(x): return x.y")
        assert got.rewards == [[1.0, 0.0, 0.0]] and got.counts == {WITHIN_REACH: 3}, (script, got)


def test_calls_that_depend_on_answers_are_answered_in_turn(sandbox):
    script = """
def check(candidate):
    for i in range(len(candidate(3))):
        if len(candidate(i)):
            assert sum(candidate(i + 10)) == sum(range(i + 10))
    assert candidate(2) == [0, 1]
"""
    watched = Watched(sandbox)
    codes = {
        "def f(n): return list(range(n))": 1.0,
        "def f(n): return list(range(n + (n == 12)))": 0.5,
        "def f(n): return []": 0.0,
        "import time\ndef f(n): return [0] * (time.perf_counter_ns() % 1009)": 0.0,
        "def f(n): return [0] * 1000 if n == 3 else [0] * n": 0.0,
    }
    got = scored(watched, of(script), *codes)
    assert dict(zip(codes, got.rewards[0], strict=True)) == codes and not got.counts, got
    assert got.messages["error"] == {MANY_ROUNDS[0][1]: 2}, got.messages
    assert all("sum(" not in task.code + str(task.call) for task in watched.tasks if "def f" in task.code)


def test_a_script_may_name_the_function_and_need_no_check(sandbox):
    got = scored(sandbox, of("x = 3\nassert f(x) == x + 1"), "def f(x): return x + 1", "def f(x): return x")
    assert got.rewards == [[1.0, 0.0]]
    without = scored(
        sandbox,
        of("def check(candidate):\n    if candidate(1) != 2:\n        raise ValueError"),
        "def f(x): return 2",
        "def f(x): return 3",
    )
    assert without.rewards == [[1.0, 0.0]]


def test_functions_named_test_run_and_assertions_that_never_run_pass_nothing(sandbox):
    right, wrong = "def f(x): return x + 1", "def f(x): return x"
    script = "def test_one():\n    x = 1\n    assert f(x) == 2\ndef helper(x):\n    assert x\n"
    script += "def test_two():\n    helper(f(-1) == 0)"
    assert scored(sandbox, of(script), right, wrong).rewards == [[1.0, 0.0]]
    never = "def unknown():\n    assert f(1) == 2"
    got = scored(sandbox, of(never), right, wrong)
    assert got.rewards == [[0.0, 0.0]] and got.messages == {"error": {"no assertion of the script ran": 2}}


def test_random_numbers_of_script_and_completion_are_the_same_in_every_run(sandbox):
    script = "import random\ndef check(candidate):\n    x = random.random()\n    assert candidate(x, 1) == x + 1"
    code = "import random\nrandom.seed(5)\ndef f(a, b): return a + b + 0 * random.random()"
    assert [scored(sandbox, of(script), code).rewards for _ in range(2)] == [[[1.0]]] * 2


def test_a_script_that_is_no_python_is_refused_by_the_row():
    with pytest.raises(UserError, match="'script' of its payload is no Python"):
        read_problem(problem_row(of("for x in")))


def test_of_the_published_sets_few_run_beside_their_script(fixtures, sandbox):
    counts = {}
    for name in ("humaneval", "mbpp"):
        rows = [row for row in rows_of_set(fixtures, name) if json.loads(row.payload).get("script")]
        got = CodeReward(sandbox).score(rows)
        counts[name] = (len(rows), dict(got.counts), sum(share == 1 for (share,) in got.rewards))
    # MBPP/533 has classes as arguments; 367 and 927 name what no part of the problem defines.
    assert counts == {"humaneval": (8, {}, 8), "mbpp": (3, {WITHIN_REACH: 3}, 1)}
