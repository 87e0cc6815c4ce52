"""What the records of the QRPO paper (arXiv 2507.08068) share: the published settings, and its grids as command lines.

A record has GRIDS: for each name the values of keys, of which a sweep takes all combinations. Configs of sweeps run
them with one command, and make a table in which one half of the held-out prompts chooses (docs/sweeps.md):

    paper_magpie_llama_grid, paper_ultrafeedback_mistral_grid    chat: QRPO, DPO, REBEL and SimPO
    paper_leetcode_llama_grid                                    code: the same
    paper_magpie_llama_scaling                                   1 to 50 references

To start each run on its own, as for a queue of jobs, in a checkout

    python -m configs.paper paper_magpie_llama qrpo

prints the flags of each run on one line, a new work directory among them. This trains all of them, one after the
other, on the log π_ref that a run of stage `reference` has left in runs/reference:

    python -m configs.paper paper_magpie_llama qrpo | \
      xargs -L1 qrpo-jax --config=paper_magpie_llama --fork=runs/reference

Settings are those of the authors' code (CLAIRE-Labo/quantile-reward-policy-optimization at commit 0d80ee5): 1 epoch,
128 pairs a batch, cosine schedule with a warm-up of 0.1, AdamW without decay, no clipping, 2,048 tokens a completion
with its prompt, bfloat16. What differs here: weights are float32 in memory, the last batch is not left out, rewards
decide which of a pair is better, and no completion is cut: those that are too long are dropped and counted.
"""

import importlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from configs import default

Grid = Mapping[str, tuple[float | str, ...]]

SHAPES = Path(__file__).parent / "shapes"
LLAMA, MISTRAL = "allenai/Llama-3.1-Tulu-3-8B-SFT", "mistralai/Mistral-7B-Instruct-v0.2"
ARMO = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
LEARNING_RATES = (1e-7, 3e-7, 1e-6)


def grid(objective: str, *betas: float, **others: tuple[float | str, ...]) -> Grid:
    """A grid over learning rates and β; `section__key` adds another key."""
    keys: dict[str, tuple[float | str, ...]] = {
        "train.objective": (objective,),
        "train.learning_rate": LEARNING_RATES,
        "train.beta": betas,
    }
    return keys | {key.replace("__", "."): values for key, values in others.items()}


def sweep(grids: Mapping[str, Grid], *names: str) -> list[dict[str, list[float | str]]]:
    """The grids of these names as a config's `sweep`."""
    return [{key: list(values) for key, values in grids[name].items()} for name in names]


def flags(record: str, name: str, values: Grid) -> Iterator[str]:
    """The flags of each run of a grid, on one line each."""
    for combination in itertools.product(*values.values()):
        chosen = [f"{value:g}" if isinstance(value, float) else str(value) for value in combination]
        settings = " ".join(f"--config.{key}={value}" for key, value in zip(values, chosen, strict=True))
        yield f"--workdir=runs/{record}/{'-'.join([name, *chosen[1:]])} {settings}"


def get_config(policy: str, source: str) -> ConfigDict:
    """Every key of a run.

    Args:
      policy: model of the hub, or a folder.
      source: rows with reference rewards, as in `prompts.source`.
    """
    config = default.get_config()
    config.seed = 27
    config.stages = ("reference", "train", "evaluate", "report", "export")
    config.model.path = policy
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "dots"
    config.mesh.data = 1
    config.mesh.fsdp = -1

    config.prompts.source = source
    config.prompts.count = 0
    config.prompts.split, config.prompts.held_out = "train", "test"
    config.prompts.max_tokens = 2048
    config.pack.max_tokens = 2048
    config.pack.row_tokens = 4096
    config.pack.slots = 32

    # SFT on the chosen completions before everything else, which half of the published runs have:
    # --config.stages=sft,reference,train,evaluate,report,export
    config.sft.learning_rate = 5e-7
    config.sft.batch_size = 128
    config.sft.clip_norm = 10.0

    # How the published references were made; stages sample and score would make them again.
    config.sample.completions = 50
    config.sample.max_new_tokens = 2048
    config.reward.name, config.reward.path, config.reward.max_tokens = "model", ARMO, 2048

    config.select.units = "best_worst"
    config.train.batch_size = 128
    config.train.learning_rate = 1e-6
    config.train.gamma_beta_ratio = 0.5
    config.train.log_every = 1

    config.evaluate.completions = 3  # seeds
    config.evaluate.max_new_tokens = 2048
    config.evaluate.top_p = 0.9
    config.export.dtype = "bfloat16"
    config.compile.topology = "v5p:2x2x2"
    return config


def main(words: list[str]) -> None:
    """Prints the flags of a grid: `python -m configs.paper RECORD GRID`."""
    record, name = words if len(words) == 2 else ("", "")
    try:
        grids = importlib.import_module(f"configs.{record}").GRIDS
        lines = list(flags(record, name, grids[name]))
    except (ImportError, AttributeError, KeyError, ValueError):
        records = "paper_magpie_llama, paper_ultrafeedback_mistral, paper_leetcode_llama"
        raise SystemExit(
            f"usage: python -m configs.paper RECORD GRID; RECORD: {records}; GRID: a key of its GRIDS"
        ) from None
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
