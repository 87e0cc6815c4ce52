"""Grids of cases of which the default suite runs a sample; slow runs take the others too."""

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int = 2) -> list[Any]:
    """All cases, to parametrize over; all but every n-th are slow.

    Args:
      cases: a tuple has one value for each argument.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] * (i % every > 0))
        for i, case in enumerate(cases)
    ]
