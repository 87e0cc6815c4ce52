"""Rewards by name: tests that the completion must pass, a reward model, a judge, a Python function, or a sum."""

from collections.abc import Callable

from qrpo_jax.data.rows import Completion
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.functions import FunctionReward, UserFunction, find_function
from qrpo_jax.rewards.graded import AnswerReward, ExpressionReward, TestsReward
from qrpo_jax.rewards.parts import SUM, kind
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.sandbox.pool import Sandbox
from qrpo_jax.rewards.sandbox.remote import RemoteSandbox
from qrpo_jax.rewards.texts import FORMAT, FORMAT_SECONDS, TEXT_REWARDS, LengthReward, format_function, read_length

TESTS = "tests"
ANSWER = "answer"
MATH_VERIFY = "math_verify"
MODEL = "model"
JUDGE = "judge"
LENGTH = "length"
RUN_CODE = (TESTS, MATH_VERIFY)  # in a sandbox
GRADED = (TESTS, ANSWER, MATH_VERIFY)  # a share of tests, from 0 to 1
NAMES = (
    *(TESTS, ANSWER, MATH_VERIFY, MODEL, *TEXT_REWARDS),
    *(JUDGE, "format(REGEX)", "length(LOW, HIGH)", SUM, "or package.module:function"),
)
ALLOWED = ", ".join(NAMES)
OPENED_ELSEWHERE = (MODEL, JUDGE, SUM)  # they need a model, servers, or other rewards


def check_name(name: str) -> None:
    """Refuses a name that is no reward, or a function that cannot be one.

    Raises:
      UserError: about `name`.
    """
    if name in (*GRADED, *OPENED_ELSEWHERE):
        return
    if kind(name) == LENGTH:
        read_length(name)
    else:
        function_of(name)


def function_of(name: str) -> UserFunction:
    """The function of a reward that is one.

    Raises:
      UserError: about `name`.
    """
    if name in TEXT_REWARDS:
        return UserFunction(name, TEXT_REWARDS[name])
    if FORMAT.fullmatch(name):
        return format_function(name)
    if ":" not in name:
        raise UserError(f"reward is {name!r}; allowed: {ALLOWED}", about="name")
    return find_function(name, ALLOWED)


def text_tokens(completion: Completion) -> int:
    """Tokens that a completion brings; 0 for one that was not tokenized."""
    return len(completion.tokens)


def make_reward(
    name: str,
    *,
    failures: Failures | None = None,
    block: str = "first",
    max_tests: int = 0,
    sandbox: Sandbox | RemoteSandbox | None = None,
    tokens: Callable[[Completion], int] = text_tokens,
    seconds: float = 60.0,
    concurrency: int = 1,
    batch: int = 16,
) -> Reward:
    """The reward of a name, but for "model", "judge" and "sum".

    Args:
      failures: counts completions that a function gives no number; by default the first one is an error.
      block, max_tests: of "tests", see `CodeReward`.
      sandbox: where "tests" and "math_verify" run code; they need one, not started yet.
      tokens: number of tokens of a completion, for "length".
      seconds, concurrency, batch: of functions, see `FunctionReward`.

    Raises:
      UserError: no such reward.
    """
    if name in RUN_CODE:
        assert sandbox is not None, "code needs a sandbox"
        if name == TESTS:
            return TestsReward(sandbox, block=block, max_tests=max_tests)
        return ExpressionReward(sandbox)
    if name == ANSWER:
        return AnswerReward()
    if kind(name) == LENGTH:
        return LengthReward(read_length(name), tokens)
    function, failures = function_of(name), failures or Failures()
    if FORMAT.fullmatch(name):
        seconds = min(seconds, FORMAT_SECONDS)
    return FunctionReward(function, failures, seconds=seconds, concurrency=concurrency, batch=batch)
