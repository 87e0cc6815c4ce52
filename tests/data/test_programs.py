"""Laws of the embedded task: what its problems promise to the stages that use them."""

import ast
import inspect
from typing import Any

import numpy as np
import pytest

from qrpo_jax.data import programs

COUNT = 211
GOLDEN_PROMPT = "Write f(a, b) using `min`:\nf(0,6)=0\nf(0,1)=0\nf(4,1)=1\nf(4,4)=4"
GOLDEN_ANSWER = ("min(a, b)", ((3, 6), 3))


def _problems(split, seed=0, count=COUNT):
    return [programs.problem(seed, split, index) for index in range(count)]


def _share_passed(expression, problem):
    """Reward of a trusted expression, evaluated in this process."""
    known: dict[str, Any] = {"max": max, "min": min, "abs": abs, "__builtins__": {}}
    exec(compile(programs.program(expression), "<program>", "exec"), known)
    passed = [known["f"](*arguments) == expected for arguments, expected in problem.tests]
    return sum(passed) / len(passed)


@pytest.mark.parametrize("split", programs.SPLITS)
def test_a_problem_depends_on_seed_split_and_index_only(split):
    forwards = [programs.problem(3, split, index) for index in range(29)]
    backwards = [programs.problem(3, split, index) for index in reversed(range(29))]
    assert forwards == backwards[::-1]
    assert forwards != [programs.problem(4, split, index) for index in range(29)]


def test_the_first_problem_is_the_same_on_every_machine():
    """Golden: update it when the task is changed on purpose, and measure the main job again."""
    problem = programs.problem(0, "eval", 0)
    assert problem.prompt == GOLDEN_PROMPT
    assert (problem.solution, problem.tests[0]) == GOLDEN_ANSWER


def test_no_prompt_is_in_two_splits_whatever_the_seeds():
    owners: dict[str, str] = {}
    for split in programs.SPLITS:
        for seed in (0, 1, 2):
            for problem in _problems(split, seed):
                assert programs.bucket(problem.prompt) in programs.SPLITS[split]
                assert owners.setdefault(problem.prompt, split) == split
    owned = [owner for buckets in programs.SPLITS.values() for owner in buckets]
    assert sorted(owned) == list(range(programs.BUCKETS)), owned


@pytest.mark.parametrize("split", programs.SPLITS)
def test_a_solution_passes_every_hidden_call_and_every_shown_one(split):
    for problem in _problems(split):
        assert _share_passed(problem.solution, problem) == 1.0, problem
        shown = [line.split("=") for line in problem.prompt.splitlines()[1:]]
        assert len(shown) == programs.EXAMPLES
        hidden = {f"f({a},{b})": value for (a, b), value in problem.tests}
        assert len(hidden) == programs.TESTS
        assert not hidden.keys() & {call for call, _ in shown}, problem
        replayed = problem._replace(tests=tuple((ast.literal_eval(call[1:]), int(value)) for call, value in shown))
        assert _share_passed(problem.solution, replayed) == 1.0, problem


def test_every_function_has_a_source_that_computes_its_table():
    grid = [(a, b) for a in range(programs.DIGITS) for b in range(programs.DIGITS)]
    tables = set()
    for kind, members in programs.functions().items():
        for function in members:
            tests = tuple((cell, int(function.table[cell])) for cell in grid)
            problem = programs.Problem("", function.text, function.text, tests)
            assert _share_passed(function.text, problem) == 1.0, (kind, function.text)
            assert _share_passed(function.draft, problem) < 1.0, (kind, function.draft)
            tables.add(tests)
    assert len(tables) == sum(map(len, programs.functions().values())), "two functions agree"


@pytest.mark.parametrize("split", programs.SPLITS)
def test_the_vocabulary_writes_every_prompt_and_answer(split):
    words = programs.vocabulary()
    assert len(set(words)) == len(words)
    assert [len(word) for word in words] == sorted(map(len, words), reverse=True)
    for problem in _problems(split):
        for text in (problem.prompt, problem.solution, problem.demonstration):
            assert set(text) <= set("".join(programs.vocabulary()))
            count, rest = 0, text
            while rest:
                word = next(word for word in words if rest.startswith(word))
                count, rest = count + 1, rest[len(word) :]
            assert count < (20 if text == problem.prompt else 13), (count, text)


@pytest.mark.parametrize("answer", ["0", "1", "a", "b", "max(a, b)", "min(a, b)", "a + b", "a - b"])
def test_one_answer_to_everything_earns_little(answer):
    mean = np.mean([_share_passed(answer, problem) for problem in _problems("eval", count=1009)])
    assert mean < 0.2, (answer, mean)


def test_drafts_are_as_frequent_as_said_and_earn_little():
    problems = _problems("sft", count=2003)
    drafts = [problem for problem in problems if problem.demonstration != problem.solution]
    share = len(drafts) / len(problems)
    assert abs(share - programs.DRAFTS) < 0.04, share
    mean = np.mean([_share_passed(problem.demonstration, problem) for problem in drafts])
    assert 0.1 < mean < 0.3, mean


@pytest.mark.parametrize(("split", "index"), [("test", 0), ("eval", -1)])
def test_a_wrong_split_or_index_is_refused_in_one_line(split, index):
    with pytest.raises(ValueError, match="change the") as error:
        programs.problem(0, split, index)
    assert "\n" not in str(error.value)


def test_the_task_never_runs_text():
    called = {
        node.func.id
        for node in ast.walk(ast.parse(inspect.getsource(programs)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__"}, called
