"""Scores of continuations are sums of the decoder's log-softmax, whatever batch they are in; greedy ones are known."""

from pathlib import Path

import jax
import numpy as np
import pytest

from qrpo_jax.harnesses.scorer import Continuation, make_scorer
from qrpo_jax.job.job import Job
from qrpo_jax.model.layout import one_sequence
from qrpo_jax.sampling.sampler import make_sampler
from tests.helpers.harness_jobs import harness_job
from tests.helpers.row_log_probs import row_log_probs


@pytest.fixture(scope="module")
def run(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return harness_job(tmp_path_factory.mktemp("scorer") / "run", fixtures, "gsm8k")


def test_a_score_is_the_sum_of_the_log_probs_that_training_has(run: Job) -> None:
    rng = np.random.default_rng(3)
    lengths = [(1, 1), (5, 2), (37, 30), (2, 61), (90, 1)]
    pairs = [Continuation(rng.integers(5, 500, c).tolist(), rng.integers(5, 500, t).tolist()) for c, t in lengths]
    parameters = run.unit_reference()
    score = make_scorer(run, "reference")
    found = score(parameters, pairs)
    for pair, one in zip(pairs, found, strict=True):
        whole = np.asarray([[*pair.context, *pair.tokens]], np.int32)
        layout = one_sequence(np.asarray([whole.shape[1]]), np.arange(whole.shape[1])[None])
        targets = np.where(np.arange(whole.shape[1]) >= len(pair.context) - 1, np.roll(whole, -1), -1)
        targets[0, -1] = -1
        expected = float(row_log_probs(run.graph("reference"), parameters, whole, layout, targets).sum())
        assert one.log_prob == pytest.approx(expected, rel=1e-5), (len(pair.context), len(pair.tokens))
        assert score(parameters, [pair])[0].log_prob == pytest.approx(one.log_prob, rel=1e-5)


def test_what_greedy_decoding_writes_is_greedy_and_a_changed_token_is_not(run: Job) -> None:
    parameters, context = run.unit_reference(), [1, 403, 407, 261]
    sampler = make_sampler(
        run.graph("reference"), completions=1, max_new_tokens=11, temperature=0.0, end_tokens=run.text.end_tokens
    )
    samples = sampler(
        parameters, np.asarray([context], np.int32), np.asarray([4]), jax.random.split(jax.random.key(0), 1)
    )
    written = np.asarray(samples.tokens_PxnxT[0, 0, : samples.lengths_Pxn[0, 0]]).tolist()
    changed = [*written[:5], written[5] + 1, *written[6:]]
    right, wrong = make_scorer(run, "reference")(parameters, [Continuation(context, t) for t in (written, changed)])
    assert right.greedy and not wrong.greedy and right.log_prob > wrong.log_prob, (right, wrong)
    assert right.log_prob == pytest.approx(float(samples.log_probs_Pxn[0, 0]), rel=1e-4), (right, samples.log_probs_Pxn)
