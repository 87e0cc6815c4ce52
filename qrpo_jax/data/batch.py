"""A batch on device: B packed rows of L tokens that hold up to S completions each."""

from typing import Any, NamedTuple

Array = Any  # NumPy on the host, jax on the mesh


class Batch(NamedTuple):
    """Packed completions with the numbers their objectives need.

    Completion s of a row has segment s + 1; segment 0 is padding. Each segment is prompt then completion.
    The two completions of a pair stand in slots 2k (higher reward) and 2k + 1 of the same row.
    Nothing here says where the completions came from: a loader or an on-policy sampler may fill it.
    """

    tokens_BxL: Array  # int32
    segments_BxL: Array  # int32
    positions_BxL: Array  # int32, from 0 in every segment
    targets_BxL: Array  # bool, tokens of completions (the prompt is excluded)
    present_BxS: Array  # bool, slots in use
    weight_BxS: Array  # float32, sample selector's weight of the completion
    reward_BxS: Array  # float32
    quantile_BxS: Array  # float32, clamped as the transform asks
    log_z_BxS: Array  # float32, log partition function of the completion's prompt and β, see `partition`
    reward_scale_BxS: Array  # float32, std of the prompt's reference rewards over its mean across prompts
    reference_log_prob_BxS: Array  # float32
    length_BxS: Array  # int32, completion tokens
    high_BxS: Array  # bool, high-reward side: chosen of a pair, else quantile above one half
    ties_BxS: Array  # float32, share of the reference rewards equal to this reward
    example_BxS: Array  # int32, index in the loader's table, -1 for an empty slot
