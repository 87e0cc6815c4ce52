"""Stage `report` placeholder to be replaced."""

from typing import Any

from qrpo_jax.job import Job


def run(job: Job) -> dict[str, Any]:
    return {}
