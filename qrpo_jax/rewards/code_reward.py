"""The reward "tests": the share of its prompt's tests that a completion's code passes, and a verdict.

Every distinct completion of a prompt runs once, in a process of its own. Expected values stay outside that process: the
sandbox returns what the code computed, so nothing that the code prints or returns can claim a pass. `scripts` says how
that is for tests that are Python, and when it cannot be.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from qrpo_jax.data.rows import Row
from qrpo_jax.rewards import scripts
from qrpo_jax.rewards.problems import Problem, Test, read_problem
from qrpo_jax.rewards.sandbox.tasks import Failed, Outputs, Task
from qrpo_jax.rewards.scores import Scores
from qrpo_jax.rewards.scripts import Results, Script

PASSED = "passed"
NO_CODE = "no code"
WITHIN_REACH = "completions: expected values were within reach"
MOST_MESSAGES = 5  # of a verdict
MESSAGE = 120  # characters
SHOWN = 40  # characters of a value in a message

Key = tuple[int, str]  # number of a row, text of a completion


class Runner(Protocol):
    """A sandbox, as far as this reward uses it."""

    def run(self, tasks: Sequence[Task]) -> list[Outputs]:
        """The outputs of each task."""
        ...


class Judged(NamedTuple):
    """What became of a completion.

    Attributes:
      verdict: "passed" if all tests are; else why the first one is not: "wrong", "error", "time", "memory", "output",
        "forbidden"; or "no code".
      message: of that test, printable.
      within_reach: its process could read expected values.
    """

    reward: float
    verdict: str
    message: str = ""
    within_reach: bool = False


class CodeReward:
    """Scores rows in a sandbox.

    Args:
      block: "first" or "last": which block of a completion is its code.
      max_tests: of each prompt the first tests, so many; 0: all.
    """

    def __init__(self, sandbox: Runner, *, block: str = "first", max_tests: int = 0) -> None:
        self._sandbox, self._block, self._max_tests = sandbox, block, max_tests
        self._calls: dict[Script, str | None] = {}  # of scripts, see `scripts.recorded`

    def score(self, rows: Sequence[Row]) -> Scores:
        """Rewards of all completions of `rows`, verdicts as outcomes, and messages.

        Raises:
          UserError: a row's payload has no tests.
        """
        problems = [read_problem(row).first(self._max_tests) for row in rows]
        codes: dict[Key, str] = {}
        for index, row in enumerate(rows):
            for completion in row.completions:
                code = problems[index].code(completion.text, self._block)
                if code is not None:
                    codes[index, completion.text] = code
        valued = [key for key in codes if problems[key[0]].tests]
        tasks = [problems[key[0]].task(codes[key]) for key in valued]
        outputs = dict(zip(valued, self._sandbox.run(tasks), strict=True))
        scripted, within_reach = self._run_scripts(problems, codes)
        judged: dict[Key, Judged] = {}
        for key in codes:
            tests = problems[key[0]].tests
            results = [result(test, one) for test, one in zip(tests, outputs.get(key, ()), strict=True)]
            judged[key] = judge(results + scripted.get(key, []), key in within_reach)
        none = Judged(0.0, NO_CODE)
        return summary([[judged.get((index, c.text), none) for c in row.completions] for index, row in enumerate(rows)])

    def _run_scripts(self, problems: Sequence[Problem], codes: dict[Key, str]) -> tuple[dict[Key, Results], set[Key]]:
        """Results of the scripts of problems, and the completions that ran in one process with theirs."""
        of = {key: script for key in codes if (script := problems[key[0]].script)}
        self._record(of.values())
        calls = {key: found for key, script in of.items() if (found := self._calls[script]) is not None}
        together = [key for key in of if key not in calls]
        results: dict[Key, Results] = {}
        for _ in range(scripts.ROUNDS):
            answering = [scripts.calls_task(of[key], codes[key], found) for key, found in calls.items()]
            answers = self._sandbox.run(answering)
            judging = [of[key].judging(calls[key], one) for key, one in zip(calls, answers, strict=True)]
            judged = dict(zip(calls, self._sandbox.run(judging), strict=True))
            calls = {key: found for key, one in judged.items() if (found := scripts.other_calls(one)) is not None}
            results |= {key: scripts.read_results(one, of[key]) for key, one in judged.items() if key not in calls}
        results |= dict.fromkeys(calls, scripts.MANY_ROUNDS)
        tasks = [scripts.together_task(of[key], codes[key]) for key in together]
        for key, outputs in zip(together, self._sandbox.run(tasks), strict=True):
            results[key] = scripts.read_results(outputs, of[key])
        return results, set(together)

    def _record(self, wanted: Iterable[Script]) -> None:
        """Records the calls of scripts whose calls are not known yet."""
        if len(self._calls) > scripts.MOST_SCRIPTS:
            self._calls.clear()
        new = list(dict.fromkeys(script for script in wanted if script not in self._calls))
        for script, outputs in zip(new, self._sandbox.run([script.recording() for script in new]), strict=True):
            self._calls[script] = scripts.recorded(outputs)


def result(test: Test, output: Any) -> tuple[str, str]:
    """What became of a test: "passed", or why not; and a message."""
    if test.passes(output):
        return PASSED, ""
    if isinstance(output, Failed):
        return output.reason, output.message
    wanted = test.expected[0]
    return "wrong", f"{_shown(output)} instead of {_shown(wanted)}"


def judge(results: Results, within_reach: bool = False) -> Judged:
    """The reward and the verdict of a completion, from what became of its tests."""
    failed = [one for one in results if one[0] != PASSED]
    reward = (len(results) - len(failed)) / max(1, len(results))
    return Judged(reward, *(failed[0] if failed else (PASSED, "")), within_reach)


def summary(judged: Sequence[Sequence[Judged]]) -> Scores:
    """The rewards of rows, and counts of verdicts and messages."""
    every = [one for row in judged for one in row]
    lines: dict[str, Counter[str]] = {}
    for one in every:
        if one.verdict not in (PASSED, NO_CODE):
            lines.setdefault(one.verdict, Counter())[first_line(one.message)] += 1
    within_reach = sum(one.within_reach for one in every)
    return Scores(
        [[one.reward for one in row] for row in judged],
        [[one.verdict for one in row] for row in judged],
        {WITHIN_REACH: within_reach} if within_reach else {},
        {verdict: dict(counter.most_common(MOST_MESSAGES)) for verdict, counter in lines.items()},
    )


def first_line(message: str) -> str:
    """The first line of an untrusted message that has any text, without what a terminal would not print.

    >>> first_line("ValueError: \\x1b[31mred\\nmore")
    'ValueError: [31mred'
    """
    lines = ("".join(filter(str.isprintable, line)) for line in message.splitlines())
    return next((line for line in lines if line.strip()), "")[:MESSAGE]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = json.dumps(value[: 2 * SHOWN])
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
