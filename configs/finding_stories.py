"""Transforms and ties on the story model: what the quickstart task shows, on a pretrained model with another reward.

    python -m qrpo_jax.main --config=configs/finding_stories.py --workdir=runs/finding_stories
    python -m configs.findings runs/finding_stories

QRPO with three transforms at two β each, and the three rules of `select.ties`, three seeds each. The reward is the
share of words inside quotation marks, which is 0 for many stories (docs/findings.md).
"""

from ml_collections import ConfigDict

from configs import stories

SEEDS = [0, 1, 2]
TRANSFORMS = {"identity": [0.03, 0.1], "log": [0.1, 0.3], "normal-icdf": [0.2, 0.5]}


def get_config() -> ConfigDict:
    config = stories.get_config()
    config.stages = ("sample", "score", "reference", "train", "evaluate")
    config.sweep = [
        *(
            {"train.transform": [name], "select.ties": ["mid"], "train.beta": betas, "seed": SEEDS}
            for name, betas in TRANSFORMS.items()
        ),
        {"train.transform": ["identity"], "select.ties": ["upper", "random"], "train.beta": [0.03], "seed": SEEDS},
    ]
    config.collect.method = ("train.transform", "select.ties")
    return config
