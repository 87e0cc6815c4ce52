"""The reward "judge": a model behind an OpenAI-compatible server grades each completion.

Equal completions of a prompt are graded once. The same question is asked with the same words each time, at temperature
0 by default, but whether a server answers alike is up to the server.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

from qrpo_jax.data.rows import Row
from qrpo_jax.errors import ServerError, shown
from qrpo_jax.rewards.failures import Failure, Failures
from qrpo_jax.rewards.functions import Found, scores_of, where
from qrpo_jax.rewards.judge_words import fill
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.scores import FAILED, Scores
from qrpo_jax.servers.background import Background
from qrpo_jax.servers.client import Access, Client
from qrpo_jax.servers.failures import BadAnswerError

PATH = "/chat/completions"
NO_ANSWER, NO_GRADE = f"{FAILED}no answer from the judge", f"{FAILED}no grade from the judge"


class Questions(NamedTuple):
    """What a judge is asked.

    Attributes:
      model: its name at the servers.
      template: see `judge_words.fill`.
      read: from its answer to a reward, see `judge_words.make_reader`.
      max_tokens: of an answer; 0 leaves it to the server.
    """

    model: str
    template: str
    read: Callable[[str], float]
    max_tokens: int = 0
    temperature: float = 0.0

    def body(self, text: str) -> dict[str, Any]:
        """The JSON of a request."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.temperature,
        }
        return body | ({"max_tokens": self.max_tokens} if self.max_tokens else {})

    def grade(self, answer: Any) -> float:
        """The reward in the JSON of an answer.

        Raises:
          BadAnswerError: it has no whole answer, or no grade.
        """
        try:
            (choice,) = answer["choices"]
            said, finish = choice["message"]["content"], choice.get("finish_reason")
        except (TypeError, KeyError, ValueError, AttributeError):
            raise BadAnswerError(f"is no completion of a chat: {shown(answer, 200)}") from None
        if not isinstance(said, str):
            raise BadAnswerError(f"has no text: {shown(said)}")
        if finish == "length":
            raise BadAnswerError("is cut off by the length limit (config.judge.max_tokens)")
        return self.read(said)


class _Grade:
    """Reads the answers to one question, and keeps why the last one had no grade."""

    def __init__(self, questions: Questions) -> None:
        self._questions, self.missing = questions, ""

    def __call__(self, answer: Any) -> float:
        self.missing = ""
        try:
            return self._questions.grade(answer)
        except BadAnswerError as error:
            self.missing = str(error)
            raise


class JudgeReward(Reward):
    """Asks a judge.

    Args:
      failures: counts completions that it gives no grade.
      say: prints a line.
    """

    def __init__(
        self, questions: Questions, access: Access, failures: Failures, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._questions, self._access, self._failures, self._say = questions, access, failures, say
        self._exits = ExitStack()

    def describe(self) -> list[str]:
        return [f"by the judge {self._questions.model!r} on {len(self._access.servers)} servers"]

    def __enter__(self) -> Self:
        self._background = self._exits.enter_context(Background())
        self._client = self._background.enter(Client(self._access))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.close()
        if repeated := self._client.repeated:
            kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(repeated.items()))
            self._say(f"judge: {sum(repeated.values())} requests were sent again ({kinds})")

    def score(self, rows: Sequence[Row]) -> Scores:
        asked: dict[str, tuple[_Grade, Future[float]]] = {}
        texts = [
            (fill(self._questions.template, row, completion.text), where(row, i))
            for row in rows
            for i, completion in enumerate(row.completions)
        ]
        try:
            for text, of in texts:
                if text not in asked:
                    read = _Grade(self._questions)
                    posted = self._client.post(PATH, self._questions.body(text), read, of)
                    asked[text] = read, self._background.start(posted)
            return scores_of(rows, [self._found(asked[text], of) for text, of in texts])
        finally:
            for _, future in asked.values():
                future.cancel()

    def _found(self, asked: tuple[_Grade, Future[float]], of: str) -> Found:
        read, future = asked
        try:
            return future.result()
        except ServerError as error:
            verdict = NO_GRADE if read.missing else NO_ANSWER
            said = f"an answer that {read.missing}" if read.missing else str(error).partition(" (for ")[0]
            return self._failures.mark(Failure(verdict, said, f"the judge gave {of} no grade: {error}"), about="judge")
