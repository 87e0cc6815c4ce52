"""A judge on this machine: an OpenAI-compatible server that grades by the words of a question, and can misbehave."""

import hashlib
from collections.abc import Callable
from typing import Any

from tests.helpers.fake_openai import FakeOpenAI, Fault


def grade_of(question: str) -> int:
    """From 1 to 10, by the words of a question alone."""
    return hashlib.sha256(question.encode()).digest()[0] % 10 + 1


class FakeJudge(FakeOpenAI):
    """Says a grade, or what `says` makes of a question and its grade."""

    def __init__(
        self,
        says: Callable[[str, int], str] = lambda question, grade: f"Of 10 points\n{grade}",
        *,
        fault: Fault = lambda number: "",
        seconds: float = 0.0,
        finish: str = "stop",
    ) -> None:
        super().__init__(lambda text: [], 0, fault=fault, seconds=seconds)
        self.says, self.finish = says, finish

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        (message,) = body["messages"]
        said = self.says(message["content"], grade_of(message["content"]))
        return {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": self.finish}]}
