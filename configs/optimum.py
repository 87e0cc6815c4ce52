"""What transforms and betas ask of a policy: optima, their price in KL, and what few references change.

python -m qrpo_jax.main --config=configs/optimum.py --workdir=runs/optimum
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.stages = ("optimum",)
    return config
