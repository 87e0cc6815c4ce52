"""What results.json has of a task: figures of each side with intervals, settings, and a digest of the prompts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import qrpo_jax
from qrpo_jax.evaluation.side_figures import Figures


def figures_record(figures: Figures) -> dict[str, Any]:
    """A table of figures: {"value": ..., "ci95": [low, high]} by name; ends of an unknown interval are NaN."""
    return {name: {"value": figure, "ci95": interval} for name, (figure, interval) in figures.items()}


def with_error(value: float, standard_error: float) -> tuple[float, list[float]]:
    """A figure and its interval from a standard error that another program gives.

    >>> with_error(50.0, 1.0)
    (50.0, [48.04, 51.96])
    """
    return value, [round(value + sign * 1.96 * standard_error, 12) for sign in (-1, 1)]


def digest(parts: Iterable[Any]) -> str:
    """Says whether two results were asked the same: a hash of JSON values in order."""
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, ensure_ascii=True, sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def task_record(kind: str, sides: Mapping[str, Any], settings: Mapping[str, Any], prompts: str) -> dict[str, Any]:
    """The entry of a task.

    Args:
      sides: for each side its `figures`, from `figures_record`, `prompts`, and further numbers.
      settings: that the figures depend on.
      prompts: their digest.
    """
    version = {"qrpo_jax": qrpo_jax.__version__}
    return {"kind": kind, **sides, "settings": dict(settings), "prompts_sha256": prompts, "versions": version}
