"""Random keys of prompts, so that what is sampled for a prompt depends on no other prompt."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import Array

from qrpo_jax.model.decoder import Parameters
from qrpo_jax.sampling.sampler import Samples


def prompt_keys(seed: int, purpose: str, indices: Sequence[int], count: int) -> np.ndarray:
    """One key for each prompt; it depends on seed, purpose and the prompt's index alone.

    Args:
      seed: of the job.
      purpose: separates draws for the same prompt, such as "sample" and "evaluate policy".
      indices: of the prompts in their split.
      count: P, keys in all; those after the last index are padding.

    Returns:
      Raw key data, uint32 [P, 2].
    """
    key = jax.random.key(seed)
    for letter in purpose.encode():
        key = jax.random.fold_in(key, letter)
    padding = [0] * (count - len(indices))
    keys_P = jax.vmap(jax.random.fold_in, (None, 0))(key, np.asarray([*indices, *padding], np.uint32))
    return np.asarray(jax.random.key_data(keys_P))


def with_raw_keys(sampler: Callable) -> Callable:
    """The sampler with raw key data [P, 2] for its keys; a host array cannot hold typed keys."""

    def sample(parameters: Parameters, tokens_PxL: Array, lengths_P: Array, keys_Px2: Array) -> Samples:
        return sampler(parameters, tokens_PxL, lengths_P, jax.random.wrap_key_data(keys_Px2))

    return sample
