"""Keys of prompts: the same for a prompt in whatever company, and different for every purpose and index."""

import jax
import numpy as np

from qrpo_jax.sampling.keys import prompt_keys, with_raw_keys

INDICES = [2, 3, 5, 7, 1_000_003]
GOLDEN = [[1480027865, 447215107]]  # seed 3, "sample", index 5


def test_a_prompts_key_depends_on_seed_purpose_and_index_alone():
    together = prompt_keys(3, "sample", INDICES, 7)
    alone = np.concatenate([prompt_keys(3, "sample", [index], 1) for index in INDICES])
    np.testing.assert_array_equal(together[:5], alone)
    assert together.shape == (7, 2) and together.dtype == np.uint32


def test_no_two_seeds_purposes_or_indices_share_a_key():
    keys = [prompt_keys(seed, purpose, INDICES, 5) for seed in (3, 4) for purpose in ("sample", "evaluate policy")]
    distinct = np.unique(np.concatenate(keys), axis=0)
    assert len(distinct) == 20, len(distinct)


def test_the_keys_of_a_seed_never_change():
    """Golden: with other keys, a job of the same seed would sample other rows."""
    np.testing.assert_array_equal(prompt_keys(3, "sample", [5], 1), GOLDEN)


def test_raw_keys_draw_what_typed_keys_draw():
    def sampler(parameters, tokens_PxL, lengths_P, keys_P):
        return jax.vmap(jax.random.bits)(keys_P)

    keys_Px2 = prompt_keys(3, "sample", INDICES, 5)
    typed = sampler(None, None, None, jax.random.wrap_key_data(keys_Px2))
    np.testing.assert_array_equal(with_raw_keys(sampler)(None, None, None, keys_Px2), typed)
