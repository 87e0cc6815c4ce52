"""The programs of a job from shapes alone."""

from pathlib import Path

import pytest

from qrpo_jax.job import programs
from tests.helpers import jobs


@pytest.mark.parametrize(
    ("data", "objective", "arrays"), [("stored", "qrpo", 0), ("on_policy", "qrpo", 6), ("on_policy", "grpo", 6)]
)
def test_a_step_is_lowered_with_the_numbers_of_tokens_that_a_run_has(
    tmp_path: Path, data: str, objective: str, arrays: int
) -> None:
    """A batch of a rollout has six numbers of each of its tokens, one of stored rows none."""
    job = jobs.job(tmp_path, train__objective=objective, train__data=data)
    rows, width = job.mesh.size, programs.row_tokens(job)
    batch = programs.abstract_batch(job, job.mesh, rows)
    assert [x.shape for x in batch.per_token_BxL or ()] == arrays * [(rows, width)]
    described = programs.train(job, job.mesh, rows)
    assert (described.rows, described.row_tokens) == (rows, width)
    assert ("clip_share" in described.lowered.as_text()) == (objective == "grpo")
    assert ("kl_to_reference" in described.lowered.as_text()) == (data == "on_policy")


def test_a_run_that_holds_no_reference_has_no_kl_to_it(tmp_path: Path) -> None:
    job = jobs.job(tmp_path, train__objective="grpo", train__data="on_policy", train__beta=0.0)
    text = programs.train(job, job.mesh, job.mesh.size).lowered.as_text()
    assert "kl_to_old" in text and "kl_to_reference" not in text
