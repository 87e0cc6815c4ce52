"""What transforms and betas imply for the optimal policy: its price in KL, and the effect of few references.

    python -m qrpo_jax.main --config=configs/optimum.py --workdir=runs/optimum

It needs no model, no data and no accelerator. It writes compare_transforms/report.html: the paper's figure 5 (at beta
0.1 the optimum of identity takes probability from 77 % of the reference's completions and gives it to 23 %), what
each transform buys for the same KL, and for every transform and beta its densities, figures, and the gap between the
log Z of the population and that of n references. compare_transforms/figures.json holds the numbers. To choose others,
quoted for the shell:

    --config.compare_transforms.transforms="('power(0.7)', 'threshold(0.8)')"
    --config.compare_transforms.betas="(0.05, 0.2)"

Measured on 2026-11-25 on 2 cores of an AMD EPYC: 23 s and 0.85 GB, compilation included. At 2 nats identity has
expected quantile 0.950 (beta 0.0498), like Best-of-19; normal-icdf has 0.921 (beta 0.5).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.stages = ("compare_transforms",)
    return config
