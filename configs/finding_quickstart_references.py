"""How many reference rewards does QRPO need on the quickstart task, for data of the reference and of a better policy?

    qrpo-jax --config=quickstart --workdir=runs/reference --config.stages=sft,export
    qrpo-jax --config=quickstart_online --workdir=runs/solver --fork=runs/reference --config.train.objective=ppo \
      --config.train.beta=0.1 --config.rollout.iterations=128 --config.stages=sft,train,export
    qrpo-jax --config=quickstart --workdir=runs/solutions --config.model.path=runs/solver/export/model \
      --config.evaluate.against=runs/reference/export/model --config.prompts.held_out=2432 --config.stages=evaluate
    python -m configs.finding_references runs/solutions
    qrpo-jax --config=finding_quickstart_references --workdir=runs/finding_quickstart_references
    python -m configs.findings runs/finding_quickstart_references

The first two commands make the reference policy and a solver of the task, the third the answers of both to 2,432
prompts, and the fourth writes these as files of JSON lines, with the tests of each prompt. The sweep trains on eight
answers to each of 2,048 prompts, ranked among 1, 3, 10 or 30 fresh ones of the reference policy, three seeds each; the
other 384 prompts are held out (docs/findings.md).

Measured on 2026-11-28 on two cores of an Intel Xeon: the solver 5 min, with a held-out reward of 0.690; the answers 1
min; the sweep, as two shards on a core each, about 20 min.
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.finding_references import by_references

DATA = "jsonl:runs/solutions/{}.jsonl"


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.model.path = "runs/reference/export/model"
    return by_references(config, DATA, held_out=384)
