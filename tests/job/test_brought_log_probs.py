"""Training alone on rows that bring log π_ref: as with stage `reference`, and said where it cannot be right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax import pipeline, transforms
from qrpo_jax.data import row_files
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job.job import Job
from qrpo_jax.stages.train import read_examples
from tests.helpers.exports import CHARACTERS, TIED, fresh
from tests.helpers.jobs import job


def published(number: int) -> dict[str, Any]:
    """A record in the layout of the published data sets."""
    question = {"role": "user", "content": chr(97 + number)}
    chosen, rejected = ([question, {"role": "assistant", "content": text}] for text in ("bcd", "e" * (1 + number)))
    rewards = {"chosen_rewards": 0.7, "rejected_rewards": 0.2 + 0.1 * number, "ref_rewards": [0.1, 0.3, 0.5]}
    return {"chosen": chosen, "rejected": rejected} | rewards


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Job]:
    """A job on records, with a tiny model."""
    model = tmp_path / "model"
    tokenizer = vocabulary_tokenizer(CHARACTERS)
    model_folder.save(model, TIED, fresh(TIED, 7), make_text(tokenizer, "chat", (tokenizer.eos_token_id,)))

    def make(name: str, records: list[dict[str, Any]], **overrides: object) -> Job:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        settings: dict[str, Any] = {
            "stages": ("train",),
            "model__path": str(model),
            "prompts__source": f"jsonl:{path}",
            "prompts__count": 0,
            "prompts__held_out": 0,
            "prompts__max_tokens": 20,
            "pack__max_tokens": 30,
            "train__batch_size": 3,
            "train__epochs": 1,
            "select__units": "best_worst",
        }
        return job(tmp_path / name, **settings | overrides)

    return make


def losses(run: Job) -> list[float]:
    return [json.loads(line)["loss"] for line in (run.folder("train") / "metrics.jsonl").read_text().splitlines()]


def test_brought_log_probs_reach_the_completions_that_are_trained_on(made):
    records = [
        published(number) | {"ref_chosen_logps": -float(number), "ref_rejected_logps": -9.5 - number}
        for number in range(5)
    ]
    run = made("alone", records)
    pipeline.check(run)
    (said,) = (line for line in run.notes if "log π_ref" in line)
    assert said.startswith("train: log π_ref comes with jsonl:") and "template 'chat' at temperature 1" in said, said
    examples = read_examples(run, transforms.identity)
    log_probs = examples.completions_C.reference_log_prob.tolist()
    got = {examples.name(c): log_prob for c, log_prob in enumerate(log_probs)}
    assert got == {f"row-{i + 1}/{c}": log_prob for i in range(5) for c, log_prob in enumerate((-i, -9.5 - i))}, got


@pytest.mark.slow
def test_training_alone_ends_as_with_stage_reference(made, capsys):
    records = [published(number) for number in range(5)]
    whole = made("whole", records, stages=("reference", "train"))
    assert pipeline.run(whole)
    for record, row in zip(records, row_files.read(whole.folder("reference")), strict=True):
        names = ("ref_chosen_logps", "ref_rejected_logps")
        record |= {name: c.reference_log_prob for name, c in zip(names, row.completions, strict=True)}
    alone = made("alone", records)
    assert pipeline.run(alone)
    assert losses(alone) == losses(whole) and len(losses(alone)) > 0
    assert "nats a completion" not in capsys.readouterr().err


@pytest.mark.slow
def test_log_probs_of_another_model_are_called_so_at_the_first_batch(made, capsys):
    wrong = {"ref_chosen_logps": -70.0, "ref_rejected_logps": -0.5}
    assert pipeline.run(made("wrong", [published(number) | wrong for number in range(5)]))
    assert "train: WARNING: log π_ref of the data set is" in capsys.readouterr().err


def test_prompts_that_are_cut_are_said_not_to_fit(made):
    records = [published(0) | {"ref_chosen_logps": -3.0, "ref_rejected_logps": -2.0}] * 2
    for over_long, lines in (("drop", 1), ("truncate_prompt_left", 2)):
        run = made(over_long, records, pack__over_long=over_long)
        pipeline.check(run)
        assert len([line for line in run.notes if "log π_ref" in line]) == lines, run.notes


def test_without_log_probs_the_stage_is_asked_for(made):
    with pytest.raises(UserError, match="needs log π_ref: put 'reference' before 'train'"):
        pipeline.check(made("none", [published(0)] * 2))
