"""Where the time of a stage goes, over all its starts."""

import time
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.files import write_json
from qrpo_jax.training.time_sheet import CAUSES, NAME, TimeSheet, goodput, read_starts


def start(started: float, first: int, step: int, **seconds: float) -> dict[str, Any]:
    return {"started": started, "first": first, "step": step, "seconds": dict.fromkeys(CAUSES, 0.0) | seconds}


def test_what_has_no_other_cause_is_steps_and_each_start_has_a_line(tmp_path: Path) -> None:
    for first in (0, 3):
        sheet, begun = TimeSheet(tmp_path), time.perf_counter()
        with sheet.spent("restore"):
            time.sleep(0.05)
        sheet.begin(first)
        with pytest.raises(KeyError), sheet.spent("data"):
            time.sleep(0.07)
            raise KeyError
        before = time.perf_counter() - begun
        sheet.reached(first + 5, saved=True)
        whole = time.perf_counter() - begun
    lines = read_starts(tmp_path / NAME)
    assert [(one["first"], one["step"]) for one in lines] == [(0, 5), (3, 8)]
    seconds = lines[1]["seconds"]
    assert seconds["restore"] >= 0.05 and seconds["data"] >= 0.07 and seconds["compile"] == 0
    assert 0 <= seconds["steps"] < whole - 0.11
    assert before - 0.001 <= sum(seconds.values()) <= whole, (before, seconds, whole)


def test_it_is_written_now_and_then(tmp_path: Path) -> None:
    sheet = TimeSheet(tmp_path)
    sheet.begin(0)
    sheet.reached(1, saved=False)
    assert read_starts(tmp_path / NAME)[0]["step"] == 0
    sheet.reached(2, saved=True)
    assert read_starts(tmp_path / NAME)[0]["step"] == 2
    TimeSheet(None).reached(1, saved=True)


def test_steps_that_a_later_start_made_again_are_not_goodput(tmp_path: Path) -> None:
    """The first start made 10 steps in 50 s and saved 8 of them; the next began 100 s after it and made the rest."""
    lines = [start(0.0, 0, 10, steps=50, compile=10), start(160.0, 8, 20, steps=28, restore=5, save=5, evaluate=2)]
    write_json(tmp_path / NAME, lines)
    found = goodput(tmp_path / NAME)
    assert found is not None and (found.starts, found.seconds) == (2, 200)
    wanted = {"steps": 68, "repeated": 10, "compile": 10, "restore": 5, "save": 5, "evaluate": 2, "data": 0}
    wanted |= {"rollout": 0, "away": 100}
    assert found.shares == pytest.approx({cause: seconds / 200 for cause, seconds in wanted.items()})
    assert found.goodput == pytest.approx(0.34)


def test_a_missing_or_broken_file_is_none(tmp_path: Path) -> None:
    assert goodput(tmp_path / NAME) is None
    for text in ("[", "[]", '[{"started": 1}]', "[3]", "{}"):
        (tmp_path / NAME).write_text(text)
        assert goodput(tmp_path / NAME) is None, text


def test_rollouts_are_goodput_and_none_is_made_again(tmp_path: Path) -> None:
    """A start that was killed had saved 8 of 10 steps; its rollouts are kept whatever is repeated."""
    write_json(tmp_path / NAME, [start(0.0, 0, 10, steps=50, rollout=30), start(80.0, 8, 10, steps=10, rollout=10)])
    found = goodput(tmp_path / NAME)
    assert found is not None and found.goodput == pytest.approx((40 + 10 + 30 + 10) / 100), found
