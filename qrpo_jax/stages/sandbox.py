"""Stage `sandbox`: tries what this machine can keep model-written code from doing, at each level of isolation.

It runs each time that it is named, needs no model and no data, and writes sandbox.json. No other stage depends on it.
"""

import os
import time
from typing import Any

from qrpo_jax.config.config import Config
from qrpo_jax.devices.processes import is_first
from qrpo_jax.files import write_json
from qrpo_jax.job.code_sandbox import make_sandbox
from qrpo_jax.job.job import Job
from qrpo_jax.rewards.parts import reward_names
from qrpo_jax.rewards.rewards import MATH_VERIFY
from qrpo_jax.rewards.sandbox.launch import NotStartedError
from qrpo_jax.rewards.sandbox.pool import LEVELS, IsolationError
from qrpo_jax.rewards.sandbox.tasks import Call, Task

RESULTS = "sandbox.json"
PROGRAMS = 200  # that are timed at each level, of CALLS calls each
CALLS = 10
MEANINGS = {
    "network": "connect",
    "filesystem": "write files",
    "reading": "read outside Python's library",
    "paths": "see which other paths exist",
    "processes": "start or signal processes",
    "waiting": "sleep or wait",
    "memory": "exceed the memory limit",
    "cpu": "exceed the CPU limit",
    "repeatable": "see random addresses",
}


def run(job: Job) -> dict[str, Any]:
    if not is_first():
        return {}
    config = job.config.reward
    found = {level: measure(config, level) for level in ((config.isolation,) if config.command else LEVELS[::-1])}
    write_json(job.folder("sandbox") / RESULTS, found)
    for line in lines(config, found):
        job.say(line)
    job.say(f"sandbox: {job.folder('sandbox') / RESULTS}")
    return {"results": RESULTS, "levels": {name: one["level"] for name, one in found.items()}}


def measure(config: Config, isolation: str) -> dict[str, Any]:
    """What one level holds here, and how many small programs a second it runs.

    Returns:
      level: what is reached; "" if it does not start; why: notes; protections; programs_per_second; workers.
    """
    mathematics = MATH_VERIFY in reward_names(config.name, config.parts)
    sandbox = make_sandbox(config, mathematics=mathematics, isolation=isolation, require="limits")
    try:
        with sandbox:
            calls = tuple(Call((number, number + 1)) for number in range(CALLS))
            tasks = [Task(f"def f(a, b):\n    return a * b + {i}", "f", calls) for i in range(PROGRAMS)]
            begin = time.monotonic()
            sandbox.run(tasks)
            rate = PROGRAMS / (time.monotonic() - begin)
            return {
                "level": sandbox.level,
                "why": sandbox.notes,
                "protections": sandbox.protections,
                "programs_per_second": rate,
                "workers": sandbox.workers or os.cpu_count(),
            }
    except (IsolationError, NotStartedError) as error:
        why = sandbox.notes or [str(error)]
        return {"level": "", "why": why, "protections": {}, "programs_per_second": 0.0, "workers": 0}


def lines(config: Config, found: dict[str, dict[str, Any]]) -> list[str]:
    """The table for a terminal: a line for each protection, a column for each level."""
    place = f"at the far end of {config.command!r}" if config.command else "on this machine"
    width = max(map(len, MEANINGS.values()))

    def row(title: str, cells: list[str]) -> str:
        return f"  {title:<{width}}" + "".join(f"{cell:>13}" for cell in cells)

    table = [f"\nWhat model-written code cannot do {place}, by level of isolation:", row("", list(found))]
    for name, meaning in MEANINGS.items():
        held = [one["protections"].get(name) for one in found.values()]
        table.append(row(meaning, ["-" if one is None else "held" if one else "NOT held" for one in held]))
    table.append(row("programs a second", [f"{one['programs_per_second']:.0f}" for one in found.values()]))
    table += [f"  {level}: {why}" for level, one in found.items() for why in one["why"]]
    return [
        *table,
        f"A run asks for config.reward.isolation={config.isolation!r} and refuses less than "
        f"config.reward.require_isolation={config.require_isolation!r}.\n",
    ]
