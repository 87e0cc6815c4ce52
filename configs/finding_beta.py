"""Does the log-ratio of high-reward completions fall at low β and rise at high β, as the optimum says?

    python -m qrpo_jax.main --config=configs/finding_beta.py --workdir=runs/finding_beta
    python -m configs.findings runs/finding_beta

Five β of QRPO on the quickstart task, three seeds each. 64 prompts of the training rows are held out, and the last step
has the mean log-ratio of their high- and low-reward completions beside those of the optimum (docs/findings.md).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train")
    config.train.evaluate_every = 1_000_000  # the last step alone
    config.sweep = {"train.beta": [0.03, 0.1, 0.3, 1.0, 3.0], "seed": [0, 1, 2]}
    return config
