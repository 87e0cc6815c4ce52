"""The records of the QRPO paper: their grids are the published ones, and they run on rows in the published layout."""

import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file, save_file

from configs import paper
from qrpo_jax import command_line, pipeline
from qrpo_jax.config import files
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.stages import STAGES
from qrpo_jax.sweep.points import combinations, points_of
from tests.helpers import reward_folders as folders
from tests.helpers.jobs import ROOT, override
from tests.helpers.tables import write_parquet

RECORDS = ("paper_magpie_llama", "paper_ultrafeedback_mistral", "paper_leetcode_llama")
TEST = "def check(candidate):\n    assert candidate(a = 3) == 4\n    assert candidate(a = 0) == 1\n"
CODE = "```python\nclass Solution:\n    def add(self, a):\n        return a + {}\n```"


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def published(record: str, number: int) -> dict[str, Any]:
    """A row as the authors' data sets have them, with 50 references."""
    question, rng = f"What is {number} plus one?", np.random.default_rng(number)
    references, rewards = [f"It is {i}." for i in range(50)], rng.normal(size=50).round(3).tolist()
    row: dict[str, Any] = {
        "chosen": chat(question, f"It is {number + 1}."),
        "rejected": chat(question, "No."),
        "chosen_rewards": float(rng.normal()),
        "rejected_rewards": -2.5,
        "ref_rewards": rewards,
    }
    if "leetcode" in record:
        references, row["ref_rewards"] = [CODE.format(i % 3) for i in range(50)], [i % 3 / 2 for i in range(50)]
        row |= {"test": TEST, "entry_point": "Solution().add", "prompt": "import math", "difficulty": "Easy"}
    return row | {"ref_completions": chat(question, json.dumps(references))}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> tuple[Path, Path]:
    """Folders of a policy and of a reward model, of the published kinds and a few numbers."""
    policy, reward = tmp_path_factory.mktemp("policy"), tmp_path_factory.mktemp("reward")
    folders.write(reward, folders.ARMO | {"max_position_embeddings": 8192})
    folders.write(policy, folders.CLASSIFIER)
    causal = folders.CLASSIFIER | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (policy / "config.json").write_text(json.dumps(causal | {"max_position_embeddings": 8192}))
    tensors = load_file(policy / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if name != "score.weight"}, policy / "model.safetensors")
    return policy, reward


@pytest.fixture
def made(tmp_path: Path, tiny: tuple[Path, Path]) -> Callable[..., Job]:
    """A job of a record, on tiny models and generated rows."""

    def make(record: str, **overrides: object) -> Job:
        config = files.read(record)
        for split, count in ((config.prompts.split, 5), (config.prompts.held_out, 3)):
            rows = [published(record, number) for number in range(count)]
            write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows)
        config.model.path = str(tiny[0])
        config.mesh.fsdp, config.mesh.data = 4, 2
        config.prompts.source = f"parquet:{tmp_path}/data/*.parquet"
        if config.reward.path:
            config.reward.path = str(tiny[1])
        override(config, overrides)
        return Job(FrozenConfigDict(config), tmp_path / "run", Shard(0, 1), STAGES)

    return make


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_passes_its_checks_on_rows_in_the_published_layout(made, record):
    run = made(record)
    pipeline.check(run)
    said = "\n".join(run.notes)
    layout = "qrpo_offpolicy" if "leetcode" in record else "qrpo"
    assert f"layout '{layout}'" in said and "5 to train on, 3 held out" in said, said
    assert "dropped" not in said, said
    assert run.config.train.batch_size == 128 and run.config.train.schedule == "cosine"


def test_rows_of_code_problems_bring_their_tests(made):
    from qrpo_jax.job.prompts import open_listed
    from qrpo_jax.rewards.problems import read_problem

    (row, *_) = open_listed(made("paper_leetcode_llama"), "eval").rows([0])
    problem = read_problem(row)
    assert [test.expected for test in problem.tests] == [(4,), (1,)], problem.tests
    assert problem.entry_point == "Solution().add" and problem.prelude == "import math", problem
    assert [c.source for c in row.completions] == ["reference"] * 50


@pytest.mark.slow
@pytest.mark.parametrize("record", RECORDS)
def test_a_record_trains_and_is_evaluated(made, record):
    short = {"pack__max_tokens": 96, "pack__row_tokens": 192, "pack__slots": 0, "prompts__max_tokens": 64}
    short |= {
        "evaluate__max_new_tokens": 8,
        "evaluate__completions": 2,
        "train__batch_size": 3,
        "reward__memory_mb": 256,
    }
    run = made(record, stages=("reference", "train", "evaluate", "report"), **short)
    assert pipeline.run(run)
    losses = [json.loads(line)["loss"] for line in (run.folder("train") / "metrics.jsonl").read_text().splitlines()]
    pairs = 5 * 10 if "leetcode" in record else 5
    assert len(losses) == -(-pairs // 3) and np.isfinite(losses).all(), losses
    results = json.loads((run.workdir / "results.json").read_text())
    assert np.isfinite(results["policy"]["reward"]) if "reward" in results["policy"] else results["policy"]


@pytest.mark.parametrize("record", RECORDS)
def test_each_line_of_a_grid_is_a_command(record):
    grids = importlib.import_module(f"configs.{record}").GRIDS
    counts = {}
    for name, grid in grids.items():
        lines = list(paper.flags(record, name, grid))
        workdirs = {shlex.split(line)[0] for line in lines}
        assert len(workdirs) == len(lines), "each run has a work directory of its own"
        read = [command_line.read(["x", f"--config={record}", *shlex.split(line)]) for line in (lines[0], lines[-1])]
        assert [one.config.train.objective for one in read] == list(grid["train.objective"]) * 2
        assert [one.config.train.learning_rate for one in read] == [1e-7, 1e-6]
        counts[name] = len(lines)
    betas = {name: grids[name]["train.beta"] for name in ("qrpo", "dpo", "rebel", "simpo")}
    code = record == "paper_leetcode_llama"
    assert betas == {
        "qrpo": (3e-3, 1e-2, 3e-2) if code else (3e-4, 1e-3, 3e-3),
        "dpo": (0.01, 0.03, 0.1),
        "rebel": (1e-4, 1e-2, 1.0) if code else (1e-6, 1e-4, 1e-2),
        "simpo": (2.0, 2.5, 10.0),
    }
    expected = {"qrpo": 9, "dpo": 9, "rebel": 9, "simpo": 9}
    if record == "paper_magpie_llama":
        expected |= {"qrpo": 18, "references": 45, "transforms": 18}
    assert counts == expected


SWEEPS = {
    "paper_magpie_llama_grid": 45,
    "paper_ultrafeedback_mistral_grid": 36,
    "paper_leetcode_llama_grid": 36,
    "paper_magpie_llama_scaling": 45,
}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_points_of_a_grid_are_those_of_its_record_and_pass_the_checks(made, name):
    config = files.read(name)
    points = points_of(config)
    assert len(points) == SWEEPS[name]
    record = name.removesuffix("_grid").removesuffix("_scaling")
    grids = importlib.import_module(f"configs.{record}").GRIDS
    of_sweep = ("references",) if "scaling" in name else ("qrpo", "dpo", "rebel", "simpo")
    assert [len(list(paper.flags(record, one, grids[one]))) for one in of_sweep] == [
        len(list(combinations(grid))) for grid in config.sweep
    ]
    for grid in config.sweep:
        settings = next(combinations(grid))
        run = made(record, **{key.replace(".", "__"): value for key, value in settings.items()})
        pipeline.check(run)
        assert run.config.train.objective == settings["train.objective"]


@pytest.mark.parametrize("words", [["paper_magpie_llama", "none"], ["none", "qrpo"], ["paper_magpie_llama"], []])
def test_a_grid_that_does_not_exist_is_one_line(words):
    with pytest.raises(SystemExit, match="usage: python -m configs.paper RECORD GRID"):
        paper.main(words)


def test_a_grid_is_printed_by_a_command(capsys):
    paper.main(["paper_magpie_llama", "dpo"])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "--workdir=runs/paper_magpie_llama/dpo-1e-07-0.01 --config.train.objective=dpo "
        "--config.train.learning_rate=1e-07 --config.train.beta=0.01"
    )
    done = subprocess.run([sys.executable, "-m", "configs.paper"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("usage:"), done.stderr


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_can_be_compiled_for_its_topology(record, tmp_path):
    pytest.importorskip("libtpu")
    config = files.read(record)
    config.stages = ("compile",)
    config.model.path = str(paper.SHAPES / ("mistral_7b" if "mistral" in record else "tulu3_8b"))
    pipeline.check(Job(FrozenConfigDict(config), tmp_path, Shard(0, 1), STAGES))
