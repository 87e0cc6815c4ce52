"""QRPO on Apertus 70B, which its makers aligned with a variant of QRPO, on 128 v5p chips.

python -m qrpo_jax.main --config=configs/apertus_70b.py --workdir=runs/apertus_70b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("apertus_70b", topology="v5p:4x4x8")
    config.mesh.data = 2  # as in llama3_70b
    return config
