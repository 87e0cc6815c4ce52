"""The benchmark against PyTorch trainers: whose turn it is, what is counted, and what the ratios are of."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tokenizer import open_text
from tests.benchmarks import peers, random_llama
from tests.benchmarks.worker import WORKERS, Worker

# A trainer that owns its loop, computes for a while in every step, and notes when.
FAKE = f"""
import sys, time
sys.path.insert(0, {str(WORKERS)!r})
from turns import Turns

name, notes, seconds = sys.argv[1:]
turns = Turns()
print("a library prints")
turns.ready(about=name)
for _ in range(10):
    turns.wait()
    start = time.monotonic()
    while time.monotonic() - start < float(seconds):
        pass
    with open(notes, "a") as file:
        file.write(f"{{name}} {{start}} {{time.monotonic()}}\\n")
    turns.done(tokens=113)
"""


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return [sys.executable, str(script)]


def test_sides_take_turns_and_never_compute_at_the_same_time(fake: list[str], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    workers = {
        name: Worker(name, [*fake, name, str(notes), seconds], tmp_path)
        for name, seconds in (("first", "0.02"), ("second", "0.05"))
    }
    records = peers.alternate(workers, warm_up=1, steps=3)
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert [name for name, _, _ in lines] == ["first", "second"] * 4, lines
    for (_, _, end), (_, start, _) in zip(lines, lines[1:], strict=False):
        assert float(start) >= float(end), lines
    assert [len(record["steps"]) for record in records.values()] == [3, 3], records
    for report in records["second"]["steps"]:
        assert report["tokens"] == 113 and report["seconds"] >= 0.05, report
        assert 0 < report["cpu_seconds"] <= 1.2 * report["seconds"], report


def test_a_worker_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('no such model')")
    with pytest.raises(SystemExit, match=r"worker broken ended with status 1(.|\n)*no such model"):
        Worker("broken", [sys.executable, str(script)], tmp_path)


def test_ratios_are_of_medians_and_count_the_reference_pass_where_they_say_so() -> None:
    def steps(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": s, "cpu_seconds": 2 * s, "tokens": 600, "peak_gib": 1.0} for s in seconds]

    records = {
        peers.OURS: {"steps": steps(1, 2, 90), "reference_seconds_per_token": 1 / 300},
        "published": {"steps": steps(7, 6, 5)},
    }
    assert peers.medians_of(records["published"]["steps"])["tokens_per_second"] == 100
    (ratio,) = [line for line in peers.summary(records) if " / published" in line]
    # 300 tokens/s in training and 300 in the pass are 150 together.
    assert ratio.split(": ")[1] == (
        "3.00 x tokens/s (1.50 x with the reference's pass added to every step), 3.00 x tokens per CPU second"
    ), ratio
    records["published"]["steps"][0]["tokens"] = 300
    records["published"]["steps"][1]["tokens"] = 300
    assert "WARNING: published counts 300 tokens a step, this package 600" in peers.summary(records)


def test_the_other_sides_get_the_pair_whose_names_this_package_trains_on() -> None:
    row = {"id": "a/b", "prompt": "p", "completions": ["x", "y", "z"], "rewards": [3, 5, 4]}
    pair = peers.pair_of({"a/b": row}, "a/b/1", "a/b/2")
    assert (pair["chosen"], pair["rejected"]) == ("y", "z"), pair
    assert (pair["chosen_reward"], pair["rejected_reward"], pair["reference_rewards"]) == (5, 4, [3, 5, 4]), pair


def test_sides_that_are_not_installed_are_named_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    options = peers.parse(["--shape=30M", "--trl-python=python"])
    assert list(peers.others(options)) == ["trl"]
    assert capsys.readouterr().out == "published trainer: not measured; name --peer-python and --peer-checkout\n"


def test_a_random_llama_is_a_model_folder_whose_rows_have_the_full_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(random_llama.SHAPES, "tiny", random_llama.Shape(101, 12, 2, 3, 17))
    folder, path = random_llama.write_random_llama(tmp_path, "tiny", rows=3)
    settings, text = model_folder.check_folder(Path(folder)), open_text(Path(folder), "plain")
    assert (settings.vocab_size, settings.d_model, settings.layers) == (101, 12, 2), settings
    assert settings.tie_embeddings, settings
    rows = peers.read_rows(path)
    assert len(rows) == 3
    for row in rows:
        prompt = np.asarray(text.encode(row["prompt"]))
        lengths = [1 + len(prompt) + len(text.completion(completion)) for completion in row["completions"]]
        assert lengths == [random_llama.MAX_TOKENS] * 2, (json.dumps(row)[:99], lengths)


@pytest.mark.slow
def test_this_package_alone_is_measured_from_rows_to_medians(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(random_llama.SHAPES, "tiny", random_llama.Shape(101, 12, 2, 3, 17))
    peers.main(["--shape=tiny", "--batch=3", "--steps=2", "--warm-up=1", "--cores=1"])
    (medians,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{peers.OURS} ")]
    tokens = medians.split()[3]
    assert tokens == f"{3 * 2 * random_llama.MAX_TOKENS:,}", medians
