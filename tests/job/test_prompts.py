"""A job's prompts: any source in the table, unit by unit; beginnings depend on their index alone."""

import re

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Message, Row
from qrpo_jax.data.sources import SOURCES
from qrpo_jax.data.sources.source import SourceKind
from qrpo_jax.errors import DamagedError, UserError
from qrpo_jax.job import unit_size
from qrpo_jax.job.prompts import BeginningSampler, open_prompts, open_sources
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.source_check import check_source
from qrpo_jax.job.units import run_units
from tests.helpers.jobs import job, refused


class Squares:
    """A toy source."""

    count = 7

    def rows(self, indices):
        return [Row(f"square-{i}", (Message("user", f"What is {i} squared?"),)) for i in indices]


# Sources whose prompts a model that is trained from scratch can read.
READABLE = ", ".join(repr(name) for name, kind in SOURCES.items() if kind.vocabulary is not None)
TABLE = SOURCES | {"squares": SourceKind(open=lambda settings: {"train": Squares(), "eval": Squares()})}


@pytest.mark.parametrize(("size", "units"), [(3, 3), (7, 1), (11, 1)])
def test_a_new_source_needs_only_a_class_and_one_entry_in_the_table(tmp_path, size, units) -> None:
    toy = job(tmp_path, prompts__source="squares", prompts__unit=size)
    prompts = open_prompts(toy, "sample", sources=TABLE)
    assert prompts.units == units
    counts = run_units(
        toy, tmp_path, units, lambda u: (prompts.rows(u), {"prompts": len(prompts.indices(u))}), title="test"
    )
    assert counts == {"prompts": 7}
    assert [row.id for row in row_files.read(tmp_path)] == [f"square-{i}" for i in range(7)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, f"a model that is trained from scratch knows only the words of {READABLE}, not those of .*'squares'"),
        ({"model__path": "a"}, "prompts from 'squares' bring nothing to learn from: remove 'sft'"),
        (
            {"model__path": "a", "stages": ("sample",), "sample__completions": 0},
            r"'squares' bring no completions \(config.sample.completions\)",
        ),
    ],
)
def test_a_source_is_checked_by_its_record_and_not_by_its_name(tmp_path, overrides, message) -> None:
    config = job(tmp_path, prompts__source="squares", **overrides).config
    with pytest.raises(UserError, match=message):
        check_source(config, TABLE)
    check_source(job(tmp_path, prompts__source="squares", model__path="a", stages=("sample",)).config, TABLE)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"source": "jsonl"}, r"prompts.source is 'jsonl'; write jsonl:FILES \(config.prompts.source\)"),
        ({"source": "programs:x"}, "prompts.source is 'programs:x'; write programs"),
        ({"source": "parket:a"}, "'parket:a'; allowed: programs, jsonl:FILES, .*; did you mean 'parquet'"),
        ({"split": "test"}, "prompts.split is 'test'; prompts from 'programs' have no split: leave it empty"),
        ({"layout": "qrpo"}, "prompts.layout is 'qrpo'; prompts from 'programs' have no layout"),
        ({"columns": ("prompt=a",)}, "prompts.columns is .*; prompts from 'programs' have no columns"),
        ({"source": "rows:a", "layout": "qrpo"}, "prompts.layout is 'qrpo'; prompts from 'rows:a' have no layout"),
        ({"mix": ("jsonl:a",)}, "prompts.mix is set, but prompts are from 'programs': set config.prompts.source=mix"),
        ({"source": "mix"}, r"mix is empty; name its sources, such as .*\(config.prompts.mix\)"),
        ({"source": "mix:a"}, "prompts.source is 'mix:a'; write mix"),
        ({"source": "mix", "mix": ("programs name=a",)}, "prompts.mix is of 'programs' among others; allowed: jsonl:"),
        ({"source": "mix", "mix": ("mix:a",)}, "prompts.mix is of 'mix:a' among others; allowed: jsonl:FILES, parquet"),
        ({"source": "mix", "mix": ("rows:a layout=qrpo",)}, "prompts.mix is of 'rows:a', which has columns of its own"),
        ({"source": "mix", "mix": ("jsonl:a",), "layout": "qrpo"}, "prompts.layout is 'qrpo'; prompts from 'mix' have"),
        ({"held_out": "test"}, "prompts.held_out is 'test'; prompts from 'programs' have no splits: give a number"),
    ],
)
def test_the_name_of_a_source_and_its_parts_are_checked_before_it_is_opened(tmp_path, prompts, message) -> None:
    keys = {f"prompts__{key}": value for key, value in prompts.items()}
    config = job(
        tmp_path, model__path="a" if prompts.get("source", "").startswith(("rows", "mix")) else "", **keys
    ).config
    with pytest.raises(UserError, match=message):
        check_source(config)


def test_an_error_in_a_file_names_the_config_key(tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    options = {"prompts__source": f"jsonl:{path}", "prompts__held_out": 2}
    with pytest.raises(UserError, match=re.escape(f"no file {path}; name a JSON-lines file (config.prompts.source)")):
        open_sources(job(tmp_path, **options))
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "b"}\n')
    with pytest.raises(UserError, match=r"line 2: the prompt is empty; .* \(config\.prompts\.source\)$"):
        open_sources(job(tmp_path, **options))
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(UserError, match=r"held_out is 2 of 2 prompts; .* \(config\.prompts\.held_out\)$"):
        open_sources(job(tmp_path, **options))


def test_settings_of_a_stage_tell_contents_of_files_apart(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    options = {"prompts__source": f"jsonl:{path}", "prompts__held_out": 0, "model__path": "", "stages": ("reference",)}

    def content(text: str) -> str:
        path.write_text(text)
        return pipeline.settings(job(tmp_path / "run", **options), "reference")["prompts.source content"]

    first, other = content('{"prompt": "a"}'), content('{"prompt": "b"}')
    assert first != other == content('{"prompt": "b"}')
    path.unlink()
    assert "prompts.source content" not in pipeline.settings(job(tmp_path / "run", **options), "reference")


def test_a_beginning_depends_on_split_and_index_alone(tmp_path) -> None:
    toy = job(tmp_path, prompts__beginning_tokens=5)
    draw = BeginningSampler(toy, toy.fresh_parameters(toy.unit_mesh))
    together = draw(range(11), "train")
    apart = [text for index in reversed(range(11)) for text in draw([index], "train")]
    assert apart[::-1] == together
    assert len(set(together)) > 7 and draw(range(11), "eval") != together, together


def test_prompts_from_a_model_trained_from_scratch_are_refused(tmp_path) -> None:
    message = f"knows only the words of {READABLE}, not those of prompts from 'model'"
    refused(tmp_path, message, prompts__source="model")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 13])
def test_units_cover_every_prompt_once(tmp_path, size) -> None:
    toy = job(tmp_path, prompts__source="squares", prompts__unit=size)
    prompts = open_prompts(toy, "evaluate", sources=TABLE)
    indices = np.concatenate([prompts.indices(unit) for unit in range(prompts.units)])
    np.testing.assert_array_equal(indices, np.arange(7))


@pytest.mark.parametrize("count, parts", [(1024, 32), (1009, 32), (1024, 1), (97, 13), (31, 31), (7, 2), (1, 5)])
def test_units_are_at_least_as_many_as_the_processes_that_can_have_one(count, parts) -> None:
    size = unit_size.choose(count, parts)
    units = -(-count // size)
    assert 1 <= size <= unit_size.MOST
    # Sizes are whole: of 1,009 prompts in units of 16 the 64th unit has one.
    assert units >= min(parts, count) or size == -(-count // parts), (size, units)


def test_a_stage_that_goes_on_with_other_processes_keeps_its_units(tmp_path) -> None:
    def opened(parts: int) -> int:
        toy = job(tmp_path, prompts__source="squares")
        toy.shard = Shard(0, parts)
        return open_prompts(toy, "sample", sources=TABLE).size

    assert [opened(2), opened(7), opened(1)] == [4, 4, 4]
    (tmp_path / "sample" / "unit.json").unlink()
    assert opened(7) == 1
    (tmp_path / "sample" / "unit.json").write_text('{"prompts": 3}')
    with pytest.raises(DamagedError, match="no checksum"):
        opened(7)
