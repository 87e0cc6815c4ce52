"""An event loop in a thread of its own, so that requests go on while the main thread works or waits."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines. A context manager: at its end it cancels those that are not done.

    Signals reach the main thread as ever: the loop sets no handlers.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="requests")
        self._entered: list[AbstractAsyncContextManager] = []

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enters an async context manager, which is left at the end."""
        entered = self.start(manager.__aenter__()).result()
        self._entered.append(manager)
        return entered

    def __exit__(self, *error: Any) -> None:
        self.start(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for manager in reversed(self._entered):
            await manager.__aexit__(None, None, None)
