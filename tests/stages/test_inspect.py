"""Stage inspect: its figures are those of the rows, it is cheap, and hostile rows harm neither terminal nor page."""

import json
import math
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import main, pipeline
from qrpo_jax.data.row_sample import sample_indices
from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.data.text import Text, make_text
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.ties import compare_with_references
from qrpo_jax.job import inspection
from qrpo_jax.job.job import Job
from qrpo_jax.job.source_check import brings_rows
from qrpo_jax.job.stage import check_order
from qrpo_jax.report import inspect_page, rendered
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.rendered import render_row
from qrpo_jax.report.terminal import columns_of
from qrpo_jax.stages import STAGES, inspect
from tests.helpers import chats
from tests.helpers.jobs import job
from tests.helpers.tables import opened, write_json_lines, write_parquet

HOSTILE = "</pre><script>alert(1)</script>\x1b[2J\x9b1m\u202e&<b>\x00"
HF = {"role": "user", "content": "How are you?"}


def chat(name: str = "llama-3") -> Text:
    tokenizer = chats.tokenizer(name)
    return make_text(tokenizer, "chat", (tokenizer.eos_token_id,))


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(i: int, question: str = "How are you?", **more: Any) -> dict[str, Any]:
    """A record in the published layout."""
    rng = np.random.default_rng(i)
    user, rewards = {"role": "user", "content": question}, rng.integers(0, 4, 5) / 4
    return {
        "chosen": [user, answer(f"Fine, thank you, {i}." * (1 + i % 3))],
        "rejected": [user, answer("The dog.")],
        "chosen_rewards": float(rewards[0]),
        "rejected_rewards": float(rewards[1]),
        "ref_rewards": rewards[2:].tolist(),
        **more,
    }


def inspecting(folder: Path, records: list[dict[str, Any]], text: Text | None = None, **overrides: Any) -> Job:
    """A job that inspects these records with a small chat tokenizer."""
    path = folder / "data.parquet"
    write_parquet(path, records)
    settings = {
        "stages": ("inspect",),
        "model__path": str(folder / "model"),
        "prompts__source": f"parquet:{path}",
        "prompts__count": 0,
        "prompts__held_out": 0,
    }
    made = job(folder / "run", **settings | overrides)
    made.text = text or chat()
    return made


def found(made: Job) -> dict[str, Any]:
    return json.loads((made.folder("inspect") / inspect.RESULTS).read_text())


def test_figures_are_those_of_the_rows_and_need_no_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    records = [pair(i) for i in range(31)]
    records[3]["chosen"] = records[3]["rejected"] = [HF]
    records[5]["rejected"] = records[5]["chosen"]
    made = inspecting(tmp_path, records, prompts__held_out=7, pack__max_tokens=60)
    assert not (tmp_path / "model").exists() and pipeline.run(made)
    results, rows = found(made), opened(made.config.prompts.source, held_out=7)
    rows = rows.rows(range(rows.count))
    assert results["counts"] == {"train": 22, "held out": 7, "left out": 0} and len(rows) == 22
    assert len(results["dropped"]) == 2 and "1 of 24 rows are dropped: " in results["dropped"][0], results["dropped"]

    text = made.text
    prompts = [len(text.prompt(row.messages)) for row in rows]
    completions = [[len(text.completion(c.text)) for c in row.completions] for row in rows]
    tokens = results["tokens"]
    assert (tokens["prompt"]["number"], tokens["prompt"]["mean"]) == (22, np.mean(prompts))
    assert tokens["completion"]["most"] == max(map(max, completions))
    both = [prompt + max(lengths) for prompt, lengths in zip(prompts, completions, strict=True)]
    assert tokens["prompt and longest"]["median"] == np.median(both)
    long = sum(p + length > 60 for p, lengths in zip(prompts, completions, strict=True) for length in lengths)
    (loss,) = [one for one in results["losses"] if one["key"] == "pack.max_tokens"]
    assert long and (loss["number"], loss["of"]) == (long, 44), (loss, long)

    compared = [
        compare_with_references(
            np.float32([c.reward for c in row.completions]), np.zeros(2, bool), row.reference_rewards
        )
        for row in rows
    ]
    tied = sum(int(one.tied_C.sum()) for one in compared) / sum(int(one.compared_C.sum()) for one in compared)
    assert results["references"]["share of ties"] == pytest.approx(tied) and 0 < tied < 1
    assert results["references"]["references a row"]["least"] == results["references"]["references a row"]["most"] == 3
    reversed_pairs = sum(row.completions[0].reward < row.completions[1].reward for row in rows)
    assert results["pairs"]["chosen has the lower reward"] == reversed_pairs > 0
    equal = sum(row.completions[0].reward == row.completions[1].reward for row in rows)
    assert results["pairs"]["best and worst are equal"] == equal > 0
    assert results["next"]["stages"] == "reference,train"
    assert sum(results["histograms"]["rewards"]["counts"]) == 44

    said = capsys.readouterr().err.splitlines()
    lines = said[: next(i for i, line in enumerate(said) if line.startswith("inspect: "))]
    assert max(sum(map(columns_of, line)) for line in lines) <= 80, max(lines, key=len)
    assert any("layout 'qrpo', recognised" in line for line in lines)
    assert sum(line.startswith("example") for line in lines) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.parquet", "run"]


def test_examples_are_the_template_s_conversation_and_mark_what_is_trained_on(tmp_path: Path) -> None:
    for name in ("llama-3", "gemma", "mistral-0.2", "qwen-2.5", "chatml-pieces"):
        text = chat(name)
        path = write_json_lines(tmp_path / "data.jsonl", [{"prompt": "Grüße 🙂", "completions": ["你好 🙂!", "x"]}])
        (row,) = opened(f"jsonl:{path}").rows([0])
        example = render_row(text, row, "here", 1000)
        whole = [*text.prompt(row.messages).tolist(), *text.completion(row.completions[0].text).tolist()]
        decoded = text.tokenizer.decode(whole, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        trained = example.completions[0]
        assert "".join([*example.prompt, *trained.pieces]) == decoded, name
        assert trained.pieces[-1] == text.tokenizer.convert_ids_to_tokens(text.end_tokens[0]), trained.pieces
        assert "🙂" in "".join(trained.pieces) and not any("\ufffd" in piece for piece in trained.pieces)
        assert (example.tokens, trained.tokens) == (len(whole) - trained.tokens, len(whole) - example.tokens)
        assert trained.fits and not render_row(text, row, "here", len(whole) - 1).completions[0].fits


def test_long_examples_are_cut_and_say_by_how_much() -> None:
    text = chat()
    completion = Completion("c d " * 2000, NO_TOKENS, True, "dataset")
    row = Row("x", (Message("user", "a b " * 2000),), "", (completion,) * 3)
    example = render_row(text, row, "here", 10)
    assert example.left_out == example.tokens - rendered.MOST_PROMPT > 0 and example.brought == 3
    assert len(example.prompt) <= rendered.MOST_PROMPT and len(example.completions) == rendered.MOST_COMPLETIONS
    assert example.completions[0].left_out == example.completions[0].tokens - rendered.MOST_COMPLETION > 0
    lines = list(inspect_page.example_lines(example, 80))
    assert len(lines) < 50 and any("more lines" in line for line in lines) and "and 1 more completions" in lines[-1]


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "img" or dict(attrs).get("class") != "plot":  # plots are images of the page's own data
            self.tags.add(tag)
        elif not dict(attrs)["src"].startswith("data:image/svg+xml;base64,"):
            self.tags.add("fetched")


def test_hostile_rows_harm_neither_the_terminal_nor_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        pair(i, HOSTILE, chosen=[{"role": "user", "content": HOSTILE}, answer(HOSTILE * 3)]) | {"id": HOSTILE + str(i)}
        for i in range(3)
    ]
    path = tmp_path / "a'<b>.parquet"
    made = inspecting(tmp_path, records)
    path.write_bytes((tmp_path / "data.parquet").read_bytes())
    made = inspecting(tmp_path, records, prompts__source=f"parquet:{path}")
    assert pipeline.run(made)
    said = capsys.readouterr().err.replace("\n", "")
    assert not {c for c in said if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs")}, said
    assert "⟨U+001B⟩" in said
    page = (made.folder("inspect") / PAGE).read_text()
    read = Tags(page)
    assert (
        not read.tags & {"script", "img", "iframe", "fetched"}
        and "</pre><script>alert(1)</script>⟨U+001B⟩[2J" in read.text
    )
    assert "\x1b" not in page and "\u202e" not in page and "a&#39;&lt;b&gt;.parquet" in page


def test_long_numbers_of_the_table_do_not_touch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"prompt": f"q{i}", "completions": ["a"], "rewards": [-123456.75]} for i in range(3)]
    assert pipeline.run(inspecting(tmp_path, records))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reward ")]
    assert line.split() == ["reward", "3", *["-1.235e+05"] * 6], line


def test_a_large_source_is_read_in_a_few_places_only() -> None:
    class Large:
        count, read = 10**9, 0

        def rows(self, indices: Any) -> list[Row]:
            self.read += len(indices)
            return [Row(str(i), (Message("user", f"a {i}"),)) for i in indices]

    source = Large()
    sampled = inspection.sample(source, chat(), 1000)
    assert source.read == len(sampled.rows) == len({row.id for row in sampled.rows}) == 1000
    ids = [int(row.id) for row in sampled.rows]
    assert ids == sorted(ids) and ids[0] == 0 and ids[-1] == 10**9 - 1
    for count, most in ((0, 7), (7, 7), (8, 7), (101, 100), (101, 0), (1000, 77), (997, 130)):
        blocks = sample_indices(count, most)
        flat = [i for block in blocks for i in block]
        assert len(flat) == len(set(flat)) <= (most or count) and all(0 <= i < count for i in flat), (count, most)
        assert len(flat) >= min(count, most or count) / 2, (count, most, len(flat))


def test_rows_that_the_template_refuses_are_counted_and_shown(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"prompt": [HF]}] * 5 + [{"prompt": [HF, answer("a")]}] * 2
    made = inspecting(tmp_path, records)
    assert pipeline.run(made)
    results = found(made)
    (loss,) = [one for one in results["losses"] if one["key"] == "model.template"]
    assert (loss["number"], loss["of"], results["sampled"]["measured"]) == (2, 7, 5)
    assert "data.parquet, row 6: the last message is an assistant's" in results["refused"][0]
    assert results["next"]["stages"] == "sample,score,reference,train"


@pytest.mark.parametrize(
    ("record", "stages", "why"),
    [
        ({"prompt": "q"}, "sample,score,reference,train", "rows bring no completions"),
        ({"prompt": "q", "completions": ["a", "b"]}, "score,reference,train", "not all completions have rewards"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "reference,train", "for DPO"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0},
            "train",
            "without rewards, with log π_ref: for DPO",
        ),
        ({"prompt": "q", "completions": ["a"], "rewards": [1.0]}, "sample,score,reference,train", "needs references"),
        ({"prompt": "q", "completion": "a", "label": True}, "sample,score,reference,train", "QRPO needs references"),
        ({"prompt": "q", "completions": ["a", "b"], "rewards": [1.0, 0.0]}, "reference,train", "no log π_ref"),
        (
            {"prompt": "q", "completions": ["a", "b"], "rewards": [1.0, 0.0], "reference_log_probs": [-1.0, -2.0]},
            "train",
            "and log π_ref",
        ),
    ],
)
def test_it_says_what_a_run_on_these_rows_begins_with(record, stages, why, tmp_path: Path) -> None:
    made = inspecting(tmp_path, [record] * 3)
    assert pipeline.run(made)
    known, pairs = found(made)["next"], found(made)["pairs"]["rows with two completions or more"]
    assert pairs or "DPO" not in known["why"], known
    assert known["stages"] == stages and why in known["why"], known
    names = stages.split(",")
    check_order(names, STAGES, brings_rows(made.config))


def test_it_runs_again_with_other_settings_and_other_stages_do_not_know_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [pair(i) for i in range(5)]
    assert pipeline.run(inspecting(tmp_path, records))
    again = inspecting(tmp_path, records[:3], inspect__examples=0)
    assert pipeline.run(again) and found(again)["sampled"]["rows"] == 3
    assert "skipped" not in capsys.readouterr().err
    # Before other stages it changes nothing of their settings.
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    names = ("inspect", "reference", "train")
    with_it, without = (pipeline.settings(inspecting(tmp_path, records, stages=s), "train") for s in (names, names[1:]))
    assert with_it == without

    (tmp_path / "run" / "inspect" / "settings.json").unlink()
    with pytest.raises(UserError, match="was not made by this program"):
        pipeline.run(inspecting(tmp_path, records))
    assert (tmp_path / "run" / "inspect" / PAGE).exists(), "files of the user stay"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"prompts__source": "model"}, "prompts.source is 'model'; these are sampled from the model during the run"),
        ({"prompts__source": "jsonl:nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"prompts__source": "jsonnl:x"}, "did you mean 'jsonl'?"),
        ({"prompts__layout": "kto"}, "has no column 'prompt', which layout 'kto' needs"),
        ({"model__path": ""}, "a model that is trained from scratch knows only the words of 'programs'"),
        ({"prompts__held_out": 9}, "leave some to train on"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(overrides, message, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        pipeline.run(inspecting(tmp_path, [pair(i) for i in range(3)], **overrides))
    assert message in str(error.value) and "\n" not in str(error.value), error.value
    assert not (tmp_path / "run").exists()


def test_generated_prompts_of_a_new_model_are_inspected_too(tmp_path: Path) -> None:
    made = job(tmp_path / "run", stages=("inspect",), inspect__rows=7, prompts__count=53, prompts__held_out=11)
    assert pipeline.run(made)
    results = found(made)
    assert (results["counts"]["train"], results["counts"]["held out"], results["sampled"]["rows"]) == (53, 11, 7)
    assert results["next"] == {"stages": "sft,sample,score,reference,train", "why": "rows bring no completions"}


def test_a_model_folder_without_weights_is_enough(
    tmp_path: Path, fixtures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((fixtures / "stories260K-hf" / name).read_bytes())
    data = fixtures / "preference" / "dpo_en_demo.json"
    words = [f"--workdir={tmp_path / 'run'}", "--config=default", "--config.stages=inspect"]
    words += [f"--config.model.path={folder}", "--config.model.template=plain"]
    words += [f"--config.prompts.source=jsonl:{data}", "--config.prompts.count=40", "--config.inspect.rows=20"]
    main.run(["qrpo-jax", *words])
    said = capsys.readouterr().err
    assert "20 of 40 rows to train on, spread evenly" in said and "done: " in said, said
    assert re.search(r"config.stages=reference,train", said)
    results = json.loads((tmp_path / "run" / "inspect" / inspect.RESULTS).read_text())
    assert results["sampled"] == {"rows": 20, "measured": 20}
    assert math.isfinite(results["tokens"]["prompt"]["mean"])
