"""How many completions a second rewards score that cost nothing themselves: `python -m tests.benchmarks.scoring`."""

import asyncio
import sys
import time
from collections.abc import Callable

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.job.scoring import score_rows
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.judge import JudgeReward, Questions
from qrpo_jax.rewards.judge_words import make_reader
from qrpo_jax.rewards.parts import read_parts
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.rewards import make_reward
from qrpo_jax.rewards.weighted import WeightedReward
from qrpo_jax.servers.client import Access
from tests.helpers.fake_judge import FakeJudge

PROMPTS, COMPLETIONS, WORDS = 128, 8, 50  # of a unit, which is scored again and again
WAIT = 0.1  # seconds


def plain(prompt: str, completion: str, payload: str) -> float:
    return float(len(completion))


def several(prompts: list[str], completions: list[str], payloads: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


async def later(prompt: str, completion: str, payload: str) -> float:
    return float(len(completion))


async def waiting(prompt: str, completion: str, payload: str) -> float:
    await asyncio.sleep(WAIT)
    return float(len(completion))


def rows() -> list[Row]:
    texts = [f"text {j} " * (WORDS // 2) for j in range(COMPLETIONS)]
    return [
        Row(
            f"r{i}",
            (Message("user", f"question {i}"),),
            "",
            tuple(Completion(text, NO_TOKENS, True, "reference") for text in texts),
        )
        for i in range(PROMPTS)
    ]


def measure(name: str, make: Callable[[Failures], Reward], units: int) -> None:
    data, failures = rows(), Failures()
    with make(failures) as reward:
        begin = time.perf_counter()
        for _ in range(units):
            score_rows(reward, data, failures=failures)
        seconds = time.perf_counter() - begin
    scored = units * PROMPTS * COMPLETIONS
    print(f"{name:<40} {scored:>8,} completions {seconds:7.2f} s {scored / seconds:>9,.0f} a second")


def main() -> None:
    here = "tests.benchmarks.scoring" if __name__ == "__main__" else __name__
    for name, units, options in (
        (f"{here}:plain", 98, {}),
        (f"{here}:several", 98, {"batch": 64}),
        (f"{here}:later", 98, {"concurrency": 64}),
        (f"{here}:waiting", 8, {"concurrency": 256}),
        ("length(words)", 98, {}),
        (r"format(.*\d.*)", 98, {}),
    ):
        measure(name, lambda failures, n=name, o=options: make_reward(n, failures=failures, **o), units)
    parts = read_parts([f"{here}:plain", "length(words) weight=0.1", "format(.*)"])
    measure(
        "their sum",
        lambda failures: WeightedReward(
            [(part, make_reward(part.reward, failures=failures)) for part in parts], failures
        ),
        98,
    )
    with FakeJudge(seconds=WAIT) as judge:
        asked = Questions("judge", "{prompt}|{completion}", make_reader("number", 1, 10))
        access = Access((judge.address,), concurrency=64, attempts=3)
        measure(
            f"a judge that takes {WAIT:g} s, 64 at a time", lambda failures: JudgeReward(asked, access, failures), 2
        )


if __name__ == "__main__":
    sys.exit(main())
