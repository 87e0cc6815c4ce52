"""QRPO on Llama 3.1 or 3.3 70B, on 128 v5p chips.

    python -m qrpo_jax.main --config=configs/llama3_70b.py --workdir=runs/llama3_70b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("llama3_70b", topology="v5p:4x4x8")
    return config
