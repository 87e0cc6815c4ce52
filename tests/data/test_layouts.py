"""Layouts: rows of published data sets are read as they come, whatever storage holds them."""

import gzip
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qrpo_jax.data.layouts import LAYOUTS
from qrpo_jax.data.layouts.contests import STANDARD_INPUT
from qrpo_jax.data.rows import encode
from qrpo_jax.errors import UserError
from tests.helpers.tables import (
    opened,
    rows_of,
    text_features,
    write_json_lines,
    write_parquet,
    write_saved,
    write_tfds,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


FIFTY = [round(0.01 * i, 2) for i in range(50)]
QRPO = {
    "chosen": [user("q"), assistant("good")],
    "rejected": [user("q"), assistant("bad")],
    "chosen_rewards": 0.75,
    "rejected_rewards": 0.25,
    "ref_rewards": FIFTY,
    "ref_completions": [user("q"), assistant(json.dumps([f"r{i}" for i in range(50)]))],
    "ref_completions_reward_tokens_len": FIFTY,
    "chosen_reward_tokens_len": 3.0,
}
TESTS = "def check(candidate):\n    assert candidate(a = 3, b = 4) == 7\n    assert candidate([1], b = 2) == [1, 2]\n"
APPS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
# For each layout a record, and the prompt, completions with rewards, and further facts that it holds.
EXAMPLES = {
    "rows": (
        {"prompt": "q", "completions": ["a", "b"], "rewards": [0.5, 1.0], "reference_rewards": [0.25]},
        ("q", [("a", 0.5), ("b", 1.0)]),
    ),
    "qrpo": (QRPO, ("q", [("good", 0.75), ("bad", 0.25)])),
    "qrpo_offpolicy": (
        {name: QRPO[name] for name in ("ref_completions", "ref_rewards")},
        ("q", [(f"r{i}", FIFTY[i]) for i in range(50)]),
    ),
    "ultrafeedback": (
        {
            "prompt": "q",
            "prompt_id": "x",
            "chosen": [user("q"), assistant("good")],
            "rejected": [user("q"), assistant("bad")],
            "messages": [user("q"), assistant("good")],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        ("q", [("good", 8.5), ("bad", 3.0)]),
    ),
    "preference": (
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")], "source": "x"},
        ("q", [("good", None), ("bad", None)]),
    ),
    "kto": ({"prompt": "q", "completion": "a", "label": True}, ("q", [("a", 1.0)])),
    "code": ({"task_id": "t/1", "prompt": "q", "entry_point": "f", "test": TESTS, "extra": "x"}, ("q", [])),
    "apps": (
        {
            "problem_id": "1",
            "question": "q",
            "input_output": APPS,
            "solutions": '["x"]',
            "starter_code": "",
            "url": "u",
        },
        (f"q\n\n{STANDARD_INPUT}", [("```python\nx\n```", None)]),
    ),
    "code_contests": (
        {
            "name": "n",
            "description": "q",
            "public_tests": {"input": ["1\n"], "output": ["2\n"]},
            "solutions": {"language": [2, 3], "solution": ["c", "x"]},
        },
        (f"q\n\n{STANDARD_INPUT}", [("```python\nx\n```", None)]),
    ),
    "gsm8k": ({"question": "q", "answer": "It is 9 * 2.\n#### 18"}, ("q", [("It is 9 * 2.\n#### 18", None)])),
    "scored": (
        {"prompt": [user("q")], "responses": ["a", "b"], "scores": [0.5, 1.0], "model": "x"},
        ("q", [("a", 0.5), ("b", 1.0)]),
    ),
    "tulu": ({"id": "x", "messages": [user("q"), assistant("a")], "source": "x"}, ("q", [("a", None)])),
    "magpie": ({"uuid": "x", "conversations": [human("q"), gpt("a")]}, ("q", [("a", None)])),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, ("q", [("a", None)])),
    "prompts": ({"prompt": "q", "difficulty": "easy"}, ("q", [])),
}


def test_every_layout_has_an_example():
    assert set(EXAMPLES) == set(LAYOUTS)


def stored(kind, tmp_path, records, monkeypatch):
    """The name of a source with these records."""
    if kind == "tfds":
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
        write_tfds(tmp_path / "tfds", "little", text_features(records[0]), train=records)
        return "tfds:little"
    if kind == "disk":
        return f"disk:{write_saved(tmp_path / kind, train=records)}"
    write = {"jsonl": write_json_lines, "parquet": write_parquet}[kind]
    return f"{kind}:{write(tmp_path / kind, records)}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "disk"])
@pytest.mark.parametrize("layout", EXAMPLES)
def test_a_layout_is_recognised_and_read(tmp_path, monkeypatch, layout, kind):
    record, (prompt, completions) = EXAMPLES[layout]
    source = opened(stored(kind, tmp_path, [record], monkeypatch))
    (row,) = source.rows(range(source.count))
    assert [message.content for message in row.messages] == [prompt]
    got = [(c.text, None if math.isnan(c.reward) else c.reward) for c in row.completions]
    assert got == completions, got
    said = source.layout
    assert (said == "") == (layout == "rows") and (not said or f"layout {layout!r}, recognised" in said), said
    unused = set(record) - {column for names in LAYOUTS[layout].columns.values() for column in names}
    assert all(repr(column) in said.partition("not read")[2] for column in unused), said


@pytest.mark.parametrize("layout", EXAMPLES)
def test_the_same_records_give_the_same_rows_whatever_stores_them(tmp_path, monkeypatch, layout):
    first = EXAMPLES[layout][0]
    records = [
        first | {key: f"{first[key]} {i}" for key in ("prompt", "task_id") if isinstance(first.get(key), str)}
        for i in range(7)
    ]
    kinds = [
        "jsonl",
        "parquet",
        "disk",
        *(["tfds"] if layout not in ("kto", "code_contests") else []),
    ]  # TFDS has no true and false of its own, and the helper writes text and messages
    rows = {kind: [encode(row) for row in rows_of(stored(kind, tmp_path, records, monkeypatch))] for kind in kinds}
    assert len(rows["jsonl"]) == 7 and all(rows[kind] == rows["jsonl"] for kind in kinds), layout


def test_published_rows_have_references_and_can_be_trained_on_off_policy(tmp_path, monkeypatch):
    name = stored("parquet", tmp_path, [QRPO], monkeypatch)
    (row,) = rows_of(name)
    np.testing.assert_array_equal(row.reference_rewards, np.asarray(FIFTY, np.float32))
    assert row.preferences == () and [c.source for c in row.completions] == ["dataset"] * 2
    assert "'ref_completions'" in opened(name).layout.partition("not read")[2]
    (row,) = rows_of(name, layout="qrpo_offpolicy")
    assert {c.source for c in row.completions} == {"reference"} and len(row.reference_rewards) == 0
    empty = QRPO | {"ref_completions": [user("q"), assistant(json.dumps(["", *(f"r{i}" for i in range(1, 50))]))]}
    (row,) = rows_of(stored("jsonl", tmp_path, [empty], monkeypatch), layout="qrpo_offpolicy")
    assert len(row.completions) == 49 and row.reference_rewards.tolist() == [0.0], "an empty one keeps its reward"


HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"
PAIRS = {
    "explicit text": {"prompt": "q", "chosen": " good", "rejected": " bad"},
    "implicit text": {"chosen": "The sky is blue.", "rejected": "The sky is bright green."},
    "explicit messages": {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
    "implicit messages": {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
    "both": {"prompt": "q", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
    "dialogues": {"chosen": f"{HH} good", "rejected": f"{HH} bad"},
    "sharegpt": {"conversations": [human("q")], "chosen": gpt("good"), "rejected": gpt("bad")},
    "system": {"system": "s", "conversations": [human("q")], "chosen": gpt("good"), "rejected": gpt("bad")},
    "parts": {
        "chosen": [user([{"type": "text", "text": "q"}]), assistant([{"type": "text", "text": "good"}])],
        "rejected": [user([{"type": "text", "text": "q"}]), assistant([{"type": "text", "text": "bad"}])],
    },
}
READ = {
    "explicit text": (["user: q"], " good", " bad"),
    "implicit text": (["user: The sky is"], " blue.", " bright green."),
    "dialogues": (["user: q", "assistant: a", "user: r"], "good", "bad"),
    "system": (["system: s", "user: q"], "good", "bad"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_without_rewards_are_an_order_and_no_numbers(tmp_path, name):
    (row,) = rows_of(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', [PAIRS[name]])}")
    messages, chosen, rejected = READ.get(name, (["user: q"], "good", "bad"))
    assert [f"{message.role}: {message.content}" for message in row.messages] == messages
    assert [c.text for c in row.completions] == [chosen, rejected]
    assert row.preferences == ((0, 1),) and all(math.isnan(c.reward) for c in row.completions)


GOOD_PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad", "id of": 1}
DROPPED = {
    "'rejected' is missing": {"rejected": None},
    "the prompt is empty": {"prompt": " "},
    "'chosen' is empty": {"chosen": ""},
    "chosen and rejected are the same text": {"chosen": "bad"},
    "chosen and rejected answer different prompts": {
        "chosen": [user("q"), assistant("good")],
        "rejected": [user("r"), assistant("bad")],
    },
    "'chosen' does not end with an answer": {"chosen": [], "rejected": [assistant("bad")]},
    "a message has no text": {"chosen": [assistant(None)], "rejected": [assistant("bad")]},
    "a message calls a tool": {
        "chosen": [assistant("good") | {"tool_calls": [{"name": "f"}]}],
        "rejected": [assistant("bad")],
    },
}


@pytest.mark.parametrize("reason", DROPPED)
def test_rows_that_lack_something_are_dropped_and_counted_by_reason(tmp_path, reason):
    path = write_json_lines(
        tmp_path / "a.jsonl", [GOOD_PAIR, GOOD_PAIR | DROPPED[reason], GOOD_PAIR, GOOD_PAIR | DROPPED[reason]]
    )
    source = opened(f"jsonl:{path}")
    assert [row.id for row in source.rows(range(source.count))] == ["row-1", "row-3"]
    (dropped,) = source.dropped
    assert dropped.line() == f"2 of 4 rows are dropped: {reason} (the first: {path}, line 2)"


FAULTS = {
    "text and messages": (
        GOOD_PAIR | {"chosen": [assistant("a")]},
        "line 2: 'chosen' and 'rejected' must both be text",
    ),
    "a number": (GOOD_PAIR | {"chosen": 5}, "line 2: a completion is 5"),
    "a message without a role": (
        GOOD_PAIR | {"chosen": [{"content": "a"}], "rejected": [assistant("b")]},
        "line 2: message 1 of 'chosen' must have role and content, both text",
    ),
    "a reward in words": (
        GOOD_PAIR | {"chosen_score": "high", "rejected_score": 1},
        "line 2: a reward is 'high'",
    ),
    "one reward": (GOOD_PAIR | {"chosen_score": 1}, None),
    "a prompt of a number": (GOOD_PAIR | {"prompt": 7}, "line 2: 'prompt' must be text or a list of messages"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_value_of_another_type_is_refused_with_file_row_and_column(tmp_path, name):
    record, message = FAULTS[name]
    first = GOOD_PAIR | ({"chosen_score": 1, "rejected_score": 0} if "chosen_score" in record else {})
    path = write_json_lines(tmp_path / "a.jsonl", [first, record])
    if message is None:
        assert opened(f"jsonl:{path}").dropped[0].reason == "a reward is missing"
        return
    with pytest.raises(UserError) as caught:
        rows_of(f"jsonl:{path}")
    assert f"{path}, {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_tables_of_no_layout_or_without_a_column_are_refused_by_name(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"title": "q", "body": "a"}])
    with pytest.raises(
        UserError, match="has the columns 'title', 'body', which no layout has; choose one of rows, qrpo"
    ) as caught:
        rows_of(f"parquet:{path}")
    assert caught.value.about == ("layout",)
    with pytest.raises(
        UserError, match="has no column 'label', which layout 'kto' needs; it has 'prompt', 'completion'"
    ):
        rows_of(f"parquet:{path}", layout="kto", columns=("prompt=title", "completion=body"))
    with pytest.raises(UserError, match="has no column 'name'; it has 'title', 'body'"):
        rows_of(f"parquet:{path}", columns=("prompt=name",))
    with pytest.raises(UserError, match="columns has 'title'; it must be NEW=OWN"):
        rows_of(f"parquet:{path}", columns=("title",))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "disk"])
def test_columns_of_other_names_are_read_under_the_usual_ones(tmp_path, monkeypatch, kind):
    records = [{"title": f"q{i}", "answers": ["a", "b"], "marks": [1.0, 2.0], "prompt": "no prompt"} for i in range(3)]
    name = stored(kind, tmp_path, records, monkeypatch)
    rows = rows_of(name, columns=("prompt=title", "completions=answers", "rewards=marks"))
    assert [row.messages[0].content for row in rows] == ["q0", "q1", "q2"]
    assert [c.reward for c in rows[0].completions] == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "disk"])
def test_nulls_and_empty_lists_are_what_is_not_there(tmp_path, monkeypatch, kind):
    records = [
        {"prompt": "q", "completions": ["a"], "rewards": [1.0], "reference_rewards": [0.5, 0.25]},
        {"prompt": "r", "completions": ["a"], "rewards": [1.0], "reference_rewards": []},
        {"prompt": "s", "completions": ["a"], "rewards": [1.0], "reference_rewards": None},
        {"prompt": "t", "completions": [], "rewards": None, "reference_rewards": None},
    ]
    rows = rows_of(stored(kind, tmp_path, records, monkeypatch))
    assert [len(row.reference_rewards) for row in rows] == [2, 0, 0, 0]
    assert [len(row.completions) for row in rows] == [1, 1, 1, 0]


# Records as hostile data sets have them: what their rows are, in short, and how many are dropped for which reason.
ODD = {
    "a null in a column that is needed": (
        [{"prompt": "q", "responses": ["a"]}, {"prompt": None, "responses": ["a"]}, {"prompt": "r", "responses": None}],
        ["q | a"],
        {"'prompt' is missing": 1, "'responses' is missing": 1},
    ),
    "no messages": (
        [{"messages": [user("q"), assistant("a")], "x": 1}, {"messages": None, "x": 1}, {"messages": [], "x": 1}],
        ["q | a"],
        {"'messages' is missing": 1, "the prompt is empty": 1},
    ),
    "no label": (
        [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "a", "label": None}],
        ["q | a 1"],
        {"'label' is missing": 1},
    ),
    "a completion of several that is none": (
        [
            {"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2.0]},
            {"prompt": "q", "responses": ["a", None], "scores": [1.0, 2.0]},
            {"prompt": "q", "responses": ["a", ""], "scores": [1.0, 2.0]},
            {"prompt": "q", "responses": [], "scores": []},
        ],
        ["q | a 1 | b 2", "q"],
        {"'responses' has one that is missing": 1, "'responses' is empty": 1},
    ),
    "messages as JSON in text": (
        [{"chosen": json.dumps([user("q"), assistant("a")]), "rejected": json.dumps([user("q"), assistant("b")])}],
        ["q | a | b"],
        {},
    ),
    "JSON that is no message": ([{"chosen": 'is [{"a": 1}] or', "rejected": 'is [{"a": 2}] or'}], None, {}),
    "completions as objects": (
        [{"instruction": "q", "completions": [{"model": "m", "response": "a", "overall_score": 7.5, "notes": None}]}],
        ["q | a 7.5"],
        {},
    ),
    "the same id twice": (
        [{"task_id": "t", "prompt": p, "entry_point": "f", "test": "assert candidate(1) == 2"} for p in "qr"],
        ["q", "r"],
        {},
    ),
    "payloads of several kinds": (
        [{"prompt": "q", "payload": {"b": 1, "a": "x"}}, {"prompt": "r", "payload": {"a": "y"}}],
        ["q", "r"],
        {},
    ),
    "messages with further keys": (
        [{"messages": [user("q") | {"name": "n"}, assistant("a") | {"weight": 1}], "x": 1}],
        ["q | a"],
        {},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_records_are_read_or_dropped_alike_whatever_stores_them(tmp_path, monkeypatch, name):
    records, expected, reasons = ODD[name]
    rows = {}
    for kind in ("jsonl", "parquet", "disk"):
        source = opened(stored(kind, tmp_path, records, monkeypatch))
        rows[kind] = source.rows(range(source.count))
        short = [
            " | ".join(
                [row.messages[-1].content]
                + [c.text if math.isnan(c.reward) else f"{c.text} {c.reward:g}" for c in row.completions]
            )
            for row in rows[kind]
        ]
        assert expected is None or short == expected, (kind, short)
        assert {dropped.reason: dropped.number for dropped in source.dropped} == reasons, (kind, source.dropped)
    assert all(list(map(encode, other)) == list(map(encode, rows["jsonl"])) for other in rows.values())
    assert len({row.id for row in rows["jsonl"]}) == len(rows["jsonl"])


def test_a_column_that_comes_late_is_not_left_out_silently(tmp_path):
    records = [GOOD_PAIR] * 1000 + [GOOD_PAIR | {"note": "n"}, GOOD_PAIR | {"chosen_score": 1, "rejected_score": 0}]
    path = write_json_lines(tmp_path / "a.jsonl", records[:-1])
    assert opened(f"jsonl:{path}").count == 1001, "a column that no layout reads may come at any time"
    write_json_lines(path, records)
    with pytest.raises(UserError, match="line 1002: column 'chosen_score' comes only after the first records"):
        opened(f"jsonl:{path}")
    write_json_lines(path, records[::-1])
    assert opened(f"jsonl:{path}").where("unscored").number == 1001


def test_types_of_other_programs_are_texts_numbers_and_objects(tmp_path):
    columns = {
        "bytes": {"prompt": pa.array([b"q"]), "responses": pa.array([[b"a"]]), "scores": [[1.0]]},
        "decimals": {"prompt": ["q"], "responses": [["a"]], "scores": pa.array([[Decimal("1.00")]])},
        "large and short": {
            "prompt": pa.array(["q"], pa.large_string()),
            "responses": pa.array([["a"]], pa.large_list(pa.string())),
            "scores": pa.array([[1.0]], pa.list_(pa.float16(), 1)),
        },
        "codes": {"prompt": pa.array(["q"]).dictionary_encode(), "responses": [["a"]], "scores": [[1]]},
    }
    for name, table in columns.items():
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
        (row,) = rows_of(f"parquet:{tmp_path}/a.parquet")
        assert (row.messages[0].content, row.completions[0].text, row.completions[0].reward) == ("q", "a", 1.0), name
        (tmp_path / "a.parquet").unlink()
    maps = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"prompt": ["q"], "payload": maps}), tmp_path / "a.parquet")
    assert rows_of(f"parquet:{tmp_path}/a.parquet")[0].payload == '{"k": "v"}'


def test_columns_that_the_first_record_leaves_empty_are_read(tmp_path):
    records = [{"source": "x", "messages": None, "chosen": "a", "rejected": "b", "prompt": "q", "system": None}]
    records += [records[0] | {"system": "s", "chosen_score": 2, "rejected_score": 1}]
    first, second = rows_of(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', records)}")
    assert [message.role for message in second.messages] == ["system", "user"] and first.preferences == ((0, 1),)
    assert [c.reward for c in second.completions] == [2.0, 1.0] and second.preferences == ()


def test_tests_of_programs_are_calls_and_values(tmp_path):
    def payload(**record):
        (row,) = rows_of(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', [{'prompt': 'q', 'x': 1} | record])}")
        return json.loads(row.payload)

    read = payload(entry_point="f", test=TESTS + "    assert candidate(1, 2) < 3\n    assert candidate(1) == (2, 3)\n")
    assert read["tests"] == [[[], {"a": 3, "b": 4}, 7], [[[1]], {"b": 2}, [1, 2]], [[1], {}, {"$tuple": [2, 3]}]]
    assert (read["entry_point"], read["script"]) == ("f", "def check(candidate):\n    assert candidate(1, 2) < 3")
    read = payload(test_list=["assert g(3) == 'a'", "assert set(g(3)) == set('a')"], test_imports=["import math"])
    assert (read["tests"], read["entry_point"], read["prelude"]) == ([[[3], {}, "a"]], "g", "import math")
    assert read["script"] == "assert set(g(3)) == set('a')"
    (row,) = rows_of(f"jsonl:{tmp_path / 'a.jsonl'}")
    assert row.messages[0].content.endswith("assert g(3) == 'a'\nassert set(g(3)) == set('a')")
    bad = [{"prompt": "q", "test": test} for test in (TESTS, "def", "assert h() > 2")]
    source = opened(f"jsonl:{write_json_lines(tmp_path / 'b.jsonl', [one | {'entry_point': 'f'} for one in bad])}")
    assert [dropped.reason for dropped in source.dropped] == ["its tests are not Python", "no test calls the function"]


class TestPublished:
    """Real files, read where they are."""

    def test_grade_school_mathematics(self, fixtures):
        rows = rows_of(f"jsonl:{fixtures}/gsm8k/*.jsonl")
        assert len(rows) == 1319 and {len(row.completions) for row in rows} == {4}
        assert [c.reward for c in rows[0].completions] == [0, 0, 0, 1]
        assert json.loads(rows[0].payload) == {"answer": "18"}

    def test_programs(self, fixtures):
        human_eval = opened(f"jsonl:{fixtures}/humaneval/HumanEval.jsonl.gz")
        assert (
            human_eval.layout.startswith("layout 'code'")
            and human_eval.count + sum(d.number for d in human_eval.dropped) == 164
        )
        assert (
            human_eval.rows([0])[0].id == "HumanEval/0"
            and "```python\nfrom typing" in human_eval.rows([0])[0].completions[0].text
        )
        leetcode = opened(f"jsonl:{fixtures}/leetcode/*.gz")
        first = json.loads(leetcode.rows([0])[0].payload)
        assert first["tests"][0] == [[], {"n": 7, "queries": [[0, 5], [1, 6], [2, 4]]}, [2, 2, 2]]
        assert first["entry_point"].startswith("Solution()") and first["prelude"].startswith("import random")
        mbpp = opened(f"jsonl:{fixtures}/mbpp/*.jsonl")
        assert len(json.loads(mbpp.rows([0])[0].payload)["tests"]) == 3
        counts = {"humaneval": human_eval.count, "leetcode": leetcode.count, "mbpp": mbpp.count}
        assert counts == {"humaneval": 164, "leetcode": 228, "mbpp": 974}

    def test_preferences(self, fixtures):
        source = opened(f"jsonl:{fixtures}/preference/dpo_en_demo.json")
        records = json.loads((fixtures / "preference/dpo_en_demo.json").read_text())
        assert source.count + sum(dropped.number for dropped in source.dropped) == len(records) > 200
        row = source.rows([0])[0]
        assert row.messages[0].content == records[0]["conversations"][0]["value"]
        assert row.completions[0].text == records[0]["chosen"]["value"] and row.preferences == ((0, 1),)

    def test_instructions(self, fixtures):
        source = opened(f"jsonl:{fixtures}/prometheus/*.json")
        records = json.loads(next((fixtures / "prometheus").glob("*.json")).read_text())
        assert source.count == len(records) and source.rows([0])[0].messages[0].content == records[0]["instruction"]

    def test_compressed_or_not(self, fixtures, tmp_path):
        packed = next((fixtures / "humaneval").glob("*.gz"))
        (tmp_path / "a.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
        first, second = (rows_of(f"jsonl:{path}") for path in (packed, tmp_path / "a.jsonl"))
        assert list(map(encode, first)) == list(map(encode, second))
