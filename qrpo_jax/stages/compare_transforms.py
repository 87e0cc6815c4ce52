"""Stage `compare_transforms`: figures and plots of the optimal policy for each transform and β.

It needs no model, no data and no accelerator: everything follows from f and log Z, in float64 on the CPU.
"""

from typing import Any

import jax
import numpy as np

from qrpo_jax import quantiles, transforms
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import UserError, located
from qrpo_jax.files import write_json, write_text
from qrpo_jax.job.bounds import refuse
from qrpo_jax.job.job import Job
from qrpo_jax.report import transform_figures, transform_page
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.transform_figures import Grid

SECTION = "compare_transforms"
NUMBERS = "figures.json"
BETA_RANGE = (transform_figures.LEAST_BETA, 1e5)
MOST_REFERENCES = 100_000


def run(job: Job) -> dict[str, Any]:
    if not is_first():
        return {}
    section, folder = job.config.compare_transforms, job.folder("compare_transforms")
    grid = Grid(section.betas, section.references, section.estimators)
    with jax.enable_x64(True), jax.default_device("cpu"):
        chosen = {name: transforms.parse(name)._replace(name=name) for name in section.transforms}
        numbers = transform_figures.all_numbers(chosen, grid)
        page = transform_page.build(chosen, grid, numbers)
    write_json(folder / NUMBERS, numbers)
    write_text(folder / PAGE, page)
    for line in transform_page.terminal_lines(numbers):
        job.say(line)
    job.say(f"compare_transforms: {folder / PAGE}")
    return {"page": PAGE, "numbers": NUMBERS, "optima": len(numbers["optima"])}


def check(job: Job) -> None:
    section = job.config.compare_transforms
    for key in ("transforms", "betas", "references", "estimators"):
        values = section[key]
        if not values or len(set(values)) < len(values):
            raise refuse(f"{SECTION}.{key}", f"{tuple(values)}; name at least one, each once")
    with located(f"{SECTION}.transforms"):
        for name in section.transforms:
            check_transform(name)
    for beta in section.betas:
        low, high = BETA_RANGE
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not low <= beta <= high:
            raise refuse(f"{SECTION}.betas", f"{beta!r}; each must be a number from {low:g} to {high:g}", "has")
    for count in section.references:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_REFERENCES:
            raise refuse(
                f"{SECTION}.references", f"{count!r}; each must be a whole number from 1 to {MOST_REFERENCES}", "has"
            )
    for estimator in section.estimators:
        if estimator not in quantiles.ESTIMATORS:
            raise refuse(f"{SECTION}.estimators", f"{estimator!r}; allowed: {', '.join(quantiles.ESTIMATORS)}", "has")


def check_transform(name: str) -> None:
    """Refuses a transform that depends on the prompt, or that decreases anywhere."""
    transform = transforms.parse(name)
    if transform.scaled:
        raise UserError(
            f"transform {name!r} differs from prompt to prompt; name one with a fixed spread, such as gaussian(0, 0.5)"
        )
    values = np.asarray(transform.apply(np.linspace(0, 1, 1001)[1:-1]))
    if not (np.diff(values) >= -1e-6 * np.abs(values).max()).all():
        raise UserError(f"transform {name!r} decreases somewhere; only transforms that never decrease can be compared")
