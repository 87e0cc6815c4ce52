"""Python functions as rewards: the kinds of functions give the same rows, and a failing completion harms no other."""

import asyncio
import contextlib
import math
import threading
import time

import numpy as np
import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import FailuresError, UserError
from qrpo_jax.faults.time_limit import TimeLimit
from qrpo_jax.rewards.failures import Failure, Failures
from qrpo_jax.rewards.functions import find_function
from qrpo_jax.rewards.rewards import make_reward
from qrpo_jax.rewards.scores import NO_NUMBER, NO_TIME

THIS = __name__


def make_rows(count=7, each=5):
    """Rows of which some have no completions."""
    return [
        Row(
            f"r{i}",
            (Message("user", f"prompt {i}"),),
            str(i),
            tuple(Completion(f"text {i} {j}", NO_TOKENS, True, "dataset") for j in range(each * (i % 3 > 0))),
        )
        for i in range(count)
    ]


def number(prompt, completion, payload):
    """Depends on all three, and ends as the last word of a completion says."""
    if completion.endswith("raise"):
        raise ValueError(f"no {completion.split()[0]}")
    if completion.endswith("nan"):
        return math.nan
    if completion.endswith("text"):
        return "good"
    return len(prompt) + sum(map(ord, completion)) / 1000 + int(payload or 0) * 100


def plain(prompt, completion, payload):
    if completion.endswith("hang"):
        time.sleep(60)
    return number(prompt, completion, payload)


def batch(prompts, completions, payloads):
    return [plain(*one) for one in zip(prompts, completions, payloads, strict=True)]


def array(*, payloads, completions, prompts):
    return np.asarray(batch(prompts, completions, payloads))


async def later(prompt, completion, payload):
    await asyncio.sleep(60 if completion.endswith("hang") else len(completion) % 3 / 1000)
    return number(prompt, completion, payload)


async def later_batch(prompts, completions, payloads):
    return [await later(*one) for one in zip(prompts, completions, payloads, strict=True)]


async def blocking(prompt, completion, payload):
    await asyncio.sleep(0.01)
    if completion.endswith("hang"):
        time.sleep(60)
    await asyncio.sleep(0.15)
    return number(prompt, completion, payload)


class Judge:
    async def __call__(self, prompt, completion, payload):
        return await later(prompt, completion, payload)


judge = Judge()
KINDS = ("plain", "batch", "later", "later_batch", "judge", "blocking")


def score(name, rows, share=1.0, **options):
    failures = Failures(share)
    failures.begin(sum(len(row.completions) for row in rows))
    with make_reward(f"{THIS}:{name}", failures=failures, **options) as reward:
        return reward.score(rows)


@pytest.mark.parametrize("options", [{}, {"batch": 1, "concurrency": 1}, {"batch": 3, "concurrency": 7}])
@pytest.mark.parametrize("name", [*KINDS, "array"])
def test_every_kind_of_function_gives_the_same_rewards(name, options):
    rows = make_rows(count=4) if name == "blocking" else make_rows()
    expected = [[number(r.messages[0].content, c.text, r.payload) for c in r.completions] for r in rows]
    found = score(name, rows, **({"concurrency": 9} | options))
    assert found.rewards == expected and set(found.outcomes) == {"ok"}, found


ENDS = ("raise", "nan", "text", "hang", "fine", "also fine", "hang", "raise", "fine again")


@pytest.mark.parametrize("name", KINDS)
def test_a_failing_completion_is_marked_with_its_reason_and_harms_no_other(name):
    texts = [f"{i} {end}" for i, end in enumerate(ENDS)]
    row = Row("r", (Message("user", "p"),), "", tuple(Completion(t, NO_TOKENS, True, "dataset") for t in texts))
    found = score(name, [row], seconds=0.3, concurrency=4, batch=4)
    reasons = {"raise": "failed: ValueError", "nan": NO_NUMBER, "text": NO_NUMBER, "hang": NO_TIME}
    verdicts = [reasons.get(end, "ok") for end in ENDS]
    assert found.verdicts == [verdicts], found
    expected = [number("p", text, "") if v == "ok" else None for text, v in zip(texts, verdicts, strict=True)]
    assert found.rewards == [expected]
    lines = found.messages["failed: ValueError"]
    assert any(line.startswith("ValueError: no 0 in ") for line in lines), lines
    assert set(found.messages) == set(reasons.values())


def test_async_calls_run_at_the_same_time_up_to_the_bound():
    rows = [make_rows(count=2, each=24)[1]]
    times = {}
    for concurrency in (1, 24):
        begin = time.monotonic()
        score("blocking", rows, concurrency=concurrency)
        times[concurrency] = time.monotonic() - begin
    assert times[1] > 24 * 0.15 and times[24] < times[1] / 4, times


SIZES = []


def counted(prompts, completions, payloads):
    SIZES.append(len(prompts))
    return [1.0] * len(prompts)


def short(prompts, completions, payloads):
    return [1.0] * (len(prompts) - 1 or 2)


def test_a_batched_function_gets_no_more_than_the_batch_and_must_answer_for_each():
    rows = make_rows()
    total = sum(len(row.completions) for row in rows)
    SIZES.clear()
    assert score("counted", rows, batch=7).outcomes == {"ok": total}
    assert sum(SIZES) == total and max(SIZES) == 7, SIZES
    assert score("short", rows, batch=7).outcomes == {NO_NUMBER: total}


class Unreadable:
    def tolist(self):
        raise ValueError("no list")


def unreadable(prompts, completions, payloads):
    return Unreadable()


def test_an_answer_that_cannot_be_read_is_a_failure():
    assert score("unreadable", make_rows(count=2, each=3), batch=2).outcomes == {"failed: ValueError": 3}


GIVEN_UP = threading.Event()


async def stubborn(prompt, completion, payload):
    while not GIVEN_UP.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
    return 1.0


def test_an_async_call_that_goes_on_after_it_was_cancelled_ends_the_run_with_a_line_that_names_it():
    failures, lines = Failures(1.0), []
    with make_reward(f"{THIS}:stubborn", failures=failures, seconds=0.2, concurrency=2) as reward:
        reward._limit = TimeLimit(grace=0.3, say=lines.append, leave=GIVEN_UP.set)
        reward.score(make_rows(count=2, each=1))
    assert (
        lines[0].startswith(f"error: reward '{THIS}:stubborn' called for row ") and "0.3 s after its limit" in lines[0]
    ), lines


@pytest.mark.parametrize("name", KINDS)
def test_above_the_share_a_run_stops_with_the_reasons_counted_and_below_it_goes_on(name):
    texts = [f"{i} {'raise' if i in (3, 11) else 'nan' if i == 5 else 'fine'}" for i in range(20)]
    row = Row("r", (Message("user", "p"),), "", tuple(Completion(t, NO_TOKENS, True, "dataset") for t in texts))

    def run(share):
        failures = Failures(share)
        failures.begin(len(texts))
        with make_reward(f"{THIS}:{name}", failures=failures, concurrency=1) as reward:
            return reward.score([row])

    assert run(0.15).outcomes == {"ok": 17, "failed: ValueError": 2, NO_NUMBER: 1}
    with pytest.raises(FailuresError) as caught:
        run(0.1)
    line = str(caught.value)
    assert "3 of 20 completions so far have no reward" in line and "\n" not in line, line
    assert "failed: ValueError 2, failed: not a number 1; for example: reward" in line and "row 'r'" in line, line
    with pytest.raises(UserError, match="failed for row 'r', completion 3 .ValueError: no 3 in "):
        run(0.0)


def test_earlier_units_count_towards_the_share():
    failures = Failures(0.1)
    failures.add({"ok": 90, "failed: time": 9})
    failures.begin(1)
    with pytest.raises(UserError):
        Failures(0).mark(one_failure())
    failures.mark(one_failure())
    failures.begin(9)
    with pytest.raises(FailuresError, match="11 of 109 completions so far"):
        failures.mark(one_failure())


def one_failure():
    return Failure("failed: time", "slow", "reward 'f' was slow")


async def agen(prompt, completion, payload):
    yield 1.0


def two(prompts, completions):
    return []


def more(prompts, completions, payloads, temperature):
    return []


@pytest.mark.parametrize(
    "name, message",
    [
        ("agen", "is a generator; it must return a number"),
        ("two", r"does not take \(prompt, completion, payload\)"),
        ("more", "does not take lists prompts, completions, payloads by name: missing"),
    ],
)
def test_functions_of_another_form_are_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        find_function(f"{THIS}:{name}", "")
    assert "\n" not in str(caught.value) and caught.value.about == ("name",)


@pytest.mark.parametrize(
    "name, awaited, batched",
    [
        ("plain", False, False),
        ("batch", False, True),
        ("later", True, False),
        ("later_batch", True, True),
        ("judge", True, False),
    ],
)
def test_the_kind_of_a_function_is_recognised(name, awaited, batched):
    found = find_function(f"{THIS}:{name}", "")
    assert (found.awaited, found.batched) == (awaited, batched)
