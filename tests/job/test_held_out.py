"""Held-out rows as numbers: what graded a completion, alone or as a part of a sum."""

from pathlib import Path

import numpy as np
import pytest

from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.job.held_out import answers, graded_by
from tests.helpers.jobs import job

PARTS = {
    ("tests",): "tests",
    ("length(1, 40) weight=0.1", "tests weight=2 name=code"): "code",
    ("tests", "answer"): None,
    ("length(1, 40)",): None,
}


@pytest.mark.parametrize(("parts", "name"), PARTS.items(), ids=str)
def test_the_one_part_of_a_sum_that_runs_tests_grades(tmp_path: Path, parts: tuple[str, ...], name: str | None) -> None:
    assert graded_by(job(tmp_path, reward__name="sum", reward__parts=parts)) == name


@pytest.mark.parametrize(("reward", "name"), [("tests", ""), ("answer", ""), ("length(1, 3)", None)])
def test_a_reward_of_tests_grades_itself(tmp_path: Path, reward: str, name: str | None) -> None:
    assert graded_by(job(tmp_path, reward__name=reward)) == name


def test_grades_are_rewards_or_the_part_as_it_was_before_its_weight() -> None:
    tokens = np.arange(3)
    completions = [
        Completion("x", tokens, True, "policy", reward, components=(("length", 1.0), ("code", share)))
        for reward, share in ((0.7, 1.0), (0.1, 0.25))
    ]
    row = Row("row-1", (Message("user", "q"),), "", tuple(completions))
    assert answers(row, graded="code").graded_S.tolist() == [1.0, 0.25]
    assert answers(row, graded="").graded_S.tolist() == [0.7, 0.1] == answers(row).reward_S.tolist()
    assert not len(answers(row).graded_S)
