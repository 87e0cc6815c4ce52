"""How many reference rewards does QRPO need on the quickstart task, for data of the reference policy itself?

    python -m qrpo_jax.main --config=configs/finding_quickstart_references.py --workdir=runs/references
    python -m configs.findings runs/references

The reference policy samples 31 completions a prompt; eight of them are trained on, and each is ranked among the others
of the first 2, 4, 11 or 31: one or two references, three or four, 10, and 30. Three seeds each (docs/findings.md).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train", "evaluate")
    config.sample.completions = 31
    config.select.first = 8
    config.sweep = {"select.reference_count": [2, 4, 11, 31], "seed": [0, 1, 2]}
    return config
