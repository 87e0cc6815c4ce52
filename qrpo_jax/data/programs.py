"""The embedded task of `configs/quickstart.py`: guess a small Python function from its operations and some calls.

A prompt names the operations of an unknown `f(a, b)` and shows its value for a few pairs of digits. An answer is one
Python expression in `a` and `b`, and its reward is the share of hidden calls that it gets right. The SFT corpus is of
mixed quality, as real corpora are: a share of its demonstrations are drafts that leave out the last operation. A
reference policy trained on it answers with drafts as often, and many of its full answers are wrong, too.

This module never runs generated text. A function is a table of its values at all pairs of digits, which numpy computes
along with the source; expected values are read from that table.
"""

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
LARGEST = 99  # values of a function lie in -99..99
DRAFTS = 0.6  # share of demonstrations that stop before the last operation
# How often each kind of function is drawn.
KINDS = {"simple": 0.5, "nested": 0.45, "branching": 0.05}

# The hash of a prompt picks its bucket, and each bucket belongs to one split, so no two splits share a prompt.
BUCKETS = 10
SPLITS = {"eval": range(0, 2), "train": range(2, 5), "sft": range(5, 10)}

INSTRUCTION = "Write f(a, b) using"
# Operations and constants that a prompt may name; it lists them in the order of the solution.
HINTS = ("+", "-", "*", "max", "min", "abs", "if", *map(str, CONSTANTS))
_HINT = re.compile("|".join(map(re.escape, HINTS)))


class Problem(NamedTuple):
    """One problem.

    Attributes:
      prompt: the user's message.
      solution: the expression that defines the function.
      demonstration: the answer in the SFT corpus, the solution or a draft of it.
      tests: the hidden calls, as (arguments, expected value); the prompt shows none of them.
    """

    prompt: str
    solution: str
    demonstration: str
    tests: tuple[tuple[tuple[int, int], int], ...]


class Function(NamedTuple):
    """A function of two digits.

    Attributes:
      text: the expression that computes it.
      draft: the expression without its last operation.
      rank: how strongly the expression binds: 0 conditional, 1 sum, 2 product, 3 name, number or call.
      table: `table[a, b]` is its value at the digits a and b.
    """

    text: str
    draft: str
    rank: int
    table: np.ndarray


def problem(seed: int, split: str, index: int) -> Problem:
    """The problem at `index` of an endless list that can be read in any order.

    Args:
      seed: picks the list.
      split: "sft", "train" or "eval". No prompt occurs in two splits, whatever the seeds.
      index: position in the list, 0 or more.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} of the programs is unknown; allowed: {', '.join(SPLITS)}; change the split")
    if index < 0:
        raise ValueError(f"index {index} of a program must be 0 or more; change the index")
    generator = random.Random(f"{seed}/{split}/{index}")
    while True:
        candidate = _draw(generator)
        if bucket(candidate.prompt) in SPLITS[split]:
            return candidate


def bucket(prompt: str) -> int:
    """The hash bucket of a prompt, 0 to `BUCKETS` - 1."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % BUCKETS


def program(expression: str) -> str:
    """Source of a module that defines `f` by the expression, for the sandbox to run."""
    return f"def f(a, b):\n    return {expression}\n"


def vocabulary() -> tuple[str, ...]:
    """Words that cover every prompt and solution, longest first for a greedy tokenizer.

    A call takes three words, such as `f(3`, `,6` and `)=-4`, so a prompt has fewer than 20 words.
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
    """All functions by kind; no two of them agree on all pairs of digits.

    Kinds are built from simple to branching. A function that a simpler expression computes (a bare argument, or a
    function of an earlier kind) is left out, so a solution is a shortest one.
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


def _fresh(candidates: Iterator[Function], seen: set[bytes]) -> Iterator[Function]:
    """The candidates whose values are small, not all equal and not in `seen`; adds them to `seen`."""
    for function in candidates:
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
