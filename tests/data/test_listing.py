"""Listings: one pass notes facts of all rows in arrays; the rows stay in their files."""

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.data.sources import listed
from qrpo_jax.data.sources.listing import BITS, FACTS, REVERSED, Lister, join, list_rows
from qrpo_jax.data.sources.tabular import TableRows
from qrpo_jax.errors import UserError
from tests.helpers.sources import in_memory
from tests.helpers.tables import opened, write_json_lines, write_parquet
from tests.helpers.together import run_together


def completion(text="a", reward=0.5, source="dataset", log_prob=math.nan):
    return Completion(text, NO_TOKENS, True, source, reward, reference_log_prob=log_prob)


PLAIN = Row("r", (Message("user", "q"),), completions=(completion("a", source="reference"), completion("b")))
# For each fact a row that has it, and no other.
HOLD = {
    "unscored": {"completions": (completion(reward=math.nan, source="reference"),)},
    "ordered only": {
        "completions": (completion("a", math.nan, "reference"), completion("b", math.nan)),
        "preferences": ((0, 1),),
    },
    "own references": {"completions": (completion("a"), completion("b"))},
    "several messages": {"messages": (Message("system", "s"), Message("user", "q"))},
    "odd role": {"messages": (Message("usr", "q"),)},
    "rewards alike": {"completions": (completion("a", 16777216.0, "reference"), completion("b", 16777217.0))},
    "texts alike": {"completions": (completion("a", source="reference"), completion("a"))},
    "log-probs": {"completions": (completion(log_prob=-1.0, source="reference"),)},
}


def test_every_fact_is_noted_of_the_rows_that_have_it():
    assert set(HOLD) == set(FACTS) and len(set(BITS.values())) == len(BITS) <= 16
    listing = list_rows([PLAIN, *(dataclasses.replace(PLAIN, **changed) for changed in HOLD.values())])
    for number, fact in enumerate(HOLD, 1):
        expected = [number] if fact != "unscored" else [1, 2]  # an order has no rewards
        assert np.flatnonzero(listing.has(fact)).tolist() == expected, fact
    assert not listing.has(REVERSED).any()
    assert listing.completions_R.tolist() == [2, 1, 2, 2, 2, 2, 2, 2, 1]
    assert listing.sampled_R.tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1]


def test_completions_without_text_are_alike_if_their_tokens_are():
    """Rows of a run may have tokens alone."""
    tokens = [np.asarray(ids, np.int32) for ids in ([3, 4], [3, 5], [3, 4])]
    apart, alike = (
        dataclasses.replace(PLAIN, completions=tuple(dataclasses.replace(completion(""), tokens=t) for t in some))
        for some in (tokens[:2], tokens)
    )
    assert list_rows([apart, alike]).has("texts alike").tolist() == [False, True]


def test_repeats_and_reasons_are_counted():
    lister = Lister()
    for number, prompt in enumerate(["a", "b", "a", "c", "a"]):
        lister.add(3 * number, Row(f"r{number % 4}", (Message("user", prompt),)), reversed_pair=prompt == "b")
        lister.drop("odd" if number % 2 else "even", f"line {number}")
    listing = lister.listing(10)
    assert listing.numbers_R.tolist() == [0, 3, 6, 9, 12] and listing.repeats().tolist() == [0, 0, 1, 0, 1]
    assert listing.same_ids() == [(0, 4)] and np.flatnonzero(listing.has(REVERSED)).tolist() == [1]
    assert [tuple(one) for one in listing.dropped] == [("even", 3, 10, "line 0"), ("odd", 2, 10, "line 1")]
    both = join([listing.take(np.asarray([4, 1])), listing])
    assert both.numbers_R.tolist() == [12, 3, 0, 3, 6, 9, 12] and len(both.dropped) == 4


def test_ids_that_are_there_twice_are_refused_by_both_places(tmp_path):
    records = [{"prompt": "a", "id": f"i{i % 13}"} for i in range(14)]
    path = write_json_lines(tmp_path / "a.jsonl", records)
    with pytest.raises(UserError, match=f"a.jsonl, line 14: id 'i0' is also that of {path}, line 1; give each row"):
        opened(f"jsonl:{path}")


def test_rows_say_where_they_stand(tmp_path):
    records = [{"prompt": "a", "chosen": "" if i % 3 else "a", "rejected": "b", "x": 1} for i in range(20)]
    source = opened(f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', records)}")
    assert source.count == 7 and source.counts == {"rows dropped: 'chosen' is empty": 13}
    assert [source.place_of(i).rpartition(" ")[2] for i in range(7)] == ["1", "4", "7", "10", "13", "16", "19"]
    (row,) = source.rows([3])
    assert row.id == "row-10" and source.place(row).endswith("line 10")
    assert opened(f"jsonl:{tmp_path / 'a.jsonl'}").place(row).endswith("line 10")
    assert source.place(dataclasses.replace(row, id="row-11")) == "row 'row-11'", "it was dropped"
    # Rows of another run keep ids that do not say where they stand now.
    row_files.write_unit(tmp_path / "rows", 0, 1, source.rows([3, 2]))
    row_files.finish(tmp_path / "rows", 1)
    again = opened(f"rows:{tmp_path / 'rows'}")
    assert again.place(row) == "row 'row-10'" and again.place(again.rows([0])[0]).endswith("rows, row 1")


def test_a_large_data_set_is_looked_at_in_all_its_parts():
    rows = [Row(f"r{i}", (Message("user", "a" * (1 + i // 100)),)) for i in range(1000)]
    source = in_memory(rows)
    looked = source.looked_at(96)
    assert len(set(looked.tolist())) == 96 and looked[0] == 0 and looked[-1] == 999
    assert np.all(np.diff(looked) > 0) and np.unique(looked // 100).size >= 8
    assert [row.id for _, row in source.read(looked)] == [f"r{i}" for i in looked]
    found = source.where_true(looked >= 990, looked)
    assert found.line("are late") == "10 of a sample of 96 are late (the first: row 'r990')"
    assert source.looked_at(1000).tolist() == list(range(1000))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_rows_of_a_large_data_set_are_not_in_memory(tmp_path, kind):
    records = [{"prompt": f"{i}", "completions": [f"{i}" * 2000]} for i in range(3000)]
    path = {"jsonl": write_json_lines, "parquet": write_parquet}[kind](tmp_path / f"a.{kind}", records)
    size = sum(len(record["completions"][0]) for record in records)
    del records
    tracemalloc.start()
    source = opened(f"{kind}:{path}")
    for first in range(0, source.count, 100):
        assert len(source.rows(range(first, first + 100))) == 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.count == 3000 and peak < size / 3, f"{peak} bytes for rows of {size}"


def test_records_are_listed_once_and_again_where_they_changed(tmp_path, monkeypatch):
    passes = []
    real = TableRows.listing
    monkeypatch.setattr(TableRows, "listing", lambda self, *part: passes.append(part) or real(self, *part))
    name = f"jsonl:{write_json_lines(tmp_path / 'a.jsonl', [{'prompt': f'p{i}'} for i in range(9)])}"
    for _ in range(3):
        opened(name, held_out=2)
    assert passes == [(0, 7), (7, 9)]
    write_json_lines(tmp_path / "a.jsonl", [{"prompt": f"p{i}"} for i in range(10)])
    assert opened(name, held_out=2).count == 8 and len(passes) == 4


TOGETHER = """
from qrpo_jax.data.sources.tabular import TableRows
from qrpo_jax.errors import UserError
from tests.helpers.tables import opened
passes, real = [], TableRows.listing
TableRows.listing = lambda self, *part: passes.append(part) or real(self, *part)
source = opened(f"jsonl:{arguments[0]}")
try:
    opened(f"jsonl:{arguments[1]}")
    fault = ""
except UserError as error:
    fault = f"{error} {error.about}"
answer([source.count, [row.id for row in source.rows([0, 5])], len(passes), source.counts, fault])
"""


@pytest.mark.slow
def test_one_process_of_several_makes_the_listing(tmp_path):
    records = [{"prompt": f"p{i}", "chosen": "a", "rejected": "a" if i == 3 else "b", "x": 1} for i in range(13)]
    good = write_json_lines(tmp_path / "a.jsonl", records)
    bad = write_json_lines(tmp_path / "b.jsonl", [*records, {"prompt": 7, "chosen": "a", "rejected": "b"}])
    first, second = run_together(tmp_path, TOGETHER, good, bad)
    assert first[2] >= 2 and second[2] == 0, "the second process has read the records too"
    assert first[:2] == second[:2] == [12, ["row-1", "row-7"]]
    assert first[3] == second[3] == {"rows dropped: chosen and rejected are the same text": 1}
    assert first[4] == second[4] and "line 14: 'prompt' must be text" in first[4] and "('path',)" in first[4], first[4]


def test_messages_of_a_sample_say_so():
    assert listed.Found(1, 5, "x", 9).line("are y") == "1 of a sample of 5 are y (the first: x)"
