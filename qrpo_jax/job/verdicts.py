"""Verdicts on completions among the counts of a unit: their shares, and the first lines of what failing ones said.

Counts of units add up by name, so a first line is a name, too: "first line, error: NameError: name 'x' is not defined".
"""

from collections import Counter
from collections.abc import Mapping

from qrpo_jax.job.job import Job
from qrpo_jax.report.terminal import one_line
from qrpo_jax.rewards.code_reward import PASSED, WITHIN_REACH
from qrpo_jax.rewards.scores import FAILED, OK, Scores

COMPLETIONS = "completions: "
FIRST_LINE = "first line, "
ORDER = (PASSED, "wrong", "no answer", "no code", "error", "time", "memory", "output", "forbidden")
UNIT_LINES = 20  # of a verdict that a unit keeps
SHOWN_LINES = 5  # of a verdict, of all units
CHARACTERS = 120  # of a line

Counts = dict[str, int]
FirstLines = dict[str, dict[str, int]]  # for each verdict its most frequent first lines, and their numbers


def counts_of(scores: Scores) -> Counts:
    """The counts of a unit: completions by verdict, first lines, and what else the reward counted."""
    counts = {f"{COMPLETIONS}{verdict}": number for verdict, number in scores.outcomes.items()}
    for verdict, messages in scores.messages.items():
        lines: Counter[str] = Counter()
        for message, number in messages.items():
            if line := first_line(message):
                lines[line] += number
        counts |= {f"{FIRST_LINE}{verdict}: {line}": number for line, number in _most(lines, UNIT_LINES).items()}
    return counts | dict(scores.counts)


def first_line(message: str) -> str:
    """The first line of an untrusted message, with invisible characters spelled out, and cut.

    >>> first_line("NameError:" + chr(27) + "[2J x" + chr(10) + "more")
    'NameError:⟨U+001B⟩[2J x'
    """
    start = message.strip()[: 4 * CHARACTERS].splitlines()  # no more is looked at than can be shown
    line = one_line(start[0]) if start else ""
    return line if len(line) <= CHARACTERS else f"{line[: CHARACTERS - 1]}…"


def parted(counts: Mapping[str, int]) -> tuple[Counts, FirstLines]:
    """Counts without first lines, and the most frequent first lines of each verdict.

    Numbers of lines are of those that units kept, so a line that was rare in some units may have been more frequent.
    """
    others, lines = {}, dict[str, Counter[str]]()
    for name, number in counts.items():
        if name.startswith(FIRST_LINE):
            found = name.removeprefix(FIRST_LINE)
            start = FAILED if found.startswith(FAILED) else ""  # verdicts that have a colon themselves
            verdict, _, line = found.removeprefix(start).partition(": ")
            lines.setdefault(start + verdict, Counter())[line] += number
        else:
            others[name] = number
    return others, {verdict: _most(lines[verdict], SHOWN_LINES) for verdict in sorted(lines, key=_place)}


def by_verdict(counts: Mapping[str, int]) -> Counts:
    """Completions by verdict, in a fixed order; empty where there are no verdicts, as of a reward that is a number."""
    found = all_verdicts(counts)
    return {} if set(found) <= {OK} else {verdict: found[verdict] for verdict in sorted(found, key=_place)}


def all_verdicts(counts: Mapping[str, int]) -> Counts:
    """Completions by verdict, also by those of rewards that are numbers."""
    names = [name for name, number in counts.items() if name.startswith(COMPLETIONS) and number]
    return {name.removeprefix(COMPLETIONS): counts[name] for name in names if name != WITHIN_REACH}


def shares(counts: Mapping[str, int]) -> str:
    """The share of each verdict; "" without verdicts.

    >>> shares({"completions: time": 1, "completions: passed": 3, "prompts": 2})
    'passed 75 %, time 25 %'
    """
    verdicts = by_verdict(counts)
    total = sum(verdicts.values())
    return ", ".join(f"{verdict} {percent(number / total)}" for verdict, number in verdicts.items())


def percent(share: float) -> str:
    """A share in whole percent; none but 0 is written as 0, and none but 1 as 100.

    >>> percent(0.0004), percent(0.9999), percent(0.255), percent(1.0)
    ('<1 %', '>99 %', '26 %', '100 %')
    """
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{share:.0%}".replace("%", " %")


def say(job: Job, title: str, counts: Mapping[str, int], lines: FirstLines) -> None:
    """Prints the shares of verdicts, and what the failing completions said most often; nothing without verdicts."""
    verdicts = by_verdict(counts)
    if not verdicts:
        return
    job.say(f"{title}: {sum(verdicts.values()):,} completions: {shares(counts)}")
    if counts.get(WITHIN_REACH):
        job.say(f"{title}:   {counts[WITHIN_REACH]:,} ran with expected values within their reach (docs/data.md)")
    for verdict, numbers in lines.items():
        for line, number in numbers.items():
            job.say(f"{title}:   {verdict}: {number:,} x {line}")


def _most(lines: Counter[str], most: int) -> dict[str, int]:
    """The most frequent lines; those of equal number in the order of the alphabet, whichever came first."""
    return dict(sorted(lines.items(), key=lambda item: (-item[1], item[0]))[:most])


def _place(verdict: str) -> tuple[int, str]:
    return (ORDER.index(verdict) if verdict in ORDER else len(ORDER), verdict)
