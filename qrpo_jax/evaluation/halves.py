"""Halves: prompts are split once, by their ids, into those that choose and those that report.

A checkpoint or a setting that is chosen by its reward on some prompts looks better on them than it is. So choices are
made on the selection half, and figures come from the reporting half.
"""

import hashlib

SELECTION, REPORTING = "selection", "reporting"
HALVES = (SELECTION, REPORTING)
SALT = "qrpo-jax halves 1: "  # never changes, so that the halves are the same in all runs and versions


def half_of(row_id: str) -> str:
    """The half of a prompt, which depends on the id of its row alone.

    >>> [half_of(f"eval-{i}") for i in range(4)]
    ['selection', 'selection', 'reporting', 'reporting']
    """
    digest = hashlib.sha256((SALT + row_id).encode("utf-8", "surrogatepass")).digest()
    return HALVES[digest[0] & 1]
