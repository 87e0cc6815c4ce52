"""The chat grid of the QRPO paper on Magpie-Air: QRPO, DPO, REBEL and SimPO, each with its learning rates and β.

    qrpo-jax --config=paper_magpie_llama_grid --workdir=runs/paper_magpie_llama

45 runs: 18 of QRPO (with 1 and with 3 references) and 9 of each baseline. Stage `reference` runs once for all. On
several machines that share the work directory, each with `--shard=i/n`, every machine takes its share of the runs.
Data, hardware, time and the paper's figures are in `configs/paper_magpie_llama.py`; docs/sweeps.md explains sweeps.
"""

from ml_collections import ConfigDict

from configs import paper, paper_magpie_llama


def get_config() -> ConfigDict:
    config = paper_magpie_llama.get_config()
    config.sweep = paper.sweep(paper_magpie_llama.GRIDS, "qrpo", "dpo", "rebel", "simpo")
    config.collect.method = ("train.objective",)
    config.collect.sort = "reward"
    return config
