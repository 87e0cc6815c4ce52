"""Numbers of the tokens of completions, for objectives of tokens: known where the policy samples itself."""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # NumPy on the host, jax on the mesh


class PerToken(NamedTuple):
    """What is known of each token of a completion before a step; every field has the same shape.

    That shape is [T], of all tokens of all completions one after the other, where rows are sampled, and [B, L] in
    `Batch`, at the position that predicts the token, as `Batch.targets_BxL` has it. All are float32, and 0 where
    nothing is predicted.
    """

    old_log_prob: Array  # log π_old in nats, of the policy that sampled, as training computes it
    reference_log_prob: Array  # log π_ref in nats, as training computes it
    # Weight of the token in the loss for what sampler and trainer disagree on: min(π_old / π_sampler, cap); 1 without.
    correction: Array
    advantage: Array  # in units of the reward, or of its standard deviation
    value: Array  # V_old, what the value head expected at this position; 0 without a value head
    target_value: Array  # the return that the value head is to expect here; 0 without a value head


# Numbers of positions where nothing is predicted, and of completions that have no part in the loss.
NOTHING = PerToken(*(np.float32(0) for _ in PerToken._fields))
