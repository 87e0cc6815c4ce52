"""QRPO on Llama 3.1 405B, on the smallest slice of v5p chips on which all its parameters can be trained in float32.

Parameters, gradients and moments are 16 bytes a parameter: 51 GB on each of 128 chips. On 64 they would fill all of
the 102 GB and leave nothing for activations.

python -m qrpo_jax.main --config=configs/llama31_405b.py --workdir=runs/llama31_405b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("llama31_405b", topology="v5p:4x4x8")
    config.model.remat = "full"
    return config
