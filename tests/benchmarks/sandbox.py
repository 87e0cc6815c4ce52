"""Measures the sandbox: completions a second, what hostile ones cost the others, and memory over many completions.

    python -m tests.benchmarks.sandbox [--level=kernel] [--completions=20000] [--memory=100000]

1. Completions a second of ten calls each, at each level that the machine holds, on all cores.
2. So many completions, 1 % each of busy hangs, waiting hangs, floods of lines in the report, floods of prints, and
   fork bombs, against the same number of honest ones alone. A hang costs its CPU time, and must cost the others nothing
   more.
3. Resident memory of the program and of its interpreters over so many completions: it must be flat.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence

from qrpo_jax.rewards.sandbox.pool import LEVELS, Call, Failed, IsolationError, Limits, Sandbox, Task

LIMITS = Limits(cpu_seconds=0.1, memory_mb=128, output_bytes=4096)
TESTS = 10
HOSTILE = {
    "busy": "def f(a, b):\n    while True: pass",
    "waiting": "import time\ndef f(a, b):\n    time.sleep(99)",
    "lines": "import os\ndef f(a, b):\n    while True: os.write(4, b'\\n' * 4000)",
    "prints": "def f(a, b):\n    while True: print('x' * 1000)",
    "forks": "import os\ndef f(a, b):\n    while True: os.fork()",
}


def honest(index: int) -> Task:
    code = f"def f(a, b):\n    # {index}\n    return [x for x in range(a)] + [b]"
    return Task(code, "f", tuple(Call((k, index)) for k in range(TESTS)))


def right(index: int) -> tuple[list[int], ...]:
    return tuple([*range(k), index] for k in range(TESTS))


def hostile(kind: str, index: int) -> Task:
    return Task(f"# {index}\n{HOSTILE[kind]}", "f", tuple(Call((k, index)) for k in range(TESTS)))


def resident(process: int) -> float:
    """MB of memory that a process holds now, with its part of what it shares."""
    with open(f"/proc/{process}/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def family(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    for one in found:
        for thread in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{thread}/children") as children:
                found += map(int, children.read().split())
    return found


def rates(levels: Sequence[str]) -> None:
    for level in levels:
        with Sandbox(LIMITS, isolation=level) as sandbox:
            sandbox.run([honest(-1 - k) for k in range(50)])
            best = 0.0
            for part in range(3):
                tasks = [honest(1000 * part + k) for k in range(1000)]
                began = time.monotonic()
                sandbox.run(tasks)
                best = max(best, len(tasks) / (time.monotonic() - began))
        print(f"{level}: {best:.0f} completions of {TESTS} calls a second on {os.cpu_count()} cores", flush=True)


def mixture(level: str, count: int) -> None:
    """Honest completions alone, then with hostile ones between them."""
    with Sandbox(LIMITS, isolation=level) as sandbox:
        began = time.monotonic()
        alone = sandbox.run([honest(k) for k in range(count)])
        seconds = time.monotonic() - began
        share, kinds = count // 100, list(HOSTILE)
        tasks = [honest(k) for k in range(count)]
        for kind in kinds:
            for k in range(share):
                # Spread evenly; each has other code, because equal tasks run once.
                tasks[100 * k + 7 * kinds.index(kind)] = hostile(kind, k)
        began = time.monotonic()
        mixed = sandbox.run(tasks)
        with_hostile = time.monotonic() - began
    harmed = sum(one != right(k) for k, one in enumerate(mixed) if "range(a)" in tasks[k].code)
    print(f"{level}: {count} honest: {seconds:.1f} s, {sum(one != right(k) for k, one in enumerate(alone))} wrong")
    print(f"{level}: with {share} of each of {', '.join(kinds)}: {with_hostile:.1f} s, {harmed} honest ones harmed")
    # Those that hang and those that print may use their limit in each of as many runs as are allowed.
    own = 2 * share * LIMITS.failed_runs * LIMITS.cpu_seconds / (os.cpu_count() or 1)
    print(
        f"  CPU time that busy ones may use: {own:.1f} s; beyond it: {with_hostile - seconds - own:+.1f} s", flush=True
    )
    print(f"  load of the machine: {os.getloadavg()[0]:.1f} processes")
    for kind in kinds:
        ended = [
            one.reason if isinstance(one, Failed) else "value"
            for k in range(share)
            for one in mixed[100 * k + 7 * kinds.index(kind)]
        ]
        print(f"  {kind}: {dict(Counter(ended))}")


def memory(level: str, count: int) -> None:
    part = max(1, count // 10)
    with Sandbox(LIMITS, isolation=level) as sandbox:
        sandbox.run([honest(-1 - k) for k in range(1000)])
        print(f"{level}: MB after so many completions: this program, its interpreters")
        for done in range(0, count + 1, part):
            own, *others = [resident(one) for one in family(os.getpid())]
            print(f"  {done}: {own:.1f}, {sum(others):.1f}", flush=True)
            if done < count:
                sandbox.run([honest(done + k) for k in range(part)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=LEVELS, help="of parts 2 and 3; the strongest that the machine holds")
    parser.add_argument("--completions", type=int, default=20_000)
    parser.add_argument("--memory", type=int, default=100_000)
    options = parser.parse_args(arguments)
    held = []
    for level in LEVELS:
        try:
            with Sandbox(LIMITS, 1, isolation=level, require=level):
                held.append(level)
        except IsolationError as error:
            print(error)
    rates(held)
    mixture(options.level or held[-1], options.completions)
    memory(options.level or held[-1], options.memory)


if __name__ == "__main__":
    main()
