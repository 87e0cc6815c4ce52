"""Ties between completions and their references."""

import jax
import numpy as np
import pytest

from qrpo_jax import quantiles
from qrpo_jax.data.corpus import tokenize
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.evaluation import ties

TOKENIZER = vocabulary_tokenizer(["p", "x"])
TEXT = make_text(TOKENIZER, "plain", (TOKENIZER.eos_token_id,))


def test_ties_are_those_of_the_quantiles_of_training() -> None:
    """A completion that is a reference itself is compared with the others, as `quantiles.exclude_own` has it."""
    rng = np.random.default_rng(0)
    sampled, further = rng.integers(0, 3, 5).astype(np.float32), rng.integers(0, 3, 7).astype(np.float32)
    reward_S = np.concatenate([sampled, rng.integers(0, 3, 2).astype(np.float32)])
    is_reference_S = np.arange(7) < 5
    reward_N = np.concatenate([sampled, further])
    comparisons = ties.compare_with_references(reward_S, is_reference_S, reward_N)

    def share(reward: jax.Array, is_reference: bool) -> float:
        mask = quantiles.exclude_own(reward, reward_N) if is_reference else None
        return float(quantiles.tied_share(reward, reward_N, mask))

    expected = [share(reward, is_reference) for reward, is_reference in zip(reward_S, is_reference_S, strict=True)]
    np.testing.assert_allclose(comparisons.tied_C / comparisons.compared_C, expected, rtol=1e-6)
    assert comparisons.compared_C.tolist() == [11] * 5 + [12] * 2


def test_the_share_weighs_completions_by_their_comparisons_and_leaves_unknown_ties_out() -> None:
    assert ties.tied_share(ties.Comparisons(np.array([1.0, 3.0]), np.array([2, 11]))) == 4 / 13
    assert ties.tied_share(ties.Comparisons(np.array([np.nan, 3.0]), np.array([0, 11]))) == 3 / 11
    assert ties.tied_share(ties.Comparisons(np.zeros(0), np.zeros(0, int))) == 0


def row(rewards, source="reference", further=()):
    sources = [source] * len(rewards) if isinstance(source, str) else source
    completions = tuple(
        Completion("x", np.arange(3, dtype=np.int32), True, s, reward=r) for r, s in zip(rewards, sources, strict=True)
    )
    return Row("r", (Message("user", "p"),), "", completions, np.asarray(further, np.float32))


def shares(*rows):
    return ties.tied_shares(tokenize(rows, TEXT))


def test_shares_of_tied_comparisons_leave_out_a_completion_itself():
    found = shares(row([0.1, 0.1, 0.3]), row([0.7, 0.7, 0.7]))
    assert found == {"compared": 12, "tied": 8 / 12, "prompts": 2, "flat": 0.5}


def test_completions_of_a_data_set_are_compared_with_all_references():
    found = shares(row([0.1, 0.3], source="dataset", further=(0.1, 0.1, 0.2)), row([0.5]))
    assert found == {"compared": 6, "tied": 2 / 6, "prompts": 1, "flat": 0.0}


def test_without_rows_there_are_no_ties():
    assert shares() == {"compared": 0, "tied": 0.0, "prompts": 0, "flat": 0.0}


@pytest.mark.parametrize("part", [1, 7, 1 << 22])
def test_shares_of_many_rows_add_up_those_of_each(monkeypatch, part):
    monkeypatch.setattr(ties, "PART_COMPARISONS", part)
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(37):
        count = int(rng.integers(1, 6))
        sources = rng.choice(["reference", "dataset", "policy"], count).tolist()
        rows.append(row((rng.integers(0, 3, count) / 4).tolist(), sources, rng.integers(0, 3, rng.integers(0, 3)) / 4))
    each = [shares(one) for one in rows]
    compared, prompts = (sum(one[name] for one in each) for name in ("compared", "prompts"))
    tied, flat = (sum(a["tied"] * a["compared"] for a in each), sum(a["flat"] * a["prompts"] for a in each))
    found = shares(*rows)
    assert found["compared"] == compared and found["prompts"] == prompts
    assert found["tied"] == pytest.approx(tied / compared) and found["flat"] == pytest.approx(flat / prompts)
