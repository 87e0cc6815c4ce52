"""Sources of prompts: rows by index, JSON lines read unchanged, and one clear line for each fault."""

import dataclasses
import gzip
import itertools
import json
import math

import numpy as np
import pytest

from qrpo_jax.data import programs, row_files
from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row, encode
from qrpo_jax.data.sources import SOURCES, listed, listing
from qrpo_jax.data.sources.held_out import divide
from qrpo_jax.data.sources.programs import demonstration_row, program_row
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from tests.helpers.sources import all_rows, in_memory
from tests.helpers.tables import (
    options,
    rows_of,
    text_features,
    write_json_lines,
    write_parquet,
    write_saved,
    write_tfds,
)


def beginnings(indices, split):
    return [f"{split} text {index}" for index in indices]


RECORDS = [{"prompt": f"p{i}", "completions": ["c"]} for i in range(13)]


def read_jsonl(path):
    """All rows of a JSON-lines file."""
    return rows_of(f"jsonl:{path}")


def sources(name, tmp_path, monkeypatch):
    """The splits of a source of each kind, with 5 rows to train on and 2 held out."""
    address = {
        "programs": lambda: "programs",
        "model": lambda: "model",
        "jsonl": lambda: f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', RECORDS)}",
        "parquet": lambda: f"parquet:{write_parquet(tmp_path / 'a.parquet', RECORDS)}",
        "disk": lambda: f"disk:{write_saved(tmp_path / 'saved', train=RECORDS)}",
        "tfds": lambda: (
            write_tfds(tmp_path / "tfds", "little", text_features(RECORDS[0]), train=RECORDS) and "tfds:little"
        ),
        "rows": lambda: (
            f"rows:{stored(tmp_path / 'rows', read_jsonl(write_json_lines(tmp_path / 'a.jsonl', RECORDS)))}"
        ),
        "hf": lambda: f"hf:{hub_folder(tmp_path, monkeypatch)}",
        "mix": lambda: "mix",
    }
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    how = {"count": 5, "held_out": 2, "demonstrations": 11, "draw_beginnings": beginnings}
    if name == "mix":
        files = (
            write_json_lines(tmp_path / "a.jsonl", RECORDS[:5]),
            write_parquet(tmp_path / "b.parquet", RECORDS[5:]),
        )
        how["mix"] = tuple(f"{kind}:{path}" for kind, path in zip(("jsonl", "parquet"), files, strict=True))
    return SOURCES[name].open(options(address[name](), **how))


def stored(folder, rows):
    row_files.write_unit(folder, 0, 1, rows)
    row_files.finish(folder, 1)
    return folder


def hub_folder(tmp_path, monkeypatch):
    """A folder of files that the library `datasets` opens as it opens a data set of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", RECORDS)
    return tmp_path / "hub"


def write(tmp_path, *records):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records))
    return path


def test_a_program_row_is_its_problem():
    row, problem = program_row(3, "train", 5), programs.problem(3, "train", 5)
    assert row.id == "train-5" and row.messages[0].content == problem.prompt and row.completions == ()
    assert [(tuple(a), v) for a, v in json.loads(row.payload)["tests"]] == list(problem.tests)
    solved = demonstration_row(3, "train", 5)
    assert (solved.id, solved.messages, solved.payload) == (row.id, row.messages, row.payload)
    assert [c.text for c in solved.completions] == [problem.demonstration] and solved.completions[0].finished


def test_every_key_of_a_line_arrives(tmp_path):
    rows = read_jsonl(
        write(
            tmp_path,
            {"prompt": "hi", "completions": ["a", "b"], "rewards": [1, 0.5], "reference_rewards": [0.1, 2]},
            "",
            {"id": "x", "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            {"prompt": "p", "payload": {"tests": [[[1, 2], 3]]}},
            {"prompt": "p", "chosen": "w", "rejected": "l", "chosen_reward": 2, "rejected_reward": -1},
            {"prompt": "p", "chosen": "w", "rejected": "l"},
        )
    )
    assert [row.id for row in rows] == ["row-1", "x", "row-3", "row-4", "row-5"]
    assert [(c.text, c.reward, c.source) for c in rows[0].completions] == [("a", 1, "dataset"), ("b", 0.5, "dataset")]
    np.testing.assert_array_equal(rows[0].reference_rewards, np.asarray([0.1, 2], np.float32))
    assert [(m.role, m.content) for m in rows[1].messages] == [("system", "s"), ("user", "u")]
    assert json.loads(rows[2].payload) == {"tests": [[[1, 2], 3]]}
    assert [(c.text, c.reward) for c in rows[3].completions] == [("w", 2), ("l", -1)]
    assert all(math.isnan(c.reward) for c in rows[4].completions)


def test_separators_inside_a_text_do_not_cut_its_line(tmp_path):
    odd = "a\u2028b\u0085c\x0bd"
    (row,) = read_jsonl(write(tmp_path, {"prompt": odd}))
    assert row.messages[0].content == odd


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: needs an object with a 'prompt'"),
        ({"text": "a"}, "line 2: needs an object with a 'prompt'"),
        ({"prompt": "a", "promt": 1}, "line 2: unknown key 'promt'; allowed: "),
        ({"prompt": " \n"}, "line 2: the prompt is empty"),
        ({"prompt": []}, "line 2: the prompt is empty"),
        ({"prompt": 5}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": [{"role": "user"}]}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": [{"role": "user", "content": None}]}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": "a", "completions": "abc"}, "line 2: 'completions' is 'abc'; it must be a list"),
        ({"prompt": "a", "completions": [""]}, "line 2: a completion is ''"),
        ({"prompt": "a", "completions": [None]}, "line 2: a completion is None"),
        ({"prompt": "a", "chosen": 5, "rejected": "b"}, "line 2: a completion is 5"),
        ({"prompt": "a", "chosen_reward": 5}, "line 2: 'chosen_reward' without 'chosen'"),
        ({"prompt": "a", "completions": ["b"], "rewards": [1, 2]}, "line 2: 1 completions but 2 rewards"),
        ({"prompt": "a", "completions": ["b"], "rewards": 1}, "line 2: 'rewards' is 1; it must be a list"),
        ({"prompt": "a", "completions": ["b"], "rewards": ["1"]}, "line 2: a reward is '1'"),
        ({"prompt": "a", "completions": ["b"], "rewards": [True]}, "line 2: a reward is True"),
        ({"prompt": "a", "completions": ["b"], "rewards": [None]}, "line 2: a reward is None"),
        ('{"prompt": "a", "completions": ["b"], "rewards": [NaN]}', "line 2: a reward is nan"),
        ('{"prompt": "a", "completions": ["b"], "rewards": [1e999]}', "line 2: a reward is inf"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_reward": 1}, "line 2: a reward is None"),
        ({"prompt": "a", "reference_rewards": ["x"]}, "line 2: a reward is 'x'"),
        ({"prompt": "a", "reference_rewards": 5}, "line 2: 'reference_rewards' is 5; it must be a list"),
        ({"prompt": "a", "id": "row-1"}, "line 2: id 'row-1' is also that of "),
        ("[" * 100_000, "line 2: lists or objects are nested too deeply"),
        (
            '{"prompt": "a", "payload": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 2: lists or objects are nested too deeply",
        ),
        ('{"prompt": "a", "reference_rewards": [' + "1" * 5000 + "]}", "line 2: a number has too many digits"),
        ({"prompt": "a", "reference_rewards": [10**400]}, "line 2: a reward is 1000"),
        ({"prompt": "a", "reference_rewards": [1e39]}, "line 2: a reward is 1e+39; it must be a finite number of at"),
        ({"prompt": "a", "completions": ["b"], "rewards": [-1e300]}, "line 2: a reward is -1e+300"),
        ({"prompt": "a", "completions": {"x": "y" * 5000}}, "line 2: 'completions' is {'x': 'yyy"),
        ({"prompt": "a", "completions": [["y" * 5000]]}, "line 2: a completion is ['yyy"),
        ('{"prompt": "a\\ud800"}', "line 2: text holds '\\ud800', half of a character"),
        ('{"prompt": "a", "payload": [{"k": "\\uDFFF"}]}', "line 2: text holds '\\udfff', half of a character"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: key 'prompt' is twice in an object"),
        ('{"prompt": "a", "payload": {"b": {"c": 1, "c": 2}}}', "line 2: key 'c' is twice in an object"),
        ('{"prompt": "a", "payload": [NaN]}', "line 2: 'payload' holds NaN or an infinity, which is not JSON"),
        ('{"prompt": "a"}{"prompt": "b"}', "line 2: not JSON (Extra data); each line must hold a whole object"),
        ({"prompt": "a", "id": True}, "line 2: 'id' is True"),
        ({"prompt": "a", "id": 1.5}, "line 2: 'id' is 1.5"),
        ({"prompt": "a", "id": [1]}, "line 2: 'id' is [1]"),
        ({"prompt": "a", "id": ""}, "line 2: 'id' is ''"),
        ({"prompt": None}, "line 2: needs an object with a 'prompt'"),
        ({"prompt": {"role": "user", "content": "a"}}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": ["a"]}, "both text; message 1 is 'a'"),
        ({"prompt": [{"role": "user", "content": "a"}, {"content": "b"}]}, "both text; message 2 is {'content': 'b'}"),
        ({"prompt": [{"role": "", "content": "a"}]}, "both text; message 1 is {'role': ''"),
        (
            {"prompt": [{"role": "user", "content": "a", "tool_calls": [1]}]},
            "message 1 of 'prompt' has key 'tool_calls'",
        ),
    ],
)
def test_a_bad_line_is_refused_in_one_line_that_names_it(tmp_path, line, message):
    path = write(tmp_path, {"prompt": "good"}, line)
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    assert caught.value.about == ("path",)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500, f"{len(str(caught.value))} characters"


def test_files_that_are_not_there_empty_or_not_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file .*missing\.jsonl; name a JSON-lines file$") as caught:
        read_jsonl(tmp_path / "missing.jsonl")
    assert caught.value.about == ("path",)
    with pytest.raises(UserError, match="holds no row"):
        read_jsonl(write(tmp_path, "", ""))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(UserError, match="is not UTF-8"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (gzip.compress(b"{}", mtime=0), "is compressed (gzip); decompress it"),
        (b"PAR1\x15\x04", "is a Parquet file; convert it to JSON lines"),
        (b"PK\x03\x04", "is a zip archive; unpack it"),
        ('{"prompt": "a"}'.encode("utf-16"), "is not UTF-8 (invalid start byte at byte 0); convert the file"),
        (b"\0" * 99, "line 1: not JSON"),
        (b'[\n{"prompt": "a"}\n]', "line 1: not JSON (Expecting value); each line must hold a whole object"),
        (b'{\n"prompt": "a"\n}', "line 1: not JSON"),
    ],
)
def test_files_of_another_format_are_refused_with_what_to_do(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and caught.value.about == ("path",)


@pytest.mark.parametrize(
    "name, message",
    [(".", "is a folder"), ("x" * 300, "cannot be read (File name too long)"), ("a\0b", "no file"), ("a/b", "no file")],
)
def test_paths_of_no_file_are_refused(tmp_path, name, message):
    with pytest.raises(UserError) as caught:
        read_jsonl(tmp_path / name)
    assert message in str(caught.value) and caught.value.about == ("path",)
    with pytest.raises(UserError, match="no file is named"):
        read_jsonl("")


def test_line_breaks_and_marks_of_other_systems_are_no_content(tmp_path):
    path, lines = tmp_path / "prompts.jsonl", [b'{"prompt": "a"}', b'{"prompt": "b\\r\\n"}']
    for mark, end in itertools.product((b"", b"\xef\xbb\xbf"), (b"\n", b"\r\n", b"\r")):
        path.unlink(missing_ok=True)
        path.write_bytes(mark + end.join(lines) + end)
        assert [row.messages[0].content for row in read_jsonl(path)] == ["a", "b\r\n"], (mark, end)


def test_a_file_that_changes_is_read_again(tmp_path):
    path = write(tmp_path, {"prompt": "a"})
    assert read_jsonl(path)[0].messages[0].content == "a"
    write(tmp_path, {"prompt": "other"})
    assert read_jsonl(path)[0].messages[0].content == "other"


def test_the_last_prompts_are_held_out():
    def parts(count, held_out, other=None, most=0):
        train, held, left_out = divide(count, other, options("jsonl:a", held_out=held_out, count=most))
        return list(train), list(held), left_out

    assert parts(5, 2) == ([0, 1, 2], [3, 4], 0) and parts(5, 0) == ([0, 1, 2, 3, 4], [], 0)
    assert parts(5, 2, most=2) == ([0, 1], [3, 4], 1) and parts(5, 2, most=7) == ([0, 1, 2], [3, 4], 0)
    assert parts(5, 0.3) == ([0, 1, 2], [3, 4], 0), "a share is rounded up"
    assert parts(5, "test", other=3) == ([0, 1, 2, 3, 4], [0, 1, 2], 0)
    with pytest.raises(UserError, match="held_out is 5 of 5") as caught:
        parts(5, 5)
    assert caught.value.about == ("held_out",)


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_is_the_same_in_whatever_order_and_company_it_is_read(tmp_path, monkeypatch, name):
    for split, source in sources(name, tmp_path, monkeypatch).items():
        forwards = [encode(row) for row in all_rows(source)]
        backwards = [encode(row) for index in reversed(range(source.count)) for row in source.rows([index])]
        assert forwards == backwards[::-1] and len(set(forwards)) == source.count, (split, source.count)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_has_the_splits_and_the_rows_that_its_record_announces(tmp_path, monkeypatch, name):
    kind, splits = SOURCES[name], sources(name, tmp_path, monkeypatch)
    assert set(splits) == {"train", "eval"} | ({"sft"} if kind.demonstrations else set())
    assert (splits["train"].count, splits["eval"].count) == (5, 2)
    if kind.demonstrations:
        assert all(row.completions for row in all_rows(splits["sft"]))
    completions = sum(len(row.completions) for row in all_rows(splits["train"]))
    assert completions == 5 * kind.completions, completions
    texts = [{row.messages[-1].content for row in all_rows(splits[split])} for split in ("train", "eval")]
    assert not texts[0] & texts[1], "a prompt is trained on and held out"


def test_a_beginning_is_drawn_for_its_split_and_index(tmp_path, monkeypatch):
    rows = sources("model", tmp_path, monkeypatch)["eval"].rows([1, 0])
    assert [(row.id, row.messages) for row in rows] == [
        ("eval-1", (Message("user", "eval text 1"),)),
        ("eval-0", (Message("user", "eval text 0"),)),
    ]


def test_listed_rows_without_completions_or_of_which_none_fits_are_refused():
    tokenizer = vocabulary_tokenizer(("a", "b"))
    text = make_text(tokenizer, "plain", (tokenizer.eos_token_id,))
    short, long = (Row(f"row-{n}", (Message("user", "a" * n),)) for n in (5, 7))
    answered = dataclasses.replace(short, completions=(Completion("b", NO_TOKENS, True, "dataset", 0.5),))
    listed.check_completions(in_memory([answered]))
    with pytest.raises(UserError, match=r"row 'row-7' has no completion \(2 have none\)") as caught:
        listed.check_completions(in_memory([answered, long, short]))
    assert caught.value.about == ("completions",)
    source = in_memory([long, short], ["a.jsonl, line 3", "a.jsonl, line 4"])
    measured = listed.check_lengths(source, text, 6, "to train on")  # BOS and five letters
    assert measured.lengths_P.tolist() == [8, 6] and not measured.unknown_P.any()
    assert not len(listed.check_lengths(in_memory([]), text, 6, "held out").lengths_P)
    with pytest.raises(
        UserError, match="all 2 prompts held out are longer than 5 tokens, the shortest has 6"
    ) as caught:
        listed.check_lengths(source, text, 5, "held out")
    assert caught.value.about == ("max_tokens",)
    found = source.where_true(measured.lengths_P > 6)
    assert found and found.line("are long") == "1 of 2 are long (the first: a.jsonl, line 3)"
    assert not source.where("unscored")


def test_rows_are_scored_when_every_completion_has_a_finite_reward():
    scored, unscored = (
        Row("r", (), completions=(Completion("b", NO_TOKENS, True, "dataset", reward),)) for reward in (0.5, math.nan)
    )
    assert [listing.all_scored(row) for row in (scored, unscored)] == [True, False]
    assert in_memory([scored, unscored]).where("unscored").number == 1
