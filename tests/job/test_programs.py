"""The programs of a job from shapes alone."""

from pathlib import Path

import pytest

from qrpo_jax.job import programs
from tests.helpers import jobs


@pytest.mark.parametrize(("objective", "arrays"), [("qrpo", 0), ("grpo", 6)])
def test_a_step_on_tokens_is_lowered_with_their_numbers(tmp_path: Path, objective: str, arrays: int) -> None:
    """A batch has six numbers of each of its tokens where the objective reads them, and none elsewhere."""
    job = jobs.job(tmp_path, train__objective=objective, train__data="on_policy")
    rows, width = job.mesh.size, programs.row_tokens(job)
    batch = programs.abstract_batch(job, job.mesh, rows)
    assert len([x for x in batch.per_token_BxL or () if x.shape == (rows, width)]) == arrays
    described = programs.train(job, job.mesh, rows)
    assert (described.rows, described.row_tokens) == (rows, width)
    assert ("clip_share" in described.lowered.as_text()) == (objective == "grpo")
