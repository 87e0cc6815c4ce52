"""Do implicit rewards follow the length of completions where rewards do not?

    python -m qrpo_jax.main --config=configs/finding_length.py --workdir=runs/finding_length
    python -m configs.findings runs/finding_length

The model of the quickstart writes expressions in a and b, and the reward is how many of the letters are b: on average
a half, however long the expression is. QRPO, REBEL, DPO and SimPO, three seeds each (docs/findings.md).
"""

import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart

SEEDS = [0, 1, 2]
PAIRS = {"select.units": ["best_worst"]}


def share_of_b(prompt: Sequence[Any], completion: str, payload: Any) -> float:
    """The share of b among the arguments that an expression names; a half where it names none."""
    named = re.findall(r"\b[ab]\b", completion)
    return named.count("b") / len(named) if named else 0.5


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train", "evaluate")
    config.reward.name = "configs.finding_length:share_of_b"
    config.sweep = [
        {"train.objective": ["qrpo"], "train.beta": [0.3], "seed": SEEDS},
        {"train.objective": ["rebel"], **PAIRS, "train.beta": [0.3], "seed": SEEDS},
        {"train.objective": ["dpo"], **PAIRS, "train.beta": [1.0], "seed": SEEDS},
        {"train.objective": ["simpo"], **PAIRS, "train.beta": [10.0], "seed": SEEDS},
    ]
    return config
