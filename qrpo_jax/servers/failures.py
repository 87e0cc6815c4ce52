"""How one request to a server failed: for good or for now, in whose words, and how long to wait."""

import email.utils
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from qrpo_jax.errors import shortened

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds
LONGEST_ORDERED = 600.0  # seconds that a server may ask for with Retry-After
AGAIN = frozenset({408, 409, 425, 429})  # statuses below 500 that another attempt may change
BUSY = frozenset({429, 502, 503, 504})  # statuses that say something about the server and not about the request


class BadAnswerError(ValueError):
    """An answer arrived, and is not what was asked for."""


class Failure(Exception):
    """One attempt that failed.

    Attributes:
      words: what happened, in a clause after the address of the server.
      kind: in two or three words, to count by.
      status: of HTTP; 0 if there was none.
      again: another attempt may succeed.
      rests: the server itself should be left alone for a while.
      wait: seconds that the server asked for.
    """

    def __init__(
        self, words: str, kind: str, *, status: int = 0, again: bool = True, rests: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(words)
        self.words, self.kind, self.status = words, kind, status
        self.again, self.rests, self.wait = again, rests, wait


def of_status(status: int, content: bytes, headers: Mapping[str, str]) -> Failure:
    """The failure that an HTTP status other than success stands for."""
    words = f"answered with status {status}"
    if said := server_words(content):
        words += f", {said}"
    again = status in AGAIN or status >= 500
    wait = ordered_wait(headers.get("retry-after", "")) if again else 0.0
    return Failure(words, f"status {status}", status=status, again=again, rests=status in BUSY, wait=wait)


def server_words(content: bytes) -> str:
    """What the body of an error says, on one line, shortened.

    >>> server_words(b'{"error": {"message": "no such model", "code": 404}}'), server_words(b"gone")
    ('no such model', 'gone')
    """
    text = content[:100_000].decode(errors="replace")
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return shortened(text, 200)
    for key in ("error", "message", "detail"):
        said = said.get(key, said) if isinstance(said, dict) else said
    return shortened(said if isinstance(said, str) else json.dumps(said), 200)


def ordered_wait(retry_after: str) -> float:
    """Seconds of a header Retry-After, which has a number or a date; 0 for anything else.

    >>> ordered_wait("7"), ordered_wait("1e9"), ordered_wait("soon"), ordered_wait("nan")
    (7.0, 600.0, 0.0, 0.0)
    """
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(seconds, LONGEST_ORDERED) if seconds > 0 else 0.0


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: they double each time, and a random half is left out.

    >>> 0.25 <= backoff(1) <= 0.5, 1.0 <= backoff(3) <= 2.0, 30 <= backoff(5000) <= 60
    (True, True, True)
    """
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 60))
    return longest * random.uniform(0.5, 1.0)
