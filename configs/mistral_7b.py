"""QRPO on Mistral 7B Instruct v0.2, a policy of the QRPO paper (arXiv 2507.08068), on 32 v5p chips.

python -m qrpo_jax.main --config=configs/mistral_7b.py --workdir=runs/mistral_7b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("mistral_7b", topology="v5p:2x4x4")
    return config
