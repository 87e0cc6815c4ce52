"""Six methods on the quickstart task, each with the settings that suit it best: a fair comparison on a laptop.

    python -m qrpo_jax.main --config=configs/compare_quickstart.py --workdir=runs/compare

QRPO with three transforms, DPO, REBEL, SimPO and SFT on the best completion each have a small grid of β or learning
rate, and Best-of-N of the reference policy needs no training. All methods of a seed share its reference policy,
samples, scores and log π_ref (docs/sweeps.md).
"""

from ml_collections import ConfigDict

from configs import quickstart

SEEDS = [0, 1, 2]
PAIRS = {"select.units": ["best_worst"]}


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.sweep = [
        {"train.objective": ["qrpo"], "train.transform": ["identity"], "train.beta": [0.1, 0.3, 1.0], "seed": SEEDS},
        {"train.objective": ["qrpo"], "train.transform": ["log"], "train.beta": [0.1, 0.3, 1.0], "seed": SEEDS},
        {"train.objective": ["qrpo"], "train.transform": ["normal-icdf"], "train.beta": [0.3, 1.0, 3.0], "seed": SEEDS},
        {"train.objective": ["dpo"], **PAIRS, "train.beta": [0.03, 0.1, 0.3], "seed": SEEDS},
        {"train.objective": ["rebel"], **PAIRS, "train.beta": [0.03, 0.1, 0.3], "seed": SEEDS},
        {"train.objective": ["simpo"], **PAIRS, "train.beta": [1.0, 2.0, 10.0], "seed": SEEDS},
        {
            "train.objective": ["sft"],
            **PAIRS,
            "select.side": ["chosen"],
            "train.learning_rate": [1e-4, 3e-4, 1e-3],
            "seed": SEEDS,
        },
    ]
    config.collect.best_of = (2, 4, 8)
    return config
