"""QRPO on Llama 3.2 1B, on eight v5e or v6e chips.

python -m qrpo_jax.main --config=configs/llama32_1b.py --workdir=runs/llama32_1b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("llama32_1b", topology="v5e:2x4")
    config.model.remat = "attention"  # 16 GB a chip
    return config
