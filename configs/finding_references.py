"""How many reference rewards does QRPO need, for data of the reference policy itself and for good data of another one?

    python -m qrpo_jax.main --config=configs/stories.py --workdir=runs/expert --config.prompts.held_out=352 \
      --config.stages=sample,score,reference,train,evaluate
    python -m configs.finding_references runs/expert
    python -m qrpo_jax.main --config=configs/finding_references.py --workdir=runs/finding_references
    python -m configs.findings runs/finding_references

The first run trains an expert that writes dialogue. The second command writes its completions of 352 beginnings of
stories, which are the good offline data, and those of the reference policy for the same beginnings, the off-policy
data, as files of JSON lines. The sweep trains on eight completions of each of 256 beginnings, ranked among 1, 3, 10 or
30 fresh ones of the reference policy, three seeds each; the other 96 are held out (docs/findings.md).
"""

import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs import stories
from qrpo_jax.data import row_files

DATA = "jsonl:runs/expert/{}.jsonl"
SIDES = "policy", "reference"


def get_config() -> ConfigDict:
    return by_references(stories.get_config(), DATA, held_out=96)


def by_references(config: ConfigDict, data: str, held_out: int) -> ConfigDict:
    """The sweep over data of both sides and numbers of references; `data` is the address of a side's file, with {}."""
    config.stages = ("sample", "score", "reference", "train", "evaluate")
    config.prompts.source = data.format(SIDES[0])
    config.prompts.count = 0
    config.prompts.held_out = held_out
    config.sample.completions = 30
    config.select.first = 8  # those of the data
    config.select.exclude_own = False  # which are no references, so that one reference is enough
    config.sweep = {
        "prompts.source": [data.format(side) for side in SIDES],
        "select.reference_count": [1, 3, 10, 30],
        "seed": [0, 1, 2],
    }
    config.collect.method = ("prompts.source", "select.reference_count")
    return config


def write_data(workdir: Path, side: str) -> None:
    """The held-out completions of one side of a run, but empty ones, as a file beside its stages."""
    empty = 0
    with (workdir / f"{side}.jsonl").open("w") as file:
        for row in row_files.read(workdir / "evaluate" / side):
            completions = [c for c in row.completions if c.text]
            empty += len(row.completions) - len(completions)
            record = {
                "prompt": row.messages[-1].content,
                "completions": [c.text for c in completions],
                "finished": [c.finished for c in completions],
                "sources": ["dataset"] * len(completions),
                "rewards": [c.reward for c in completions],
            }
            tests = {"payload_json": row.payload} if row.payload else {}
            file.write(json.dumps(record | tests) + "\n")
    print(f"{workdir / side}.jsonl: {empty} empty completions left out")


if __name__ == "__main__":
    for name in SIDES:
        write_data(Path(sys.argv[1]), name)
