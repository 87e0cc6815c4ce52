"""What a stage says at its end, and its pace: of shards and starts together, and whatever it is said to."""

import dataclasses
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax.evaluation.histogram import FEW, spread
from qrpo_jax.job import pace, reward_counts, summary
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.pace import SAMPLED, UnitPace
from qrpo_jax.job.units import add_counts, pace_of, run_units
from qrpo_jax.stages import STAGES
from tests.helpers.sample_rows import make_row

UNITS = 7


class Clock:
    """A clock that only the work moves."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("qrpo_jax.job.units.time", clock)
    return clock


def run(folder: Path, clock: Clock, shard: Shard, most: int = UNITS) -> Any:
    """Units of 10 tokens in 5 s for the first of a start and 1 s for others; stops before it makes more than `most`."""
    job, made = Job(FrozenConfigDict(default.get_config()), folder, shard, STAGES), 0

    def work(unit: int) -> Any:
        nonlocal made
        if made == most:
            raise KeyboardInterrupt
        clock.now += 1.0 if made else 5.0
        made += 1
        return [make_row(unit)], {"completions": 3, "completion tokens": 10, summary.CUT: unit % 2}

    return run_units(job, folder / "sample", UNITS, work, title="sample", measure=SAMPLED)


def test_work_of_shards_and_starts_adds_up_and_no_rate_has_the_first_unit_of_a_start(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, clock, Shard(1, 2)) is None  # units 1, 3, 5 in 5 + 1 + 1 s
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, clock, Shard(0, 2), most=1)  # unit 0 in 5 s
    capsys.readouterr()
    counts = run(tmp_path, clock, Shard(0, 2))  # units 2, 4, 6 in 5 + 1 + 1 s
    bars = capsys.readouterr().err
    found = pace_of(tmp_path / "sample", UNITS, SAMPLED)
    assert found == pace.Pace(amount=70, seconds=19.0, per_second=10.0, warm=True)
    # The unit that was there is on the bar, and has no part in its rate.
    assert re.search(r" 1/4 units \[00:00<\?\]", bars) and re.search(r" 4/4 units .*, 10 tokens/s\]", bars), bars
    assert counts["completion tokens"] == 70
    # A pace that is damaged or missing is unknown, and costs nothing else.
    (tmp_path / "sample" / pace.FOLDER / "00003.json").write_text("{")
    (tmp_path / "sample" / pace.FOLDER / "00000.json").unlink()
    assert pace_of(tmp_path / "sample", UNITS, SAMPLED) == pace.Pace(50, 13.0, 10.0, True)
    assert run(tmp_path, clock, Shard(0, 1)) == counts


def test_a_rate_of_first_units_alone_says_so_and_nothing_measured_has_none() -> None:
    found = pace.together([UnitPace(20, 4.0, True), UnitPace(20, 1.0, True)])
    assert (
        summary.pace_line(found, SAMPLED) == "40 tokens in 5.0 s of work; 8 tokens/s with the time that the start took"
    )
    assert summary.pace_line(pace.together([]), SAMPLED) == ""
    assert summary.pace_line(pace.together([UnitPace(0, 1.0, False)]), SAMPLED) == ""


def test_rewards_of_units_make_the_spread_of_all_rewards() -> None:
    rewards = np.random.default_rng(5).normal(3, 2, 997).astype(np.float32)
    names = [{f"{reward_counts.REWARD}{r:.4g}": 1} for r in rewards.tolist()]
    counts, found = reward_counts.parted(add_counts([{"rows": 2}, *names]))
    assert counts == {"rows": 2} and found is not None and found.completions == 997
    assert abs(found.mean - rewards.mean()) < 1e-3, (found.mean, rewards.mean())
    assert sum(count for *_, count in found.bins) == 997
    for low, high, count in found.bins[:-1]:  # rounding moves a few rewards into the next bin
        assert abs(count - ((rewards >= low) & (rewards < high)).sum()) <= 2, (low, high, count)


def test_bins_of_whole_rewards_name_the_lowest_and_the_highest_that_they_count() -> None:
    rewards = np.random.default_rng(5).integers(20, 90, 997)
    found = spread({float(reward): int((rewards == reward).sum()) for reward in set(rewards.tolist())})
    assert len(found.bins) > 3
    for low, high, count in found.bins:
        assert count == ((rewards >= low) & (rewards <= high)).sum(), (low, high, count)


def test_a_few_rewards_have_a_bin_each_and_no_reward_has_none() -> None:
    rows = [make_row(i, completions=2) for i in range(3)]
    _, found = reward_counts.parted(reward_counts.counts_of(rows))
    assert found is not None and [count for *_, count in found.bins] == [1] * 6
    assert all(low == high for low, high, _ in found.bins) and FEW >= 6
    assert reward_counts.parted({"rows": 2}) == ({"rows": 2}, None)


def test_a_reward_below_zero_that_is_zero_is_counted_with_the_others() -> None:
    row = make_row(0, completions=5)
    rewards = (0.0, -0.0, -0.0, 0.5, 0.0)
    completions = [dataclasses.replace(c, reward=r) for c, r in zip(row.completions, rewards, strict=True)]
    _, found = reward_counts.parted(reward_counts.counts_of([dataclasses.replace(row, completions=tuple(completions))]))
    assert found is not None and found.bins == [(0.0, 0.0, 4), (0.5, 0.5, 1)] and found.completions == 5, found


class Terminal(io.StringIO):
    """What is written to it is shown; `encoding` is that of its font."""

    def __init__(self, encoding: str, *, is_terminal: bool) -> None:
        super().__init__()
        self._encoding, self._is_terminal = encoding, is_terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    "encoding, is_terminal, bars", [("utf-8", True, True), ("ascii", True, False), ("utf-8", False, False)]
)
def test_bars_are_for_terminals_that_show_them_and_a_log_has_plain_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str, is_terminal: bool, bars: bool
) -> None:
    terminal = Terminal(encoding, is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    job = Job(FrozenConfigDict(default.get_config()), tmp_path, Shard(0, 1), STAGES)
    summary.say_rewards(job, "score", spread({0.0: 30, 0.5: 15, 1.0: 1}))
    lines = terminal.getvalue().replace("\r", "").splitlines()
    lines = [line for line in lines if line.strip()]
    assert lines[0] == "score: mean reward 0.1848 of 46 completions"
    if bars:
        assert len(lines) == 4 and all(len(line) <= 40 for line in lines[1:]), lines
        assert [line.count("█") for line in lines[1:]] == [28, 14, 0] and "0.5" in lines[2], lines
    else:
        assert lines[1:] == ["score:   completions by reward: 0: 30; 0.5: 15; 1: 1"] and "\n".join(lines).isascii()
    assert summary.say_rewards(job, "score", None) == {}


def test_bars_fit_the_terminal_that_they_are_written_to_wherever_the_output_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 44, 0, 0))
    monkeypatch.delenv("COLUMNS", raising=False)
    job = Job(FrozenConfigDict(default.get_config()), tmp_path, Shard(0, 1), STAGES)
    with open(follower, "w", encoding="utf-8") as terminal, open(os.devnull, "w") as nowhere:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "__stdout__", nowhere)
        summary.say_rewards(job, "score", spread({0.0: 30, 0.5: 15, 1.0: 1}))
        terminal.flush()
        lines = os.read(leader, 65536).decode().splitlines()
    os.close(leader)
    bars = [line for line in lines if "█" in line]
    assert len(bars) == 3 and set(map(len, bars)) == {44}, lines
