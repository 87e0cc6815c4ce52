"""The chat grid of the QRPO paper on UltraFeedback: QRPO, DPO, REBEL and SimPO, each with its learning rates and β.

    qrpo-jax --config=paper_ultrafeedback_mistral_grid --workdir=runs/paper_ultrafeedback_mistral

36 runs, 9 of each method. Stage `reference` runs once for all. On several machines that share the work directory, each
with `--shard=i/n`, every machine takes its share of the runs. Data, hardware, time and the paper's
figures are in `configs/paper_ultrafeedback_mistral.py`; docs/sweeps.md explains sweeps.
"""

from ml_collections import ConfigDict

from configs import paper, paper_ultrafeedback_mistral


def get_config() -> ConfigDict:
    config = paper_ultrafeedback_mistral.get_config()
    config.sweep = paper.sweep(paper_ultrafeedback_mistral.GRIDS, "qrpo", "dpo", "rebel", "simpo")
    config.collect.method = ("train.objective",)
    config.collect.sort = "reward"
    return config
