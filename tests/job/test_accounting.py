"""What a run has on record about its own work."""

import numpy as np

from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.job import accounting


def row(rewards: list[float], source: str = "reference", further: tuple[float, ...] = ()) -> Row:
    completions = tuple(Completion("x", np.arange(3, dtype=np.int32), True, source, reward=r) for r in rewards)
    return Row("r", (Message("user", "p"),), "", completions, np.asarray(further, np.float32))


def test_shares_of_tied_comparisons_leave_out_a_completion_itself() -> None:
    shares = accounting.tied_shares([row([0.1, 0.1, 0.3]), row([0.7, 0.7, 0.7])])
    assert shares == {"compared": 12, "tied": 8 / 12, "prompts": 2, "flat": 0.5}


def test_completions_of_a_data_set_are_compared_with_all_references() -> None:
    shares = accounting.tied_shares([row([0.1, 0.3], source="dataset", further=(0.1, 0.1, 0.2)), row([0.5])])
    assert shares == {"compared": 6, "tied": 2 / 6, "prompts": 1, "flat": 0.0}


def test_a_run_without_rows_has_no_ties() -> None:
    assert accounting.tied_shares([]) == {"compared": 0, "tied": 0.0, "prompts": 0, "flat": 0.0}
