"""The code grid of the QRPO paper on LeetCodeDataset: QRPO, DPO, REBEL and SimPO, each with its learning rates and β.

    qrpo-jax --config=paper_leetcode_llama_grid --workdir=runs/paper_leetcode_llama

36 runs, 9 of each method. Stage `reference` runs once for all. On several machines that share the work directory, each
with `--shard=i/n`, every machine takes its share of the runs. Data, hardware, time and the paper's
figures are in `configs/paper_leetcode_llama.py`; docs/sweeps.md explains sweeps.
"""

from ml_collections import ConfigDict

from configs import paper, paper_leetcode_llama


def get_config() -> ConfigDict:
    config = paper_leetcode_llama.get_config()
    config.sweep = paper.sweep(paper_leetcode_llama.GRIDS, "qrpo", "dpo", "rebel", "simpo")
    config.collect.method = ("train.objective",)
    config.collect.sort = "reward"
    return config
