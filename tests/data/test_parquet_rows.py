"""Rows as Parquet: written and read again by the program's own source they are the same rows."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qrpo_jax.data import parquet_rows
from qrpo_jax.data.parquet_rows import fits, row_groups
from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row, encode
from qrpo_jax.errors import UserError
from tests.helpers.sample_rows import make_row
from tests.helpers.tables import rows_of, write_json_lines, write_parquet

PROMPT = (Message("system", "Be brief."), Message("user", "2 + 2?"))


def written(path: Path, rows: list[Row], layout: str) -> str:
    with pq.ParquetWriter(path, parquet_rows.ROW_LAYOUTS[layout].schema) as writer:
        for group in row_groups(rows, layout):
            writer.write_table(group)
    return f"parquet:{path}"


def pair_row(i: int, references: int = 3, **changes) -> Row:
    """A pair with rewards, and references that were sampled and scored."""
    rng = np.random.default_rng(i)
    rewards = rng.normal(size=2 + references).astype(np.float32).tolist()
    pair = [Completion(f"{name} {i} 東", NO_TOKENS, True, "dataset", rewards[j]) for j, name in enumerate("wl")]
    tokens = rng.integers(0, 999, 3, dtype=np.int32)
    sampled = [
        Completion(f"sample {j}\n" * j, tokens, bool(j), "reference", rewards[2 + j], -1.5) for j in range(references)
    ]
    row = Row(f"pair-{i}", PROMPT, '{"tests":[[1,  2]]}', (*pair, *sampled))
    return dataclasses.replace(row, **changes)


def odd_rows() -> list[Row]:
    """Rows with what other layouts have no place for."""
    tokens = np.asarray([7], np.int32)
    ended = Completion("", tokens, True, "reference", math.nan, -0.25)
    given = Completion("given", NO_TOKENS, True, "dataset", 0.5)
    better, worse = (Completion(text, NO_TOKENS, True, "dataset") for text in ("better", "worse"))
    return [
        Row("prompt alone", PROMPT),
        Row("partly scored", PROMPT, '"text"', (given, ended)),
        Row("an order", PROMPT, "", (worse, better), preferences=((1, 0),)),
        Row("17", (*PROMPT, Message("assistant", "4"), Message("user", "\x1b[2J\x00")), "", (ended, ended)),
        Row("references alone", PROMPT, "", (given,), np.asarray([0.1, -3e38, 1e-40], np.float32)),
    ]


@pytest.mark.parametrize("layout", ["rows", "qrpo"])
def test_every_column_of_a_layout_is_read_or_known(layout: str, tmp_path: Path) -> None:
    row = pair_row(1) if layout == "qrpo" else make_row(1)
    (table,) = row_groups([row], layout)
    assert table.schema == parquet_rows.ROW_LAYOUTS[layout].schema
    assert all(table.column(name).null_count == 0 for name in table.column_names if name != "preferences")


def test_layout_rows_gives_back_the_same_bytes(tmp_path: Path) -> None:
    rows = [*(make_row(i, completions=i % 5) for i in range(11)), *odd_rows(), *(pair_row(i) for i in range(3))]
    read = rows_of(written(tmp_path / "rows.parquet", rows, "rows"))
    assert [row.id for row in read] == [row.id for row in rows]
    for before, after in zip(rows, read, strict=True):
        assert encode(after) == encode(before), (before, after)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"component_names": ["a"]}, "is there alone"),
        ({"component_names": ["a", "a"], "components": [[1, 2]]}, "has a name twice"),
        ({"component_names": ["a"], "components": [[1, 2]]}, "must be a list of 1 numbers"),
        ({"component_names": ["a"], "components": [["x"]]}, "must be a finite number or null"),
        ({"component_names": "a", "components": [[1]]}, "must be a list of names"),
        ({"component_names": ["a"], "components": []}, "1 completions but 'components' has 0"),
    ],
)
def test_components_of_another_form_are_refused_by_line_and_column(
    columns: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completions": ["c"], **columns}))
    with pytest.raises(UserError, match=message) as caught:
        rows_of(f"jsonl:{path}")
    assert "line 1" in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_columns_may_come_as_json_lines(tmp_path: Path) -> None:
    (table,) = row_groups([make_row(3), *odd_rows()], "rows")
    path = write_json_lines(tmp_path / "rows.jsonl", table.to_pylist())
    expected = rows_of(write_parquet_source(tmp_path, table.to_pylist()))
    assert list(map(encode, rows_of(f"jsonl:{path}"))) == list(map(encode, expected))
    assert len(expected) == 6


def write_parquet_source(folder: Path, records: list) -> str:
    return f"parquet:{write_parquet(folder / 'rows.parquet', records)}"


def test_the_published_layout_gives_back_pairs_and_rewards_of_references(tmp_path: Path) -> None:
    rows = [pair_row(i, references=1 + i) for i in range(5)]
    rows.append(pair_row(9, completions=pair_row(9).completions[:2], reference_rewards=np.float32([0.5, 0.25])))
    assert fits(rows, "qrpo")
    name = written(tmp_path / "rows.parquet", rows, "qrpo")
    read = rows_of(name)
    for before, after in zip(rows, read, strict=True):
        assert (after.id, after.messages, after.payload) == (before.id, before.messages, before.payload)
        pair = [(c.text, c.reward, c.source) for c in after.completions]
        assert pair == [(c.text, c.reward, c.source) for c in before.completions[:2]]
        rewards = [c.reward for c in before.completions[2:]] + before.reference_rewards.tolist()
        assert after.reference_rewards.tolist() == rewards
    # The references themselves are there too, for those who name that layout.
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    texts = [json.loads(record["ref_completions"][-1]["content"]) for record in table[:5]]
    assert texts == [[c.text for c in row.completions[2:]] for row in rows[:5]]
    assert table[5]["ref_completions"] is None
    offpolicy = rows_of(written(tmp_path / "some.parquet", rows[:5], "qrpo"), layout="qrpo_offpolicy")
    kept = [[c.text for c in row.completions if c.text and c.source == "reference"] for row in rows[:5]]
    assert [[c.text for c in row.completions] for row in offpolicy] == kept


@pytest.mark.parametrize(
    "row",
    [
        *odd_rows(),
        make_row(2),
        pair_row(1, references=0),
        pair_row(2, reference_rewards=np.float32([0.5])),
        pair_row(3, completions=(*pair_row(3).completions, Completion("", np.int32([1]), True, "policy", 0.5))),
        pair_row(4, completions=tuple(dataclasses.replace(c, reward=math.nan) for c in pair_row(4).completions)),
        pair_row(5, completions=tuple(dataclasses.replace(c, text="same") for c in pair_row(5).completions)),
        pair_row(6, messages=(Message("human", "2 + 2?"),)),
    ],
    ids=lambda row: row.id,
)
def test_rows_of_another_kind_do_not_fit_the_published_layout(row: Row) -> None:
    assert not fits([pair_row(0), row], "qrpo") and fits([row], "rows")
    with pytest.raises(UserError, match=f"row {row.id!r} does not fit layout 'qrpo'.*'rows'"):
        list(row_groups([row], "qrpo"))


def test_groups_are_small_whatever_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "GROUP_ROWS", 7)
    taken = 0

    def rows():
        nonlocal taken
        for i in range(31):
            taken += 1
            yield make_row(i)

    groups = row_groups(rows(), "rows")
    assert len(next(groups)) == 7 and taken == 7, "no row is read ahead"
    assert [len(group) for group in groups] == [7, 7, 7, 3]
    monkeypatch.setattr(parquet_rows, "GROUP_BYTES", 100)
    assert max(map(len, row_groups(rows(), "rows"))) <= 2


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sources", ["reference"], "2 completions but 'sources' has 1; give one entry each"),
        ("sources", ["reference", "me"], "'sources' has 'me'; allowed: dataset, reference, policy"),
        ("sources", "reference", "2 completions but 'sources' has 'reference'"),
        ("finished", [True, 1], "'finished' has 1; it must be true or false"),
        ("log_probs", [-1.0, "x"], "'log_probs' has 'x'; it must be a finite number or null"),
        ("reference_log_probs", [-1.0, -math.inf], "it must be a finite number or null"),
        ("token_ids", [[1], [-1]], r"'token_ids' has \[-1\]; it must be a list of token ids"),
        ("token_ids", [[1], [2**31]], "it must be a list of token ids"),
        ("token_ids", [[1], 2], "it must be a list of token ids"),
        ("preferences", [[0, 2]], "pairs of different indices of its 2 completions"),
        ("preferences", [[1, 1]], "pairs of different indices"),
        ("preferences", [[0]], "pairs of different indices"),
        ("preferences", "no", "pairs of different indices"),
        ("payload_json", "{", "'payload_json' is '{'; it must be JSON in text"),
        ("payload_json", 7, "it must be JSON in text"),
        ("payload", 7, "'payload' and 'payload_json' are both there"),
        ("rewards", [0.5, "x"], "a reward is 'x'"),
    ],
)
def test_a_mistake_in_a_column_of_a_run_names_place_and_column(column, value, message, tmp_path: Path) -> None:
    record = {"prompt": "q", "completions": ["a", "b"], "payload_json": "1", column: value}
    path = write_json_lines(tmp_path / "rows.jsonl", [record])
    with pytest.raises(UserError, match=f"rows.jsonl, line 1: .*{message}") as error:
        rows_of(f"jsonl:{path}")
    assert "\n" not in str(error.value)


def test_only_a_record_of_a_run_may_leave_a_reward_or_a_text_open(tmp_path: Path) -> None:
    for record, message in (
        ({"rewards": [0.5, None]}, "a reward is None"),
        ({"completions": ["a", ""]}, "it must be text that is not empty"),
    ):
        path = write_json_lines(tmp_path / "rows.jsonl", [{"prompt": "q", "completions": ["a", "b"], **record}])
        with pytest.raises(UserError, match=message):
            rows_of(f"jsonl:{path}")
