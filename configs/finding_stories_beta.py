"""finding_beta on the story model, whose reward is the share of words inside quotation marks.

    python -m qrpo_jax.main --config=configs/finding_stories_beta.py --workdir=runs/finding_stories_beta
    python -m configs.findings runs/finding_stories_beta

Five β of QRPO, three seeds each. Prompts of the training rows are held out, and the last step has the mean log-ratio of
their high- and low-reward completions beside those of the optimum (docs/findings.md).
"""

from ml_collections import ConfigDict

from configs import stories


def get_config() -> ConfigDict:
    config = stories.get_config()
    config.stages = ("sample", "score", "reference", "train")
    config.prompts.count = 256 + 64  # of which 64 are held out
    config.select.ties = "mid"
    config.train.evaluate_every = 1_000_000  # the last step alone
    config.sweep = {"train.beta": [0.01, 0.03, 0.1, 0.3, 1.0], "seed": [0, 1, 2]}
    return config
