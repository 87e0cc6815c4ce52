"""Stage `compare_transforms`: figures and plots of the optimal policy for each transform and β.

It needs no model, no data and no accelerator: everything follows from f and log Z, in float64 on the CPU.
"""

from typing import Any

import jax
import numpy as np

from qrpo_jax import transforms
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import UserError, located
from qrpo_jax.files import write_json, write_text
from qrpo_jax.job.job import Job
from qrpo_jax.report import transform_figures, transform_page
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.transform_figures import Grid

NUMBERS = "figures.json"


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
    with located("compare_transforms.transforms"):
        for name in job.config.compare_transforms.transforms:
            check_transform(name)


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
