"""Rewards of a completion's format and length."""

import time

import numpy as np
import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.rewards import check_name, make_reward
from qrpo_jax.rewards.scores import NO_TIME


def row(*completions):
    return Row("r", (Message("user", "p"),), "", completions)


def text(words, tokens=0):
    return Completion(words, np.arange(tokens, dtype=np.int32), True, "reference")


@pytest.mark.parametrize(
    "name, words, reward",
    [
        ("format(a+)", "aaa", 1.0),
        ("format(a+)", "aaab", 0.0),
        ("format(a+)", "baaa", 0.0),
        ("format((?s)<think>.*</think>.*)", "<think>a\nb</think> 7", 1.0),
        ("format(.*)", "two\nlines", 0.0),
        ("format(x = \\(\\d, \\d\\))", "x = (1, 2)", 1.0),
        ("format()", "", 1.0),
    ],
)
def test_format_is_1_for_a_full_match_and_0_else(name, words, reward):
    with make_reward(name) as made:
        assert made.score([row(text(words))]).rewards == [[reward]]


def test_an_expression_of_exponential_time_fails_on_its_completion_alone():
    failures = Failures(0.5)
    failures.begin(3)
    begin = time.monotonic()
    with make_reward("format((a+)+b)", failures=failures) as made:
        found = made.score([row(text("aab"), text("a" * 64), text("aac"))])
    assert found.rewards == [[1.0, None, 0.0]] and found.verdicts[0][1] == NO_TIME, found
    assert time.monotonic() - begin < 8


@pytest.mark.parametrize(
    "name, expected",
    [
        ("length", [0.0, 3.0, 7.0]),
        ("length(tokens)", [0.0, 3.0, 7.0]),
        ("length(words)", [0.0, 2.0, 4.0]),
        ("length(3, 6)", [0.0, 1.0, 0.0]),
        ("length(0,2,words)", [1.0, 1.0, 0.0]),
        ("length( 4 , 4 , words )", [0.0, 0.0, 1.0]),
    ],
)
def test_length_counts_tokens_or_words_or_whether_they_are_within_bounds(name, expected):
    data = row(text("", 0), text(" two  words ", 3), text("a b c\nd", 7))
    with make_reward(name) as made:
        assert made.score([data]).rewards == [expected]


def test_completions_without_tokens_are_counted_by_the_callers_tokenizer():
    data = row(Completion("a b c", NO_TOKENS, True, "dataset"))
    with make_reward("length", tokens=lambda completion: len(completion.text)) as made:
        assert made.score([data]).rewards == [[5.0]]


@pytest.mark.parametrize(
    "name, message",
    [
        ("format(()", "has no regular expression of Python: missing"),
        ("format", "allowed: tests, answer"),
        ("length(5)", "allowed: length, length"),
        ("length(5, 3)", "the lower one first"),
        ("length(-1, 3)", "with whole numbers"),
        ("length(1, 2, letters)", "with whole numbers"),
        ("length(1.5, 2)", "with whole numbers"),
    ],
)
def test_other_forms_are_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        check_name(name)
    assert "\n" not in str(caught.value) and caught.value.about == ("name",)
