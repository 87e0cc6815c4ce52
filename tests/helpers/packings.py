"""Random packed rows: groups of completions that share a prompt, groups of one, and padding between and after them."""

import jax.numpy as jnp
import numpy as np

from qrpo_jax.model.layout import Layout


def random_layout(rng: np.random.Generator, rows: int, length: int, longest: int, siblings: int = 4) -> Layout:
    """The layout of `rows` rows of `length` tokens, with parts of up to `longest` tokens.

    Some groups have no shared prompt, some no completion, and every third gap between groups is padding.
    """
    packed = np.zeros((3, rows, length), np.int32)
    for row in range(rows):
        at, group, segment = int(rng.integers(0, 3)), 0, 0
        while at < length:
            if rng.integers(3) == 0:
                at += int(rng.integers(1, max(2, longest // 3)))
            group += 1
            prompt = int(rng.integers(0, longest + 1)) * int(rng.integers(4) > 0)
            packed[:, row, at : at + prompt] = np.stack(
                [np.full(prompt, group), np.zeros(prompt), np.arange(prompt)]
            ).astype(np.int32)[:, : max(0, length - at)]
            at += prompt
            for _ in range(int(rng.integers(0 if prompt else 1, siblings + 1))):
                segment += 1
                own = int(rng.integers(1, longest + 1))
                packed[:, row, at : at + own] = np.stack(
                    [np.full(own, group), np.full(own, segment), prompt + np.arange(own)]
                ).astype(np.int32)[:, : max(0, length - at)]
                at += own
    return Layout(*(jnp.asarray(x) for x in packed))
