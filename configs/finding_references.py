"""How many reference rewards does QRPO need, for data of the reference policy itself and for good data of another one?

    python -m qrpo_jax.main --config=configs/stories.py --workdir=runs/expert --config.prompts.held_out=352 \
      --config.stages=sample,score,reference,train,evaluate
    python -m qrpo_jax.main --config=configs/stories.py --workdir=runs/expert --export-rows=evaluate/policy
    python -m qrpo_jax.main --config=configs/stories.py --workdir=runs/expert --export-rows=evaluate/reference
    python -m qrpo_jax.main --config=configs/finding_references.py --workdir=runs/finding_references
    python -m configs.findings runs/finding_references

The first run trains an expert that writes dialogue. Its completions of 352 beginnings of stories are the good offline
data, and those of the reference policy for the same beginnings the off-policy data. The sweep then trains on eight
completions of each of 256 prompts, ranked among 1, 3, 10 or 30 fresh ones of the reference policy, three seeds each;
the other 96 prompts are held out (docs/findings.md).
"""

from ml_collections import ConfigDict

from configs import stories

DATA = "parquet:runs/expert/parquet/evaluate/{}/*.parquet"


def get_config() -> ConfigDict:
    config = stories.get_config()
    config.stages = ("sample", "score", "reference", "train", "evaluate")
    config.prompts.count = 0
    config.prompts.held_out = 96
    config.sample.completions = 30
    config.select.first = 8  # those of the data
    config.sweep = {
        "prompts.source": [DATA.format("policy"), DATA.format("reference")],
        "select.reference_count": [1, 3, 10, 30],
        "seed": [0, 1, 2],
    }
    config.collect.method = ("prompts.source", "select.reference_count")
    return config
