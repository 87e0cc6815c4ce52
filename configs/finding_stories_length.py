"""Do implicit rewards follow the length of completions where rewards do not? On the story model.

    python -m qrpo_jax.main --config=configs/finding_stories_length.py --workdir=runs/finding_stories_length
    python -m configs.findings runs/finding_stories_length

The reward is the share of words that begin with a vowel, whatever the length of the paragraph that is written. QRPO,
REBEL, DPO and SimPO, three seeds each (docs/findings.md).
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import stories

SEEDS = [0, 1, 2]
PAIRS = {"select.units": ["best_worst"]}


def share_of_vowels(prompt: Sequence[Any], completion: str, payload: Any) -> float:
    """The share of words that begin with a vowel; 0 without a word."""
    words = [word for word in completion.lower().split() if word[0].isalpha()]
    return sum(word[0] in "aeiou" for word in words) / len(words) if words else 0.0


def get_config() -> ConfigDict:
    config = stories.get_config()
    config.stages = ("sample", "score", "reference", "train", "evaluate")
    # The model writes no end token, so that all its stories are as long as the limit: a paragraph has a length.
    for section in (config.sample, config.evaluate):
        section.stop = ("\n",)
    config.reward.name = "configs.finding_stories_length:share_of_vowels"
    config.sweep = [
        {"train.objective": ["qrpo"], "train.beta": [0.03], "seed": SEEDS},
        {"train.objective": ["rebel"], **PAIRS, "train.beta": [0.01], "seed": SEEDS},
        {"train.objective": ["dpo"], **PAIRS, "train.beta": [0.1], "seed": SEEDS},
        {"train.objective": ["simpo"], **PAIRS, "train.beta": [2.0], "seed": SEEDS},
    ]
    return config
