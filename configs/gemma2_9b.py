"""QRPO on Gemma 2 9B, whose layers alternate between a window and none, on 32 v5p chips.

python -m qrpo_jax.main --config=configs/gemma2_9b.py --workdir=runs/gemma2_9b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("gemma2_9b", topology="v5p:2x4x4")
    return config
