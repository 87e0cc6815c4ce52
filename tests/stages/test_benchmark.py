"""Stage benchmark: what it counts, what it needs, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import mixes
from qrpo_jax.data.mixes import LengthMix
from qrpo_jax.job.completions import sampler_program
from qrpo_jax.model.flops import forward_flops, layout_pairs
from qrpo_jax.model.layout import Layout
from qrpo_jax.report import speed
from qrpo_jax.stages import benchmark
from tests.helpers import jobs

QUICK = {"benchmark__rounds": 2, "benchmark__calls": 1, "benchmark__prompts": 3, "train__batch_size": 7}
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 67,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 11,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
SMALL = LengthMix(prompt=13, completion=7, spread=0.3, siblings=3, pairs=False, most=31)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mixes.MIXES, "many_short", SMALL)
    sampler_program.cache_clear()  # another test may have compiled it


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"lora__rank": 2, "train__reference_log_probs": "on_the_fly"},
    ],
    ids=["all parameters", "adapters"],
)
def test_three_programs_are_measured_without_data_and_weights(
    tmp_path: Path, small: None, overrides: dict[str, object]
) -> None:
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(SHAPE))
    overrides = {"stages": ("benchmark",), "model__path": tmp_path / "shape", **QUICK, **overrides}
    job = jobs.job(tmp_path / "run", benchmark__mix="many_short", **overrides)
    assert pipeline.run(job)
    written = [path.name for path in sorted((tmp_path / "run").iterdir())]
    assert written == ["benchmark", "journal-0-of-1.json"], "nothing else is written"
    record = json.loads((tmp_path / "run" / "benchmark" / benchmark.NUMBERS).read_text())
    assert record["devices"] == 8 and record["mix"] == "many_short", record
    for name in speed.PROGRAMS:
        one = record[name]
        assert all(math.isfinite(value) and value >= 0 for value in one.values()), (name, one)
        assert one["mfu"] == pytest.approx(one["model_tflops_per_second"] / one["peak_tflops_per_second"]), (name, one)
        assert 0 < one["mfu"] < 1 and one["compile_seconds"] > 0.01 and one["peak_memory_gb"] > 0.05, (name, one)
    assert record["sample"]["tokens"] == 3 * job.config.sample.completions * job.config.sample.max_new_tokens
    # Seven completions a step, each with its prompt.
    assert 7 * 2 <= record["train"]["tokens"] <= 7 * SMALL.most, record["train"]
    assert len(speed.rows(record)) == 3 and len(speed.lines(record)) == 4
    assert all(len(row) == len(speed.COLUMNS) for row in speed.rows(record))


@pytest.mark.parametrize("window", [None, 5])
def test_flops_of_sampling_are_those_of_the_rows_that_it_computes(tmp_path: Path, window: int | None) -> None:
    job = jobs.job(tmp_path, sample__completions=3, sample__max_new_tokens=7)
    settings = dataclasses.replace(job.shape.settings, sliding_window=window)
    job.shape = job.shape._replace(settings=settings)
    lengths = np.asarray([2, 11, 5])
    rows = [row_of(length, completions=3, decoded=6) for length in lengths.tolist()]
    pairs = [layout_pairs(Layout(*(x[None] for x in row)), window) for row in rows]
    expected = sum(
        forward_flops(settings, row.groups_BxL.size, one, targets=1 + 3 * 6).total
        for row, one in zip(rows, pairs, strict=True)
    )
    assert benchmark.sampling_flops(job, lengths) == pytest.approx(expected, rel=1e-12)


def row_of(prompt: int, completions: int, decoded: int) -> Layout:
    """A prompt, and completions each of whose tokens but the last passes through the decoder."""
    segments = np.concatenate([np.zeros(prompt, int), np.repeat(np.arange(1, completions + 1), decoded)])
    own = np.tile(prompt + np.arange(decoded), completions)
    return Layout(np.ones_like(segments), segments, np.concatenate([np.arange(prompt), own]))


def test_mixes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    alone = {"stages": ("benchmark",)}
    jobs.refused(tmp_path, "mix is 'other'; allowed: many_short", benchmark__mix="other", **alone)
    jobs.refused(tmp_path, "up to 4096 tokens .* made for 512", benchmark__mix="long_prompts", **alone)
    jobs.refused(tmp_path, "has no pairs for 'dpo'", train__objective="dpo", **alone)
    jobs.refused(tmp_path, "needs LoRA", train__reference_log_probs="on_the_fly", **alone)
    jobs.refused(tmp_path, "benchmark.rounds is 0", benchmark__rounds=0, **alone)
