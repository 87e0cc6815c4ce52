"""What a job refuses about the rows of a file, and what it says about them before it runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job import units
from qrpo_jax.job.manifest import read_manifest
from tests.helpers.exports import CHARACTERS, TIED, fresh
from tests.helpers.jobs import job

GOOD = {"prompt": "a", "completions": ["b", "c"], "rewards": [0.5, 0.2], "reference_rewards": [0.1, 0.9]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_reward": 1, "rejected_reward": 0}
ORDER = {"prompt": "a", "chosen": "b", "rejected": "c"}
OWN = {"prompt": "a", "completions": ["b", "c", "d"], "rewards": [0.5, 0.2, 0.9]}
SIDES = ("chosen", "rejected")
PAIRS = {"select__units": "best_worst", "train__objective": "dpo", "pack__row_tokens": 0}
EVALUATED = ("sample", "score", "reference", "train", "evaluate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny model that reads characters, each a token."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = vocabulary_tokenizer(CHARACTERS)
    text = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    model_folder.save(folder, TIED, fresh(TIED, 7), text)
    return folder


@pytest.fixture
def checked(tmp_path: Path, model: Path) -> Any:
    """Checks a job on these records; returns what it would say before it runs."""

    def check(records: list[dict[str, Any]], **overrides: object) -> list[str]:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(json.dumps({"id": str(i)} | record) for i, record in enumerate(records, 1)))
        settings = {
            "stages": EVALUATED[:-1],
            "model__path": str(model),
            "prompts__source": f"jsonl:{path}",
            "prompts__count": 0,
            "prompts__held_out": 0,
            "prompts__max_tokens": 20,
            "prompts__unit": 1,
            "sample__completions": 0,
            "sample__max_new_tokens": 13,
            "evaluate__max_new_tokens": 13,
            "pack__max_tokens": 30,
            "reward__name": "dialogue_share",
            "train__batch_size": 1,
        }
        made = job(tmp_path / "run", **settings | overrides)
        pipeline.check(made)
        assert not (tmp_path / "run").exists()
        return [line.replace(str(path), "FILE") for line in made.notes]

    return check


def distinct(count: int, **keys: object) -> list[dict[str, Any]]:
    return [GOOD | {"prompt": chr(97 + i)} | keys for i in range(count)]


def test_good_rows_are_counted_without_a_warning(checked):
    assert checked(distinct(5)) == ["prompts: 5 to train on, 0 held out (jsonl:FILE)"]
    lines = checked(distinct(5), prompts__held_out=2, prompts__count=2, stages=EVALUATED)
    assert lines == ["prompts: 2 to train on, 2 held out, 1 not used (jsonl:FILE)"], lines


SAID = {
    "held out for nothing": (
        distinct(5),
        {"prompts__held_out": 2},
        "prompts: WARNING: the last 2 are held out, and no stage evaluates on them; config.prompts.held_out=0 trains",
    ),
    "held out and trained on": (
        [*distinct(5), GOOD | {"prompt": "b"}, GOOD | {"prompt": "z"}],
        {"prompts__held_out": 2, "stages": EVALUATED},
        "prompts: WARNING: 1 of 2 held-out prompts are also trained on (the first: FILE, line 6)",
    ),
    "repeated": (
        [*distinct(5), GOOD | {"prompt": "b"}],
        {},
        "prompts: 1 of 6 prompts to train on repeat an earlier one; each has its own references (the first: FILE, lin",
    ),
    "more asked for than there is": (
        distinct(5),
        {"prompts__count": 7},
        "prompts: WARNING: config.prompts.count is 7, and there are 5 to train on",
    ),
    "large units": (
        distinct(5),
        {"prompts__unit": 128, "sample__completions": 2},
        "prompts: WARNING: config.prompts.unit is 128: so many prompts are sampled from at a time, and there are 5",
    ),
    "long prompts": (
        [*distinct(2), GOOD | {"prompt": "l" * 25}],
        {},
        "prompts: WARNING: 1 of 3 prompts to train on exceed config.prompts.max_tokens, which is 20, and will be drop",
    ),
    "unknown characters": (
        [*distinct(2), GOOD | {"prompt": "\u4f60"}],
        {},
        "prompts: WARNING: 1 of 3 prompts to train on have characters that the tokenizer does not know (the first: FI",
    ),
    "roles": (
        [*distinct(2), GOOD | {"prompt": [{"role": "asistant", "content": "a"}]}],
        {},
        "prompts: WARNING: 1 of 3 prompts to train on have a message of a role other than system, developer, user, a",
    ),
    "roles that are not written": (
        [*distinct(2), GOOD | {"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]}],
        {"model__template": "plain"},
        "prompts: WARNING: 1 of 3 prompts to train on have several messages, which template 'plain' joins without",
    ),
    "special strings": (
        [*distinct(2), GOOD | {"prompt": "</s>"}],
        {},
        "prompts: 1 of 3 prompts to train on hold strings like special tokens, taken as plain text (the first: FILE",
    ),
    "rewards alike": (
        distinct(2, rewards=[16777216, 16777217]),
        {},
        "prompts: WARNING: 2 of 2 rows have rewards that differ by less than float32 can tell (the first: FILE,",
    ),
    "reversed pair": (
        [PAIR, PAIR | {"prompt": "b", "chosen_reward": -1}],
        PAIRS,
        "prompts: WARNING: 1 of 2 rows have a chosen completion of lower reward than the rejected one; rewards decide",
    ),
    "equal texts": (
        [PAIR, PAIR | {"prompt": "b", "chosen": "c"}],
        PAIRS,
        "prompts: WARNING: 1 of 2 rows have two completions of the same text (the first: FILE, line 2)",
    ),
    "equal rewards": (
        [PAIR, PAIR | {"prompt": "b", "chosen_reward": 0}],
        PAIRS,
        "train: WARNING: 1 of 2 rows have a pair of equal rewards, which will be dropped (the first: FILE, line 2)",
    ),
    "no pair": (
        [PAIR, {"prompt": "b", "completions": ["c"], "rewards": [1]}],
        PAIRS,
        "train: WARNING: 1 of 2 rows have no two completions and will be dropped (the first: FILE, line 2)",
    ),
    "long completions": (
        [*distinct(2), GOOD | {"prompt": "l", "completions": ["l" * 29, "b"]}],
        {},
        "train: WARNING: 1 of 3 rows have completions that exceed 30 tokens with the prompt and will be dropped (th",
    ),
    "prompts without room": (
        [*distinct(2), GOOD | {"prompt": "l" * 15}],
        {"pack__max_tokens": 16, "sample__completions": 2},
        "prompts: WARNING: 1 of 3 prompts have no room for a completion in config.pack.max_tokens, 16, and will be dr",
    ),
    "prompts with little room": (
        [*distinct(2), GOOD | {"prompt": "l" * 9}],
        {"pack__max_tokens": 16, "sample__completions": 2},
        "prompts: 1 of 3 prompts have more than 3 tokens (the first: FILE, line 3); of these, completions that exceed",
    ),
    "columns": (
        [ORDER | {"source": "x"}, ORDER | {"source": "x", "prompt": "b"}],
        PAIRS,
        "prompts: layout 'preference', recognised from its columns: 'chosen', 'prompt', 'rejected'; not read: 'id'",
    ),
    "rows that are none": (
        [ORDER | {"source": "x"}, ORDER | {"source": "x", "prompt": "b"}, ORDER | {"source": "x", "chosen": ""}],
        PAIRS,
        "prompts: WARNING: 1 of 3 rows are dropped: 'chosen' is empty (the first: FILE, line 3)",
    ),
    "own references": (
        [OWN, OWN | {"prompt": "b"}],
        {},
        "train: 2 of 2 rows bring no references, so that each completion is ranked among the others of its row (",
    ),
    "large batches": (
        distinct(2),
        {"train__batch_size": 5},
        "train: WARNING: a batch has 5 units, and there are 4 in all, so that an epoch is less than one step (con",
    ),
    "a falling transform": (
        distinct(2),
        {"train__transform": "piecewise-linear((0, 1), (1, 0))"},
        "train: WARNING: transform 'piecewise-linear((0, 1), (1, 0))' falls on 100% of all quantiles, where a higher",
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_will_be_dropped_or_is_suspicious_is_counted_and_said_before_the_run(checked, name):
    records, overrides, beginning = SAID[name]
    lines = checked(records, **overrides)
    assert any(line.startswith(beginning) for line in lines), "\n".join(lines)
    assert all("\n" not in line and len(line) < 300 for line in lines)


def test_of_many_prompts_a_sample_is_tokenized_and_all_are_counted(checked):
    """The rest is looked at only where the sample alone would refuse rows that can be used."""
    records = [PAIR | {"prompt": "l" * (25 if i % 3 == 0 else 1), "chosen_reward": 0} for i in range(2100)]
    lines = checked([*records[:1100], PAIR, *records[1100:]], **PAIRS)
    assert (
        "prompts: 2000 of 2101 prompts to train on were tokenized to check them; the stages count all that" in lines[1]
    )
    assert any("66" in line and "of a sample of 2000 prompts to train on exceed" in line for line in lines), lines
    assert any("2097 of 2101 prompts to train on repeat" in line or "2098 of 2101 prompts" in line for line in lines), (
        lines
    )
    with pytest.raises(UserError, match="all pairs of .* have equal rewards"):
        checked(records, **PAIRS)
    with pytest.raises(UserError, match="all 2000 prompts to train on of a sample of 2100 are longer than 20 tokens"):
        checked([PAIR | {"prompt": "l" * 25}] * 2100, **PAIRS)


def test_a_mix_says_what_it_repeats_leaves_out_and_drops(checked, tmp_path):
    for name, records in {"a": [PAIR] * 7, "b": [ORDER | {"question": "q"}, ORDER | {"chosen": ""}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    mix = (f"jsonl:{tmp_path}/a.jsonl weight=1", f"jsonl:{tmp_path}/b.jsonl weight=1 columns=prompt=prompt")
    settings = PAIRS | {"prompts__source": "mix", "prompts__mix": mix, "prompts__count": 6}
    lines = checked([PAIR], **settings)
    assert lines[0] == "prompts: 6 to train on, 0 held out (mix)", lines
    assert "prompts: 3 from a, of 7: 4 are not used" in lines and "prompts: 3 from b, of 1: 2 are repeated" in lines
    assert any(
        line.startswith("prompts: WARNING: 1 of 2 rows are dropped: b: 'chosen' is empty (the") for line in lines
    )
    assert any(line.startswith("prompts: b: layout 'preference', recognised from its columns") for line in lines), lines
    with pytest.raises(UserError, match=r"no file .*/c.jsonl; name a JSON-lines file .config.prompts.mix."):
        checked([PAIR], **settings | {"prompts__mix": (f"jsonl:{tmp_path}/c.jsonl",)})


REFUSED = {
    "all dropped": (
        [{side: [{"role": "user", "content": side}, {"role": "assistant", "content": "a"}] for side in SIDES}] * 2,
        PAIRS,
        "holds no row that can be used: 2 of 2 rows are dropped: .*prompts.* .the first: .*line 1",
    ),
    "no pair": ([{"prompt": "b", "completions": ["c"], "rewards": [1]}], PAIRS, "has two completions.*prompts.source"),
    "only ties": ([PAIR | {"chosen_reward": 0}], PAIRS, "all pairs of .* have equal rewards.*config.prompts.source"),
    "no completion fits": (
        distinct(2, completions=["l" * 50] * 2),
        {},
        "no completion of .* fits pack.max_tokens.*53 tokens",
    ),
    "no room": (distinct(2), {"pack__max_tokens": 2, "sample__completions": 2}, "every prompt has at least 2 tokens"),
    "no completion": ([GOOD, {"prompt": "b"}], {}, "data.jsonl, line 2: row '2' has no completion"),
    "no reward": (
        [GOOD, {"prompt": "b", "completions": ["c"]}],
        {"stages": ("sample", "reference", "train")},
        "no reward, 1 of 2 rows .the first: .*line 2.: put 'score' before 'train'",
    ),
    "only an order": (
        [PAIR, ORDER | {"prompt": "b"}],
        {"select__units": "best_worst", "stages": ("sample", "reference", "train")},
        "'qrpo' needs rewards, and 1 of 2 rows say only which completion is better .*line 2.: put 'score' be",
    ),
    "only an order of rewards": (
        [ORDER, ORDER | {"prompt": "b"}],
        PAIRS | {"train__objective": "rebel", "stages": ("sample", "reference", "train")},
        "'rebel' needs rewards, .*, or train with dpo, simpo, sft",
    ),
    "an order for some": (
        [ORDER, {"prompt": "b", "completions": ["c", "d"]}],
        PAIRS | {"stages": ("sample", "reference", "train")},
        "no reward, 2 of 2 rows",
    ),
    "no reference": (
        [GOOD, {"prompt": "b", "completions": ["c"], "rewards": [1]}],
        {},
        "line 2: row '2': a prompt has",
    ),
    "no tests": ([GOOD | {"payload": {"tests": [[[1], 2]]}}], {"reward__name": "tests"}, "line 1: its payload is"),
    "a constant transform": (
        distinct(2),
        {"train__transform": "affine(log, 1, 0)"},
        "is 1 everywhere.*train.transform",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_of_which_nothing_can_be_used_are_refused_before_the_run(checked, name):
    records, overrides, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        checked(records, **overrides)
    assert "config." in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


VIEWS = {"singles": 12, "best_worst": 1, "random_pairs": 6, "all_pairs": 66, "offpolicy2best": 1, "offpolicy2random": 1}


@pytest.mark.parametrize("units", [*VIEWS, "offpolicy6random", "offpolicy10random"])
def test_the_units_of_every_view_are_counted_before_the_run(checked, units):
    """Of 12 references a row; there are none among completions of a data set alone."""
    texts = [f"b{'c' * i}" for i in range(12)]
    answer = {"role": "assistant", "content": json.dumps(texts)}
    rows = [
        {"ref_completions": [{"role": "user", "content": "a"}, answer], "ref_rewards": [0.1 * i for i in range(12)]}
    ]
    count = VIEWS.get(units, {"offpolicy6random": 3, "offpolicy10random": 6}.get(units))
    lines = checked(
        rows, prompts__layout="qrpo_offpolicy", select__units=units, train__batch_size=999, pack__row_tokens=0
    )
    assert any(f"a batch has 999 units, and there are {count} in all" in line for line in lines), lines
    if "offpolicy" in units:
        with pytest.raises(UserError, match="no row of .* has two completions of the reference policy, .*'qrpo_off"):
            checked([OWN], select__units=units, pack__row_tokens=0)


MESSAGES = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
PUBLISHED = {
    "chosen": sum(MESSAGES, []),
    "rejected": [*MESSAGES[0], {"role": "assistant", "content": "c"}],
    "chosen_rewards": 0.7,
    "rejected_rewards": 0.2,
    "ref_rewards": [0.1, 0.3, 0.5],
    "ref_completions": [*MESSAGES[0], {"role": "assistant", "content": '["d", "e", "f"]'}],
}
TRAINED = {
    "dpo on an order": ([ORDER, ORDER | {"chosen": "d"}], PAIRS),
    "simpo on an order": (
        [ORDER | {"x": 1}, ORDER | {"chosen": "d"}, ORDER | {"chosen": ""}],
        PAIRS | {"train__objective": "simpo"},
    ),
    "qrpo on published rows": ([*[PUBLISHED] * 2, PUBLISHED | {"chosen": []}], {"select__units": "best_worst"}),
    "qrpo off-policy": ([PUBLISHED] * 2, {"prompts__layout": "qrpo_offpolicy"}),
    "qrpo on own references": ([OWN, OWN], {}),
    "qrpo after scores": (
        [ORDER, ORDER | {"chosen": 'd "b"'}],
        {"stages": ("score", "reference", "train"), "reward__name": "dialogue_share"},
    ),
}
QUICK = ("dpo on an order", "qrpo on published rows")  # the others compile other programs for seconds


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def test_rows_as_they_are_published_train_at_once(tmp_path: Path, model: Path, name: str) -> None:
    records, overrides = TRAINED[name]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    settings = {
        "stages": ("train",) if "simpo" in name else ("reference", "train"),
        "prompts__source": f"jsonl:{path}",
        "model__path": str(model),
        "prompts__held_out": 0,
    }
    short = {"prompts__max_tokens": 20, "sample__completions": 0, "pack__max_tokens": 30, "train__batch_size": 2}
    made = job(tmp_path / "run", **settings | short | {"train__epochs": 1} | overrides)
    assert pipeline.run(made)
    lines = (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert np.isfinite(metrics["loss"]), metrics
    if name == "dpo on an order":
        np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)
    assert ("reward" in metrics) == ("order" not in name), metrics
    if "simpo" in name:
        assert read_manifest(tmp_path / "run" / "train")["counts"]["rows dropped: 'chosen' is empty"] == 1
    if "published" in name:
        counts = read_manifest(tmp_path / "run" / "reference")["counts"]
        assert counts["rows dropped: 'chosen' does not end with an answer"] == 1 and counts["prompts"] == 2, counts


@pytest.mark.slow
def test_stages_before_training_may_be_left_out_or_be_another_run(tmp_path: Path, model: Path) -> None:
    """Three ways to the same parameters: with a stage that samples nothing, without it, from the rows of the first."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, [PUBLISHED, PUBLISHED | {"chosen_rewards": 0.4}] * 3)))
    short = {"prompts__max_tokens": 20, "sample__completions": 0, "pack__max_tokens": 30, "train__batch_size": 2}
    settings = short | {"model__path": str(model), "prompts__held_out": 0, "train__epochs": 1}
    runs = {
        "whole": {"stages": ("sample", "reference", "train"), "prompts__source": f"jsonl:{path}"},
        "short": {"stages": ("reference", "train"), "prompts__source": f"jsonl:{path}"},
        "again": {"stages": ("train",), "prompts__source": f"rows:{tmp_path}/whole/reference"},
    }
    losses = {}
    for name, overrides in runs.items():
        assert pipeline.run(job(tmp_path / name, **settings | overrides))
        lines = (tmp_path / name / "train" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["whole"] == losses["short"] == losses["again"] and len(losses["whole"]) > 0, losses


def test_an_error_in_a_unit_has_a_line_of_its_own(tmp_path, capsys):
    """A progress bar that is still open would leave the cursor behind it."""

    def work(unit: int) -> Any:
        raise UserError("mine")

    with pytest.raises(UserError) as caught:
        units.run_units(job(tmp_path), tmp_path / "score", 3, work, title="score")
    assert caught.value.message == "mine"
    said = capsys.readouterr().err
    assert "score:" in said and said.endswith("\n"), repr(said)
