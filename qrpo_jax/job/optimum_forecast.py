"""The forecast of stage `train`: what its settings ask for, on the completions that it begins with."""

from typing import Any

import numpy as np

from qrpo_jax import transforms
from qrpo_jax.data.examples import Examples
from qrpo_jax.job.job import Job
from qrpo_jax.job.training_options import make_length
from qrpo_jax.report import forecast


def say_forecast(job: Job, examples: Examples) -> dict[str, Any]:
    """Prints the forecast of an objective that is ranked, and returns its figures.

    Args:
      examples: ranked among references, at least one.
    """
    config, transform = job.config.train, transforms.parse(job.config.train.transform)
    length_C = examples.completions_C.length
    beta_C = np.broadcast_to(make_length(job).beta(config.beta, length_C), length_C.shape)
    # For a scaled transform the forecast assumes a prompt of average spread.
    figures = forecast.figures(
        examples, transform, beta_C, partition_name=config.partition, estimator=job.config.select.estimator
    )
    for line in forecast.lines(figures, transform, job.config.select.ties):
        job.say(f"train: {line}")
    return figures
