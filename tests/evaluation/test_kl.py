"""Estimators of KL from samples, on policies whose KL is known."""

import itertools

import numpy as np
import pytest

from qrpo_jax.evaluation import kl
from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.side_figures import kl_figures

COUNTS = np.array([2, 3, 7, 11])  # how often each of four outcomes is sampled
P, Q = COUNTS / COUNTS.sum(), np.array([0.4, 0.3, 0.2, 0.1])


def test_both_estimators_have_the_kl_as_their_mean() -> None:
    """Outcomes in exact proportion to p, so that means over samples are means under p."""
    log_ratio_C = np.repeat(np.log(Q) - np.log(P), COUNTS)
    exact = float((P * (np.log(P) - np.log(Q))).sum())
    assert kl.k1(log_ratio_C).mean() == pytest.approx(exact, rel=1e-12)
    assert kl.k3(log_ratio_C).mean() == pytest.approx(exact, rel=1e-12)


def test_k3_is_never_negative_where_k1_is() -> None:
    log_ratio_C = np.array([0.7, 0.1, -0.2])
    assert kl.k1(log_ratio_C).mean() < 0 < kl.k3(log_ratio_C).mean()
    assert (kl.k3(np.linspace(-3, 3, 101)) >= 0).all()


class Policy:
    """A policy over words that end with token 0, or after two tokens; its probabilities are tenths."""

    FIRST = {"p": np.array([2, 3, 5]), "q": np.array([4, 5, 1])}
    SECOND = {"p": np.array([[1, 1, 8], [6, 2, 2]]), "q": np.array([[3, 3, 4], [2, 2, 6]])}

    def log_probs(self, name: str, word: tuple[int, ...]) -> np.ndarray:
        """Of each token of a word."""
        steps = [self.FIRST[name][word[0]]] + [self.SECOND[name][word[0] - 1][token] for token in word[1:]]
        return np.log(np.asarray(steps) / 10)

    def words(self) -> list[tuple[int, ...]]:
        return [(0,), *itertools.product((1, 2), (0, 1, 2))]


def sampled(policy: Policy, name: str, other: str) -> list[Answers]:
    """Ten prompts that together have each word in exact proportion to its probability; the last has no log-probs."""
    log_ratio, token_k3, length = [], [], []
    for word in policy.words():
        own, of_other = policy.log_probs(name, word), policy.log_probs(other, word)
        times = round(100 * np.exp(own.sum()))
        assert abs(times - 100 * np.exp(own.sum())) < 1e-9
        log_ratio += [(of_other - own).sum()] * times
        token_k3 += [kl.k3(of_other - own).sum()] * times
        length += [len(word)] * times
    order = np.random.default_rng(0).permutation(100).reshape(10, 10)
    arrays = [np.asarray(each)[order] for each in (length, log_ratio, token_k3)]
    answers = [Answers(np.zeros(10), *each[:1], np.ones(10, bool), *each[1:]) for each in zip(*arrays, strict=True)]
    return [*answers, Answers(np.zeros(2), np.array([9, 9]), np.ones(2, bool), np.full(2, np.nan), np.full(2, np.nan))]


@pytest.mark.parametrize("name, other", [("p", "q"), ("q", "p")])
def test_all_four_figures_are_the_kl_of_a_tabular_policy_in_both_directions(name: str, other: str) -> None:
    policy = Policy()
    log_probs = {each: [policy.log_probs(each, word).sum() for word in policy.words()] for each in ("p", "q")}
    share = np.exp(log_probs[name])
    exact = float((share * (np.asarray(log_probs[name]) - np.asarray(log_probs[other]))).sum())
    tokens = float((share * [len(word) for word in policy.words()]).sum())
    figures = {key: figure for key, (figure, _) in kl_figures(sampled(policy, name, other), "other").items()}
    expected = {"kl_to_other_k1": exact, "kl_to_other_k3": exact}
    expected |= {"kl_to_other_k1_per_token": exact / tokens, "kl_to_other_k3_per_token": exact / tokens}
    assert figures == pytest.approx(expected, rel=1e-12), (figures, expected)


def test_completions_without_a_log_prob_are_left_out_and_without_any_there_is_no_figure() -> None:
    every = sampled(Policy(), "p", "q")
    assert kl_figures(every, "q") == kl_figures([*every[:-1], every[-1]._replace(length_S=np.array([1, 1]))], "q")
    assert kl_figures(every[-1:], "q") == {}
    assert kl_figures([Answers(np.zeros(2), np.array([1, 1]), np.ones(2, bool))], "q") == {}
