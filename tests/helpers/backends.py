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


ALL = {name: here(name) for name in attention.BACKENDS}


def crossed(cases: Iterable[Any], fast: Any, names: Iterable[str] = ALL) -> list[Any]:
    """Every backend with every case, to parametrize "backend, case".

    The interpreter takes seconds to compile, so outside of slow runs it meets the case `fast` alone.
    """
    return [
        pytest.param(name, case, marks=[pytest.mark.slow] * (attention.BACKENDS.get(name) is not None and case != fast))
        for case in cases
        for name in names
    ]
