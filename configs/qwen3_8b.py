"""QRPO on Qwen3 8B, on 32 v5p chips.

python -m qrpo_jax.main --config=configs/qwen3_8b.py --workdir=runs/qwen3_8b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("qwen3_8b", topology="v5p:2x4x4")
    return config
