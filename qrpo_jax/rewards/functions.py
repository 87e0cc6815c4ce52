"""Python functions as rewards: one completion a call, or several where parameters have plural names; plain or async.

A call that fails marks its own completion and no other: those of a batch that failed are tried one by one.
"""

import asyncio
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import LARGEST_REWARD, Row
from qrpo_jax.errors import UserError, shown
from qrpo_jax.faults import user_code
from qrpo_jax.faults.time_limit import TimeLimit, TimeLimitError
from qrpo_jax.rewards.failures import Failure, Failures, messages_of
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.scores import FAILED, NO_NUMBER, NO_TIME, OK, Scores

PLURAL = ("prompts", "completions", "payloads")  # parameters of a function that takes several completions at once
BEATS = 10  # in the time limit of a call, while async functions are awaited

Found = float | Failure


class Asked(NamedTuple):
    """A completion to score; `of` says which."""

    prompt: str
    completion: str
    payload: str
    of: str


class UserFunction(NamedTuple):
    """A function and how it is called.

    Attributes:
      batched: it takes lists called prompts, completions and payloads, and returns as many numbers.
      awaited: it is async.
    """

    name: str
    function: Callable[..., Any]
    batched: bool = False
    awaited: bool = False

    def __call__(self, asked: Sequence[Asked]) -> Any:
        """What the function returns for all of `asked`, or for the only one."""
        if self.batched:
            columns = [[one[column] for one in asked] for column in range(len(PLURAL))]
            return self.function(**dict(zip(PLURAL, columns, strict=True)))
        (one,) = asked
        return self.function(one.prompt, one.completion, one.payload)


class FunctionReward(Reward):
    """Scores completions with a Python function.

    Args:
      failures: counts calls that give no number.
      seconds: time limit of a call.
      concurrency: calls of an async function under way at most.
      batch: completions in a call of a batched function, at most.
    """

    def __init__(
        self,
        function: UserFunction,
        failures: Failures,
        *,
        seconds: float = 60.0,
        concurrency: int = 1,
        batch: int = 16,
    ) -> None:
        self._function, self._failures, self._seconds, self._concurrency = function, failures, seconds, concurrency
        self._batch = batch if function.batched else 1
        self._limit = TimeLimit()
        self._runner: asyncio.Runner | None = None  # one for all units, because clients of a user belong to its loop
        self._blocked = 0  # calls that held up all others, so far
        self._beats = 0  # of all units
        self._calls: dict[Any, tuple[int, str]] = {}  # async ones under way: the beat in which each began, and its name

    def __exit__(self, *error: Any) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def score(self, rows: Sequence[Row]) -> Scores:
        asked = [
            Asked(prompt_of(row), completion.text, row.payload, where(row, i))
            for row in rows
            for i, completion in enumerate(row.completions)
        ]
        batches = [asked[start : start + self._batch] for start in range(0, len(asked), self._batch)]
        with self._limit:
            if self._function.awaited:
                return scores_of(rows, self._await_all(batches))
            return scores_of(rows, [one for batch in batches for one in self._call(batch)])

    def _call(self, asked: Sequence[Asked]) -> list[Found]:
        try:
            with user_code.guard(self._says("failed", asked), "name"):
                value = self._limit.call(self._seconds, self._says("called", asked), lambda: self._function(asked))
        except UserError as error:
            found: list[Found] | Failure = failure_of(error)
        else:
            found = self._read(value, asked)
        if not isinstance(found, Failure):
            return found
        if len(asked) == 1:
            return [self._failures.mark(found)]
        return [one for single in asked for one in self._call([single])]

    def _await_all(self, batches: Sequence[Sequence[Asked]]) -> list[Found]:
        if self._runner is None:
            self._runner = asyncio.Runner()
        blocking = f"reward {self._function.name!r}, which is async and blocks its event loop,"
        runner = self._runner
        with user_code.no_exit():
            return self._limit.call(self._seconds, blocking, lambda: runner.run(self._gathered(batches)))

    async def _gathered(self, batches: Sequence[Sequence[Asked]]) -> list[Found]:
        slots = asyncio.Semaphore(self._concurrency)
        beat = asyncio.create_task(self._beat())
        try:
            found = await asyncio.gather(*(self._awaited(batch, slots) for batch in batches))
        finally:
            beat.cancel()
        return [one for batch in found for one in batch]

    async def _beat(self) -> None:
        """Shows that the event loop is not blocked, and ends the run if a call goes on after it was cancelled.

        Beats count, and not seconds, because calls are cancelled late where the process was stopped or held up.
        """
        patience = BEATS * (1 + self._limit.grace / self._seconds)
        while True:
            self._limit.renew()
            for began, what in self._calls.values():
                if self._beats - began > patience:
                    self._limit.give_up(self._seconds, what)
            await asyncio.sleep(self._seconds / BEATS)
            self._beats += 1

    async def _awaited(self, asked: Sequence[Asked], slots: asyncio.Semaphore) -> list[Found]:
        async with slots:
            found = await self._answer(asked)
        if not isinstance(found, Failure):
            return found
        if len(asked) == 1:
            return [self._failures.mark(found)]
        return [one for single in asked for one in await self._awaited([single], slots)]

    async def _answer(self, asked: Sequence[Asked]) -> list[Found] | Failure:
        task = asyncio.current_task()
        while True:
            limit, blocked = asyncio.timeout(self._seconds), self._blocked
            self._calls[task] = self._beats, self._says("called", asked)
            try:
                with user_code.one_line(self._says("failed", asked), "name"):
                    async with limit:
                        value = await self._function(asked)
            except UserError as error:
                if task is not None and task.cancelling():
                    raise error.__cause__ or error from None
                if limit.expired():
                    if self._blocked > blocked:
                        continue  # its time went by while another call held it up
                    line = f"{self._says('failed', asked)} (no answer within {self._seconds:g} s)"
                    return Failure(NO_TIME, f"no answer within {self._seconds:g} s", line)
                self._blocked += isinstance(error.__cause__, TimeLimitError)
                return failure_of(error)
            finally:
                del self._calls[task]
            return self._read(value, asked)

    def _read(self, value: Any, asked: Sequence[Asked]) -> list[Found] | Failure:
        """The numbers in what the function returned; a failure if they are not as many as were asked for."""
        if not self._function.batched:
            found = self._number(value, asked[0])
            return found if isinstance(found, Failure) else [found]
        try:
            with user_code.one_line(self._says("failed", asked), "name"):
                values = value.tolist() if hasattr(value, "tolist") else value
        except UserError as error:
            return failure_of(error)
        if isinstance(values, list | tuple) and len(values) == len(asked):
            found_each = [self._number(one, to) for one, to in zip(values, asked, strict=True)]
            return [self._failures.mark(one) if isinstance(one, Failure) else one for one in found_each]
        return no_number(self._function.name, value, _of(asked), f"must be a list of {len(asked)} numbers")

    def _number(self, value: Any, asked: Asked) -> Found:
        number = read_number(value)
        if number is None:
            return no_number(self._function.name, value, asked.of, "must be a number")
        if not abs(number) <= LARGEST_REWARD:
            rule = f"must be finite, and at most {LARGEST_REWARD:.2g} in size"
            return no_number(self._function.name, value, asked.of, rule)
        return number

    def _says(self, did: str, asked: Sequence[Asked]) -> str:
        return f"reward {self._function.name!r} {did} for {_of(asked)}"


def _of(asked: Sequence[Asked]) -> str:
    others = len(asked) - 1
    return f"{asked[0].of}, and {others} others" if others else asked[0].of


def where(row: Row, index: int) -> str:
    """Which completion, for messages."""
    return f"row {row.id!r}, completion {index}"


def prompt_of(row: Row) -> str:
    """A prompt as a reward function gets it: the content of all messages, one after the other."""
    return "".join(message.content for message in row.messages)


def no_number(name: str, value: Any, of: str, rule: str) -> Failure:
    """The failure of a function that returned something else than it must."""
    said = f"returned {shown(value)}"
    return Failure(NO_NUMBER, f"{said}; it {rule}", f"reward {name!r} {said} for {of}; it {rule}")


def failure_of(error: UserError) -> Failure:
    """The failure of a call that ended in an error."""
    cause = error.__cause__ or error
    verdict = NO_TIME if isinstance(cause, TimeLimitError) else f"{FAILED}{type(cause).__name__}"
    return Failure(verdict, user_code.cause(cause), error.message)


def scores_of(rows: Sequence[Row], found: Sequence[Found]) -> Scores:
    """Scores of what was found for all completions of rows, one after the other."""
    each = iter(found)
    by_row = [[next(each) for _ in row.completions] for row in rows]
    return Scores(
        [[None if isinstance(one, Failure) else one for one in row] for row in by_row],
        [[one.verdict if isinstance(one, Failure) else OK for one in row] for row in by_row],
        messages=messages_of([one for one in found if isinstance(one, Failure)]),
    )


def read_number(value: Any) -> float | None:
    """A number of Python or of an array library as a float; None for anything else, also text and arrays with axes.

    >>> read_number(True), read_number(np.float32(0.5)), read_number("0.5"), read_number(np.ones(1))
    (1.0, 0.5, None, None)
    >>> read_number(np.complex64(1 + 2j))  # None
    """
    try:
        # float() would also read text, arrays of one number, and the real part of NumPy's complex numbers.
        other = isinstance(value, str | bytes | bytearray | np.complexfloating) or np.shape(value)
        return None if other else float(value)
    except Exception:  # whatever __float__ of a user's class raises
        return None


def find_function(name: str, allowed: str) -> UserFunction:
    """The function "package.module:function".

    Args:
      allowed: names of other rewards, for messages.

    Raises:
      UserError: no such function, its module raises or exits, or it takes other arguments.
    """
    try:
        function = user_code.imported(name, f"reward {name!r} cannot be imported", "name")
    except UserError as error:
        raise UserError(f"{error.message}; allowed: {allowed}", about="name") from error
    if not callable(function):
        raise UserError(f"reward {name!r} is not a function; allowed: {allowed}", about="name")
    # An object with a method __call__, or a part of a function, is what that is.
    code = function.func if isinstance(function, functools.partial) else function
    codes = [code, inspect.getattr_static(type(code), "__call__", None)]
    if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in codes):
        raise UserError(f"reward {name!r} is a generator; it must return a number", about="name")
    found = UserFunction(name, function, awaited=any(map(inspect.iscoroutinefunction, codes)))
    try:
        signature = inspect.signature(function)
    except ValueError:
        return found  # some functions of C extensions have no signature to look at
    if set(PLURAL) <= signature.parameters.keys():
        found = found._replace(batched=True)
    try:
        if found.batched:
            signature.bind(prompts=[], completions=[], payloads=[])
        else:
            signature.bind("prompt", "completion", "payload")
    except TypeError as error:
        which = "lists prompts, completions, payloads by name" if found.batched else "(prompt, completion, payload)"
        raise UserError(f"reward {name!r} does not take {which}: {error}", about="name") from None
    return found
