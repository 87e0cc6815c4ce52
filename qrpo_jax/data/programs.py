"""Programming problems: a small Python function, asked for by its operations and some calls.

The embedded task of `configs/quickstart.py`. A prompt names the operations of an unknown `f(a, b)`
and shows what it returns for a few pairs of digits; an answer is one Python expression in `a` and
`b`; its reward is the share of further calls that it gets right. The SFT corpus is of mixed
quality, as corpora are: a part of its demonstrations are drafts that stop before the last operation.
A reference trained on it answers with drafts as often, and gets many of its full answers wrong too.

Nothing here runs generated text: every function is a table of its values on all pairs of digits,
built by numpy alongside its source, and expected values are read from that table.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

EXAMPLES = 4  # calls shown in a prompt
TESTS = 10  # hidden calls that score an answer
DIGITS = 7  # arguments are 0..6
CONSTANTS = range(1, 4)  # numbers that a function may use
LARGEST = 99  # functions that leave -99..99 are not asked for
DRAFTS = 0.6  # share of demonstrations that stop before the last operation
# How often each kind of function is asked for.
KINDS = {"simple": 0.5, "nested": 0.45, "branching": 0.05}

# A prompt belongs to the split that owns its bucket, so no two splits can share a prompt.
BUCKETS = 10
SPLITS = {"eval": range(0, 2), "train": range(2, 5), "sft": range(5, 10)}

INSTRUCTION = "Write f(a, b) using"
# What a prompt may name, in the order in which the solution uses them.
HINTS = ("+", "-", "*", "max", "min", "abs", "if", *map(str, CONSTANTS))
_HINT = re.compile("|".join(map(re.escape, HINTS)))


class Problem(NamedTuple):
    """One problem.

    `prompt` is the user's message; `solution` the expression that defines the function;
    `demonstration` what the SFT corpus answers, the solution or a draft of it; `tests` the hidden
    calls, as (arguments, expected value), none of which the prompt shows.
    """

    prompt: str
    solution: str
    demonstration: str
    tests: tuple[tuple[tuple[int, int], int], ...]


class Function(NamedTuple):
    """An expression; `draft` lacks its last operation; `table[a, b]` is its value at digits a, b.

    `rank` is how strongly it binds: 0 conditional, 1 sum, 2 product, 3 name, number or call.
    """

    text: str
    draft: str
    rank: int
    table: np.ndarray


def problem(seed: int, split: str, index: int) -> Problem:
    """The problem at `index` of an endless, randomly accessible list.

    Args:
        seed: picks the list.
        split: "sft", "train" or "eval"; no prompt of one split occurs in another, whatever the
            seeds, since a hash of the prompt's text decides which split may hold it.
        index: position in the list, 0 or more.
    """
    if split not in SPLITS:
        raise ValueError(
            f"split {split!r} of the programs is unknown; allowed: {', '.join(SPLITS)}; "
            "change the split asked of programs.problem"
        )
    if index < 0:
        raise ValueError(f"index {index} of a program must be 0 or more; change the index")
    generator = random.Random(f"{seed}/{split}/{index}")
    while True:
        drawn = _draw(generator)
        if bucket(drawn.prompt) in SPLITS[split]:
            return drawn


def bucket(prompt: str) -> int:
    """Which of `BUCKETS` hash buckets a prompt's text falls into."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % BUCKETS


def program(expression: str) -> str:
    """Source of a module that defines `f` as the expression, for the sandbox to execute."""
    return f"def f(a, b):\n    return {expression}\n"


def vocabulary() -> tuple[str, ...]:
    """Words that cover every prompt and solution, longest first as a greedy tokenizer needs them.

    A call takes three words, `f(3`, `,7` and `)=-4`, so that a prompt stays under 20 words.
    """
    words = {INSTRUCTION, ":", "max(", "min(", "abs(", ")", "(", ", ", " if ", " else ", "a", "b"}
    words |= {" + ", " - ", " * ", " < "}
    words |= {f" `{name}`" for name in HINTS}
    words |= {str(digit) for digit in range(DIGITS)}
    words |= {f"\nf({digit}" for digit in range(DIGITS)}
    words |= {f",{digit}" for digit in range(DIGITS)}
    words |= {f")={value}" for value in range(-LARGEST, LARGEST + 1)}
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


@functools.cache
def functions() -> dict[str, tuple[Function, ...]]:
    """All functions that can be asked for, by kind; no two of them agree on all pairs of digits.

    Kinds come from simple to branching, and a function that a simpler expression can say is left
    out, a bare argument among them, so a solution is a shortest one.
    """
    seen = {argument.table.tobytes() for argument in _ARGUMENTS}
    makers = {"simple": _simple, "nested": _nested, "branching": _branching}
    return {kind: tuple(_fresh(makers[kind](), seen)) for kind in KINDS}


def _draw(generator: random.Random) -> Problem:
    kind = generator.choices(list(KINDS), list(KINDS.values()))[0]
    function = generator.choice(functions()[kind])
    cells = generator.sample(range(DIGITS * DIGITS), EXAMPLES + TESTS)
    calls = [(divmod(cell, DIGITS), int(function.table[divmod(cell, DIGITS)])) for cell in cells]
    shown = "".join(f"\nf({a},{b})={value}" for (a, b), value in calls[:EXAMPLES])
    hints = "".join(f" `{word}`" for word in _HINT.findall(function.text))
    answer = function.draft if generator.random() < DRAFTS else function.text
    return Problem(f"{INSTRUCTION}{hints}:{shown}", function.text, answer, tuple(calls[EXAMPLES:]))


def _fresh(made: Iterator[Function], seen: set[bytes]) -> Iterator[Function]:
    """Those of `made` whose values are small, not all equal, and not in `seen`, which grows."""
    for function in made:
        key = function.table.tobytes()
        small = np.abs(function.table).max() <= LARGEST
        if key not in seen and small and np.ptp(function.table) > 0:
            seen.add(key)
            yield function


_A, _B = np.meshgrid(np.arange(DIGITS), np.arange(DIGITS), indexing="ij")
_ARGUMENTS = (Function("a", "a", 3, _A), Function("b", "b", 3, _B))


def _constant(value: int) -> Function:
    return Function(str(value), str(value), 3, np.full_like(_A, value))


def _infix(symbol: str, rank: int, left: Function, right: Function) -> Function:
    operation: Callable[..., np.ndarray] = {
        "+": np.add,
        "-": np.subtract,
        "*": np.multiply,
    }[symbol]
    # Left-associative: an equal rank needs brackets on the right only.
    left_text = left.text if left.rank >= rank else f"({left.text})"
    right_text = right.text if right.rank > rank else f"({right.text})"
    table = operation(left.table, right.table)
    draft = right.text if left.text.isdecimal() else left.text
    return Function(f"{left_text} {symbol} {right_text}", draft, rank, table)


def _call(name: str, left: Function, right: Function) -> Function:
    table = {"max": np.maximum, "min": np.minimum}[name](left.table, right.table)
    return Function(f"{name}({left.text}, {right.text})", left.text, 3, table)


def _distance(left: Function, right: Function) -> Function:
    return Function(f"abs({left.text} - {right.text})", left.text, 3, np.abs(left.table - right.table))


def _simple() -> Iterator[Function]:
    """One operation on the arguments, or on an argument and a small constant."""
    yield from _combinations()
    for argument in _ARGUMENTS:
        for constant in map(_constant, CONSTANTS):
            yield _infix("+", 1, argument, constant)
            yield _infix("-", 1, argument, constant)
            yield _infix("-", 1, constant, argument)
            yield _infix("*", 2, argument, constant)


def _combinations() -> Iterator[Function]:
    """One operation on both arguments."""
    a, b = _ARGUMENTS
    yield from (_infix("+", 1, a, b), _infix("-", 1, a, b), _infix("-", 1, b, a))
    yield from (_infix("*", 2, a, b), _call("max", a, b), _call("min", a, b), _distance(a, b))


def _nested() -> Iterator[Function]:
    """An operation on both arguments, followed by one with a small constant or an argument."""
    for function in _combinations():
        for other in (*map(_constant, CONSTANTS), *_ARGUMENTS):
            yield _infix("+", 1, function, other)
            yield _infix("-", 1, function, other)
            yield _infix("*", 2, function, other)


def _branching() -> Iterator[Function]:
    """One of two simple expressions, by a comparison of the arguments."""
    a, b = _ARGUMENTS
    conditions = [("a < b", _A < _B), ("a < 3", _A < 3), ("b < 3", _B < 3)]
    branches = [a, b, _infix("+", 1, a, b), _infix("-", 1, a, b), _infix("*", 2, a, b)]
    for text, holds in conditions:
        for yes in branches:
            for no in branches:
                table = np.where(holds, yes.table, no.table)
                yield Function(f"{yes.text} if {text} else {no.text}", no.text, 0, table)
