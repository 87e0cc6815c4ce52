"""The two halves of the prompts."""

import numpy as np

from qrpo_jax.evaluation.halves import HALVES, SELECTION, half_of


def test_a_row_has_its_half_whatever_else_is_there() -> None:
    """These never change: a curve of another version is chosen and reported on the same prompts."""
    halves = {"eval-0": "selection", "eval-2": "reporting", "jsonl-7": "selection", "Ü🙂": "selection"}
    assert {row_id: half_of(row_id) for row_id in halves} == halves


def test_each_half_has_half_of_the_prompts_and_neighbours_are_independent() -> None:
    first = np.asarray([half_of(f"row-{i}") == SELECTION for i in range(20011)], float)
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(20011), first.mean()
    correlation = np.corrcoef(first[:-1], first[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(20011), correlation


def test_an_id_that_is_not_text_that_can_be_encoded_has_a_half() -> None:
    assert half_of("\ud800") in HALVES
