"""Every attention backend in a form that runs on this machine: kernels for other devices in Pallas' interpreter."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import jax
import pytest

from qrpo_jax.model import attention


def here(name: str) -> attention.Backend:
    """The backend of that name, interpreted if it is for another platform."""
    attend = attention.backend(name)
    own = attention.BACKENDS[name] in (None, jax.default_backend())
    if own or "interpret" not in inspect.signature(attend).parameters:
        return attend
    return functools.partial(attend, interpret=True)


# Without those that this machine cannot run, as on one without a C++ compiler.
ALL = {name: here(name) for name in attention.BACKENDS if attention.missing(name) is None}


def crossed(cases: Iterable[Any], fast: Any, names: Iterable[str] = ALL) -> list[Any]:
    """Every backend with every case, to parametrize "backend, case".

    Outside of slow runs, a backend in the interpreter, which takes seconds to compile, meets the case `fast` alone, and
    the others, which run here as they are, meet it and every second of the other cases.
    """

    def slow(name: str, case: Any, odd: int) -> bool:
        interpreted = attention.BACKENDS.get(name) not in (None, jax.default_backend())
        return case != fast and (interpreted or odd % 2 > 0)

    return [
        pytest.param(name, case, marks=[pytest.mark.slow] * slow(name, case, i + j))
        for i, case in enumerate(cases)
        for j, name in enumerate(names)
    ]
