"""On-policy against offline: QRPO both ways, GRPO, RLOO and PPO on the quickstart task, three seeds each.

    python -m qrpo_jax.main --config=configs/compare_online.py --workdir=runs/compare_online
    python -m configs.findings runs/compare_online

All points of a seed start from one reference policy. Offline QRPO trains on the stored completions of the quickstart,
the others on as many that they sample themselves, 16,384. Of each method the selection half of held-out prompts chooses
one of two settings, among those that stay within 0.5 nats of the reference; the other half gives its figures.

Result on 2026-11-28 (docs/findings.md): all on-policy methods are above the offline policy, which moves further than
they do. Time: 37 min on 2 cores of an Intel Xeon with other work beside it, as two shards on a core each
(`--config.mesh.cpu_devices=1 --shard=0/2` and `--shard=1/2` at the same time in one work directory).
"""

from ml_collections import ConfigDict

from configs import quickstart_online

SEEDS = [0, 1, 2]
OFFLINE = {"train.data": ["stored"], "train.objective": ["qrpo"], "train.learning_rate": [2e-4]}
ONLINE = {"train.data": ["on_policy"], "seed": SEEDS}


def get_config() -> ConfigDict:
    config = quickstart_online.get_config()
    config.stages = ("sft", "sample", "score", "reference", "train", "evaluate", "report")
    config.sweep = [
        {**OFFLINE, "train.transform": ["identity"], "train.beta": [0.3], "seed": SEEDS},
        {**OFFLINE, "train.transform": ["log"], "train.beta": [0.5], "seed": SEEDS},
        {"train.objective": ["qrpo"], "train.beta": [0.35, 0.5], **ONLINE},
        {"train.objective": ["grpo"], "train.beta": [0.5, 0.7], **ONLINE},
        {"train.objective": ["rloo"], "train.beta": [0.3, 0.5], **ONLINE},
        {"train.objective": ["ppo"], "train.beta": [0.25, 0.4], **ONLINE},
    ]
    config.collect.method = ("train.data", "train.objective")
    config.collect.max_kl = 0.5
    config.collect.best_of = (2, 3)
    return config
