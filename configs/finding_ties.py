"""Do rules for ties matter where rewards are shares of ten tests, and many completions of a prompt have the same?

    python -m qrpo_jax.main --config=configs/finding_ties.py --workdir=runs/finding_ties
    python -m configs.findings runs/finding_ties

The three rules of `select.ties` on the quickstart task with QRPO, three seeds each (docs/findings.md).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train", "evaluate")
    config.sweep = {"select.ties": ["upper", "mid", "random"], "seed": [0, 1, 2]}
    config.collect.method = ("select.ties",)
    return config
