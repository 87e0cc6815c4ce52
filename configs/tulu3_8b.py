"""QRPO on Llama-3.1-Tulu-3-8B-SFT, a policy of the QRPO paper (arXiv 2507.08068), on 32 v5p or 64 v6e chips.

python -m qrpo_jax.main --config=configs/tulu3_8b.py --workdir=runs/tulu3_8b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("tulu3_8b", topology="v5p:2x4x4")
    return config
