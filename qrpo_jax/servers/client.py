"""Asks several servers that share the load, with bounded concurrency, retries and time-outs."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qrpo_jax.errors import ServerError, reason
from qrpo_jax.servers.failures import BadAnswerError, Failure, backoff, of_status

Read = TypeVar("Read")


@dataclass(frozen=True)
class Access:
    """How servers are asked.

    Attributes:
      servers: base URLs, such as http://host:8000/v1.
      key: sent as a bearer token; "" sends none. It is never printed.
      concurrency: requests under way at most, to all servers together.
      attempts: of one request, at most.
      connect_seconds: until a connection is open.
      answer_seconds: from the request to the last byte of its answer.
    """

    servers: Sequence[str]
    key: str = field(default="", repr=False)
    concurrency: int = 1
    attempts: int = 1
    connect_seconds: float = 10.0
    answer_seconds: float = 600.0


@dataclass
class _Server:
    address: str
    under_way: int = 0
    sent: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0

    def failed(self, now: float, wait: float) -> None:
        """Leaves the server alone for a while. Requests that fail together count as one failure."""
        if now >= self.rests_until:
            self.failures += 1
            self.rests_until = now + backoff(self.failures)
        self.rests_until = max(self.rests_until, now + wait)


class Client:
    """Posts JSON to the least busy of several servers. An async context manager; it belongs to one event loop.

    A request that fails is sent again, to another server if there is one, after a wait that doubles each time. A
    server that refuses connections, or says that it is busy, is left alone meanwhile.

    Attributes:
      repeated: failures after which a request was sent again, by kind.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._servers = [_Server(address.rstrip("/")) for address in access.servers]
        self._slots = asyncio.Semaphore(access.concurrency)
        self._exits = AsyncExitStack()
        self.repeated: Counter[str] = Counter()

    async def __aenter__(self) -> "Client":
        import httpx2  # of the extra `openai`

        access = self._access
        self._http = await self._exits.enter_async_context(
            httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {access.key}"} if access.key else {},
                # No time-out for a place in the pool: `_slots` lets no more requests begin than it has places.
                timeout=httpx2.Timeout(access.answer_seconds, connect=access.connect_seconds, pool=None),
                limits=httpx2.Limits(max_connections=access.concurrency, max_keepalive_connections=access.concurrency),
            )
        )
        self._failed = httpx2.RequestError
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._exits.aclose()

    async def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Read], about: str) -> Read:
        """What `read` makes of the answer.

        Args:
          path: below the base URL, such as "/completions".
          read: from the JSON of an answer; it raises `BadAnswerError` for one that should be asked for again.
          about: what an error names, such as "row 'x'".

        Raises:
          ServerError: no attempt succeeded.
        """
        async with self._slots:
            server: _Server | None = None
            for attempt in range(1, self._access.attempts + 1):
                server = await self._free(server)
                try:
                    answer = await self._attempt(server, path, body, read)
                except Failure as failure:
                    if not failure.again or attempt == self._access.attempts:
                        raise self._for_good(server, failure, about, attempt) from None
                    self.repeated[failure.kind] += 1
                    if failure.rests:
                        server.failed(asyncio.get_running_loop().time(), failure.wait)
                    else:
                        await asyncio.sleep(max(failure.wait, backoff(attempt)))
                else:
                    server.failures = 0
                    return answer
        raise AssertionError("the last attempt returns or raises")

    async def _free(self, last: _Server | None) -> _Server:
        """The server with the fewest requests of those that do not rest; not the last one again if there is another."""
        while True:
            now = asyncio.get_running_loop().time()
            if ready := [server for server in self._servers if server.rests_until <= now]:
                return min(ready, key=lambda server: (server is last, server.under_way, server.sent))
            await asyncio.sleep(min(server.rests_until for server in self._servers) - now)

    async def _attempt(self, server: _Server, path: str, body: Mapping[str, Any], read: Callable[[Any], Read]) -> Read:
        server.under_way += 1
        server.sent += 1
        try:
            # The library's own time-out is between two reads, so a server that sends a byte now and then escapes it.
            async with asyncio.timeout(self._access.answer_seconds):
                response = await self._http.post(server.address + path, json=body)
        except TimeoutError:
            words = f"gave no complete answer within {self._access.answer_seconds:g} s"
            raise Failure(words, "too slow") from None
        except self._failed as error:
            raise Failure(f"broke off: {reason(error)}", "connection", rests=True) from None
        finally:
            server.under_way -= 1
        if not response.is_success:
            # Some servers repeat a key that they refuse; it goes before the text is shortened.
            raise of_status(response.status_code, self._safe(response.text).encode(), response.headers)
        try:
            return read(json.loads(response.content))
        except BadAnswerError as error:
            raise Failure(f"gave an answer that {error}", "bad answer") from None
        except (ValueError, RecursionError):
            raise Failure("gave an answer that is no JSON", "bad answer") from None

    def _for_good(self, server: _Server, failure: Failure, about: str, attempts: int) -> ServerError:
        times = f", after {attempts} attempts" if attempts > 1 else ""
        return ServerError(f"{server.address} {self._safe(failure.words)} (for {about}{times})", failure.status)

    def _safe(self, text: str) -> str:
        """A server's words without the key."""
        return text.replace(self._access.key, "***") if self._access.key else text
