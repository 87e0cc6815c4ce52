"""Mixes: rows of several sources in the ratio of their weights, always at the same places."""

import numpy as np
import pytest

from qrpo_jax.data.rows import encode
from qrpo_jax.data.sources import SOURCES
from qrpo_jax.data.sources.mix import numbers, shares
from qrpo_jax.data.sources.mix_parts import parse_mix
from qrpo_jax.errors import UserError
from tests.helpers.tables import opened, options, write_json_lines, write_parquet


def chats(count):
    return [{"prompt": f"chat {i}", "completions": ["a"]} for i in range(count)]


def code(count):
    return [{"title": f"code {i}", "chosen": "a", "rejected": "b" if i % 5 else "a", "x": 1} for i in range(count)]


@pytest.fixture
def mix(tmp_path):
    """Opens a mix of 40 chats and 25 problems, of which 5 are dropped, with weights or without."""
    chat = write_json_lines(tmp_path / "chat.jsonl", chats(40))
    problems = write_parquet(tmp_path / "code.parquet", code(25))

    def open_mix(*weights, part="train", **overrides):
        options = [f" weight={weight}" for weight in weights] or ["", ""]
        texts = (f"jsonl:{chat}{options[0]}", f"parquet:{problems}{options[1]} columns=prompt=title layout=preference")
        return opened("mix", part, mix=texts, **overrides)

    return open_mix


def names(source):
    return [row.id.partition(":")[0] for row in source.rows(range(source.count))]


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [
        ((), 0, {"chat": 40, "code": 20}),
        ((), 30, {"chat": 20, "code": 10}),
        ((1, 1), 0, {"chat": 20, "code": 20}),
        ((3, 1), 0, {"chat": 39, "code": 13}),
        ((0.5, 0.5), 23, {"chat": 12, "code": 11}),
        ((1, 3), 60, {"chat": 15, "code": 20, "code#2": 20, "code#3": 5}),
    ],
)
def test_weights_say_how_many_rows_come_from_each_source(mix, weights, count, expected):
    source = mix(*weights, count=count)
    got = {name: names(source).count(name) for name in dict.fromkeys(names(source))}
    if weights == (3, 1):  # 20 / 1 × 4 = 80 rows would take 60 chats; 40 / 3 × 4 = 53
        assert abs(got["chat"] - 40) <= 1 and abs(got["code"] - 13) <= 1 and source.count == 53, got
    else:
        assert got == expected
    rows = source.rows(range(source.count))
    assert len({row.id for row in rows}) == source.count
    told = {mixed.name: (mixed.rows, mixed.there) for mixed in source.mixed}
    assert told["code"] == (sum(n for name, n in got.items() if name.startswith("code")), 20)
    assert source.counts["rows dropped: code: chosen and rejected are the same text"] == 5
    assert source.counts["rows from chat"] == got["chat"], source.counts


def test_a_row_stays_at_its_place_and_another_seed_has_another_order(mix):
    first, again, other = mix(1, 1), mix(1, 1), mix(1, 1, seed=5)
    rows = [encode(row) for row in first.rows(range(first.count))]
    assert rows == [encode(again.rows([i])[0]) for i in reversed(range(again.count))][::-1]
    assert names(first) != names(other) and sorted(names(first)) == sorted(names(other))
    assert names(first) != sorted(names(first)), "one source stands after the other"
    for name in ("chat", "code"):
        own = [row.id for row in first.rows(range(first.count)) if row.id.startswith(name)]
        numbers = [int(row_id.rpartition("-")[2]) for row_id in own]
        assert numbers == sorted(numbers), "a reader that goes forwards would have to go back in a file"


def test_rows_are_those_of_their_sources_with_their_places_and_listing(mix, tmp_path):
    source = mix(1, 3, count=60)
    alone = opened(f"jsonl:{tmp_path}/chat.jsonl")
    for index in range(source.count):
        (row,) = source.rows([index])
        name, _, own = row.id.partition(":")
        number = int(own.rpartition("-")[2])
        word = "line" if name == "chat" else "row"
        assert source.place(row) == source.place_of(index)
        assert source.place(row).endswith(f"{name[:4]}.{'jsonl' if name == 'chat' else 'parquet'}, {word} {number}")
        assert row.messages[0].content == f"{name[:4]} {number - 1}"
        assert len(row.completions) == source.listing.completions_R[index] == (1 if name == "chat" else 2)
        if name == "chat":
            assert row.messages == alone.rows([number - 1])[0].messages
    assert source.listing.repeats().sum() == 25, "prompts that the mix repeats"


def test_rows_of_the_same_id_are_told_apart_once(tmp_path):
    problem = {"task_id": "t", "entry_point": "f", "test": "assert candidate(1) == 2"}
    file = write_json_lines(tmp_path / "code.jsonl", [problem | {"prompt": word} for word in "qrs"])
    alone, source = opened(f"jsonl:{file}"), opened("mix", mix=(f"jsonl:{file}",))
    assert alone.rows([1])[0].id == "t (row-2)"
    ids = sorted(row.id for row in source.rows(range(3)))
    assert ids == [f"code:{row.id}" for row in alone.rows(range(3))], ids


def test_held_out_rows_are_shared_and_never_trained_on(mix):
    train, held_out = mix(1, 3, held_out=8), mix(1, 3, held_out=8, part="eval")
    kept = names(held_out)
    assert kept == ["chat"] * 2 + ["code"] * kept.count("code") and kept.count("code") >= 4, kept
    trained = {row.messages for row in train.rows(range(train.count))}
    assert not trained & {row.messages for row in held_out.rows(range(held_out.count))}
    share = mix(held_out=0.2, part="eval")
    assert names(share).count("chat") == 8


def test_shares_add_up_and_differ_from_the_ratio_by_less_than_one():
    generator = np.random.default_rng(3)
    for total in (0, 1, 7, 97, 2003):
        weights = generator.random(5) + 0.01
        got = shares(total, weights)
        assert sum(got) == total and np.abs(got - weights / weights.sum() * total).max() < 1, (total, got)
    assert numbers([7, 100, 3], [2, 50, 1], 0) == [4, 100, 2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), "mix is empty; name its sources, such as 'jsonl:a.jsonl weight=0.3"),
        (("jsonl:a.jsonl", "parquet:b/a.parquet"), "two sources of the mix are called 'a'; add name="),
        (("jsonl:a.jsonl weight=1", "jsonl:b.jsonl"), "some sources of the mix have no weight"),
        (("jsonl:a.jsonl weight=0", "jsonl:b.jsonl weight=1"), "weight must be a number above 0"),
        (("jsonl:a.jsonl weight=nan",), "weight must be a number above 0"),
        (("jsonl:a.jsonl weight=1 weight=2",), "weight is twice"),
        (("jsonl:a.jsonl held_out=1.5",), "held_out must be a number of prompts, a share below 1, or a split"),
        (("jsonl:*.jsonl",), "name it with letters and digits, such as name=chat"),
    ],
)
def test_mixes_of_another_form_are_refused(texts, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_mix(texts)
    assert caught.value.about == ("mix",)


def test_spaces_belong_to_paths_and_options_to_their_source(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    write_json_lines(folder / "a=b.jsonl", chats(3))
    write_json_lines(folder / "train-c.jsonl", chats(5))
    write_json_lines(folder / "test-c.jsonl", chats(2))
    texts = (f"jsonl:{folder}/a=b.jsonl name=a", f"jsonl:{folder}/*-c.jsonl name=c split=train held_out=test")
    source = opened("mix", mix=texts, held_out=1)
    assert sorted(names(source)) == ["a"] * 2 + ["c"] * 5
    assert names(opened("mix", "eval", mix=texts, held_out=1)) == ["a"] + ["c"] * 2
    with pytest.raises(UserError, match="layout of jsonl:.* is 'qrop'; allowed: rows, qrpo"):
        opened("mix", mix=(f"{texts[0]} layout=qrop",))
    with pytest.raises(UserError, match=f"no file {folder}/none.jsonl") as caught:
        opened("mix", mix=(f"jsonl:{folder}/none.jsonl",))
    assert caught.value.about == ("mix",)


def test_the_contents_of_all_sources_decide_the_identity(tmp_path):
    def identity(second):
        write_json_lines(tmp_path / "a.jsonl", chats(3))
        write_json_lines(tmp_path / "b.jsonl", second)
        texts = (f"jsonl:{tmp_path}/a.jsonl", f"jsonl:{tmp_path}/b.jsonl")
        return SOURCES["mix"].identity(options("mix", mix=texts))

    assert identity(chats(2)) != identity(chats(4)) == identity(chats(4))
