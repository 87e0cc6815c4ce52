"""One call in a thread of its own, such as scores on the CPU while the devices train."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Background(Generic[Made]):
    """Starts a call at once. Its thread does not keep the program alive."""

    def __init__(self, call: Callable[[], Made]) -> None:
        self._made: list[Made] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Made]) -> None:
        try:
            self._made.append(call())
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    def result(self) -> Made:
        """Waits for what the call returns; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made[0]
