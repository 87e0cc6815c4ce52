"""Numbers of completions: one record from the examples on the host to the objective on the device."""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # NumPy on the host, jax on the mesh


class PerCompletion(NamedTuple):
    """What is known of each completion before a step; every field has the same shape.

    That shape is [C] in `Examples`, [B, S] in `Batch` and [..., S] for an objective. Unknown numbers are NaN.
    """

    reward: Array  # float32
    quantile: Array  # float32, clamped as the transform needs it
    ties: Array  # float32, share of its reference rewards that equal its reward
    references: Array  # int32, number of reference rewards that it is ranked against
    log_z: Array  # float32, log partition function at its β, see `partition`
    reward_scale: Array  # float32, std of its prompt's reference rewards over the mean std of all prompts
    reference_log_prob: Array  # float32, log π_ref in nats
    length: Array  # int32, tokens without the prompt
    weight: Array  # float32, its share in the loss; 0 where the sample selector leaves it out
    high: Array  # bool, chosen of a pair; for a single completion, quantile above one half


# Numbers of an empty slot. Every transform is finite at this quantile, and no gradient becomes NaN.
NEUTRAL = PerCompletion(
    reward=np.float32(0),
    quantile=np.float32(0.5),
    ties=np.float32(0),
    references=np.int32(0),
    log_z=np.float32(0),
    reward_scale=np.float32(1),
    reference_log_prob=np.float32(0),
    length=np.int32(0),
    weight=np.float32(0),
    high=np.bool_(False),
)
