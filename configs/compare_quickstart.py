"""Six methods on the quickstart task, each with the settings that suit it best: a fair comparison on a laptop.

    python -m qrpo_jax.main --config=configs/compare_quickstart.py --workdir=runs/compare

QRPO with three transforms, DPO, REBEL, SimPO and SFT on the best completion each have a small grid of β or learning
rate, and Best-of-N of the reference policy needs no training. All methods of a seed share its reference policy,
samples, scores and log π_ref (docs/sweeps.md).

63 runs of 21 settings with 3 seeds each. Half of the held-out prompts choose the setting of each method, the other half
gives its figures: choice.md, choice.tex and choice.csv in the work directory. QRPO trains on all eight completions of
a prompt, as it can; the baselines train on the best and the worst, or on the best alone, as they are published. Grids
are centred where one run of seed 0 was good; all other settings are those of the quickstart, which were tuned with
QRPO (identity).

Time: not run as a whole. On 2 cores of an Intel Xeon with other work beside it, on 2026-11-28, the shared stages of a
seed took about 50 s and each of five further points 39 s, so the whole takes about 45 min; two shards
(`--shard=0/2`, `--shard=1/2`) on two machines that share the work directory halve that.
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
        {"train.objective": ["dpo"], **PAIRS, "train.beta": [0.3, 1.0, 3.0], "seed": SEEDS},
        {"train.objective": ["rebel"], **PAIRS, "train.beta": [0.1, 0.3, 1.0], "seed": SEEDS},
        {"train.objective": ["simpo"], **PAIRS, "train.beta": [3.0, 10.0, 30.0], "seed": SEEDS},
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
