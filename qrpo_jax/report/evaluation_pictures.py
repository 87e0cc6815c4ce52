"""The pictures of a held-out evaluation, from results.json."""

from typing import Any

import jax
import numpy as np
from markupsafe import Markup

from qrpo_jax import optimum, transforms
from qrpo_jax.report import evaluation_plots
from qrpo_jax.report.evaluation_plots import Frontier
from qrpo_jax.report.run_pictures import Picture

BETAS, WIDTH = 41, 10.0  # of the frontier: from the median β over WIDTH to WIDTH times that


def evaluation_pictures(results: dict[str, Any]) -> list[Picture]:
    """The policy beside its optimum, where both are known, and the curve over training, if there is one."""
    curve, pictures = results.get("curve", []), []
    achieved = results.get("achieved")
    if achieved and achieved["reached"]["kl"] is not None:
        line = frontier(results["settings"]["transform"], results["optimum"]["beta"][1])
        svg = evaluation_plots.asked_and_achieved(line, achieved, results["policy"], curve)
        pictures.append(Picture(Markup(svg), sentence(achieved["verdict"])))
    if curve:
        pictures.append(Picture(Markup(evaluation_plots.held_out_curve(curve)), curve_caption(results)))
    return pictures


def sentence(clause: str) -> str:
    """A clause as a sentence.

    >>> sentence("asked for KL 1")
    'Asked for KL 1.'
    """
    return f"{clause[:1].upper()}{clause[1:]}."


def frontier(name: str, beta: float) -> Frontier:
    """The optimum of a transform for β around this one, as far as they have one."""
    transform = transforms.parse(name)
    betas = beta * np.geomspace(1 / WIDTH, WIDTH, BETAS)
    betas = betas[betas > transform.smallest_beta]
    with jax.enable_x64(True):
        quantile = jax.jit(jax.vmap(lambda b: optimum.expected_quantile(b, transform)))(betas)
        return Frontier(np.asarray(optimum.kl(betas, transform)), np.asarray(quantile))


def curve_caption(results: dict[str, Any]) -> str:
    best = results["best"]
    text = "Step 0 is the reference. All steps draw with the same random numbers."
    if best is None:
        return text
    reward = best["reporting"]["mean_reward"]
    return f"{text} Best on the selection half: step {best['step']}, with mean reward {reward:.3f} on the other half."
