"""One row in a terminal: complete, wrapped, and harmless whatever a model wrote."""

import dataclasses
import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.histogram import histogram
from qrpo_jax.job.row_lookup import row_lines
from qrpo_jax.report import row_view, terminal
from tests.helpers.sample_rows import make_row
from tests.job.test_row_export import write_stage

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\rover\x08\x08\u202eright\u2066\u200b\ue000\x00\x7f" + "z" + "\u0301" * 99


def columns(line: str) -> int:
    return sum(map(terminal.columns_of, line))


def obeyed(lines: list[str]) -> set[str]:
    """Characters that a terminal would obey or that nobody would see."""
    return {c for line in lines for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}


def test_nothing_of_a_row_reaches_the_terminal_as_a_command() -> None:
    hostile = Completion(HOSTILE, NO_TOKENS, True, "policy", 0.5)
    row = Row(HOSTILE, (Message("user\x1b[1m", HOSTILE),), f'{{"\\u001b{HOSTILE[1:9]}": "\\u001b[2J"}}', (hostile,))
    lines = list(row_view.lines(row, "score", 41))
    assert not obeyed(lines) and "⟨U+001B⟩" in "".join(lines)
    assert "".join(lines).count("\u0301") <= terminal.MOST_MARKS * 3, "marks would cover other lines"
    assert max(map(columns, lines)) <= 41


@pytest.mark.parametrize("width", [80, 33, 5])
def test_lines_are_wrapped_and_no_character_is_lost(width: int) -> None:
    text = "word  " * 40 + "\n" + "東京" * 60 + "\n    indented = True\n\n" + "x" * 200
    lines = terminal.wrapped(text, width, "  ")
    assert max(map(columns, lines)) <= max(width, terminal.NARROWEST + 2)
    parts = "".join(line.removeprefix("  ") for line in lines)
    assert parts == text.replace("\n", "")
    assert "      indented = True" in [line.rstrip() for line in lines] or width < 24
    assert all(line.rstrip().endswith("word") for line in lines if "word" in line), lines


def test_a_row_shows_all_that_is_known_of_it() -> None:
    row = make_row(5)
    text = "\n".join(row_view.lines(row, "here", 200))
    for completion in row.completions:
        assert completion.text in text and f"reward {completion.reward:.4g}" in text, text
        assert f"{len(completion.tokens)} tokens" in text
    for words in ("here: row-5", "system", "Be brief.", "payload", "tests: []", "-1.50 as sampled", "log π_ref -2.25"):
        assert words in text, (words, text)
    assert "rewards of 2 references without a text: " in text
    assert ("cut by the length limit" in text) and ("ended" in text)
    order = dataclasses.replace(row, completions=row.completions[:2], preferences=((1, 0),))
    assert "completion 1 is preferred to completion 0" in "\n".join(row_view.lines(order, "here", 80))
    assert "no completion" in row_view.lines(Row("x", row.messages), "here", 80)


def test_quantiles_are_those_among_the_other_references() -> None:
    rewards = [0.1, 0.7, 0.7, 0.9]
    sampled = [Completion("a", NO_TOKENS, True, "reference", reward) for reward in rewards]
    best = Completion("b", NO_TOKENS, True, "policy", 0.8)
    row = Row("x", (Message("user", "q"),), "", (*sampled, best), np.float32([0.3]))
    np.testing.assert_allclose(row_view.quantiles_of(row), [0, 2.5 / 4, 2.5 / 4, 1, 4 / 5], rtol=1e-6)
    unknown = dataclasses.replace(best, reward=math.nan)
    assert math.isnan(row_view.quantiles_of(dataclasses.replace(row, completions=(*sampled, unknown)))[-1])


def test_bars_count_every_value_and_fit_their_width() -> None:
    rng = np.random.default_rng(1)
    far = np.append(rng.integers(0, 400, 997), 10**6)
    for values in (rng.normal(size=997), far, rng.integers(0, 3, 997), np.ones(5), [0.5], [math.nan], [-1e30, 1e30]):
        found = histogram(values)
        lines = terminal.bars(found, 60)
        counts = [int(line.rpartition(" ")[2].replace(",", "")) for line in lines]
        assert sum(counts) == np.isfinite(values).sum() and len(lines) <= 11, lines
        assert all(columns(line) <= 60 for line in lines), lines
    assert max(histogram(far).counts) < 200, "one far value leaves the others apart"


def test_a_row_is_found_by_index_and_by_id_also_before_the_stage_is_finished(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(11)]
    rows[7] = dataclasses.replace(rows[7], id="3")
    write_stage(tmp_path / "score", rows)
    for which, index, row in (("0", 0, 0), ("10", 10, 10), ("row-6", 6, 6), ("3", 3, 3), ("id=3", 7, 7)):
        first = next(row_lines(tmp_path, f"score:{which}", 80))
        assert first == f"score, row {index} of 11: {rows[row].id}"
    write_stage(tmp_path / "sample", rows, without=(0,))
    first = next(row_lines(tmp_path, "sample:0", 99))
    assert first == "sample, row 0 of 6, of the 2 of 3 units that are complete: row-5"
    for which, message in (
        ("score:11", "no row 11 in score; the last index is 10"),
        ("score:x", "no row of id 'x' in score; its first ids are 'row-0', 'row-1', 'row-2'"),
        ("score", "write STAGE:INDEX or STAGE:ID"),
        ("train:0", "--show-row=train has no rows"),
    ):
        with pytest.raises(UserError) as error:
            list(row_lines(tmp_path, which, 80))
        assert message in str(error.value) and "\n" not in str(error.value), error.value
