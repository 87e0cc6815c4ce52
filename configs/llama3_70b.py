"""QRPO on Llama 3.1 or 3.3 70B, on 128 v5p chips.

python -m qrpo_jax.main --config=configs/llama3_70b.py --workdir=runs/llama3_70b --config.stages=compile
"""

from ml_collections import ConfigDict

from configs import at_scale


def get_config() -> ConfigDict:
    config = at_scale.get_config("llama3_70b", topology="v5p:4x4x8")
    # 8192 split 64 ways is 128 numbers, a whole lane of the vector unit. Split 128 ways, the compiler makes each gather
    # out of zeros and an all-reduce.
    config.mesh.data = 2
    return config
