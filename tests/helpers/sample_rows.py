"""Rows with values in every field."""

import math

import numpy as np

from qrpo_jax.data import rows
from qrpo_jax.data.rows import Completion, Message, Row


def make_row(i: int, completions: int = 3) -> Row:
    rng = np.random.default_rng(i)
    return Row(
        id=f"row-{i}",
        messages=(Message("system", "Be brief."), Message("user", f"Frage {i}: wie heißt 東京?")),
        payload='{"tests": []}' if i % 2 else "",
        completions=tuple(
            Completion(
                text=f"answer {i}.{j} 🙂",
                tokens=rng.integers(0, 128_000, rng.integers(1, 11), dtype=np.int32),
                finished=bool(j % 2),
                source=rows.COMPLETION_SOURCES[j % 3],
                reward=float(np.float32(rng.normal())),
                log_prob=math.nan if j == 0 else -1.5,
                reference_log_prob=-2.25,
                components=(("tests", 0.25 * j), ("length(1, 9)", -1.5)) if j else (("tests", 0.75),),
            )
            for j in range(completions)
        ),
        reference_rewards=rng.normal(size=i % 3).astype(np.float32),
    )
