"""Requests to OpenAI-compatible servers, and answers: an answer is whole or it is none."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest

from qrpo_jax.sampling.openai import SEEDS, Request, base_seed, read_answer, seeds
from qrpo_jax.servers.failures import BadAnswerError

ASKED = Request("m", "tokens", 7, 1.0, 0, 1.0, (2, 5), 61)
CHAT = Request("m", "chat", 7, 1.0, 0, 1.0, (2, 5), 61)


def whole() -> dict[str, Any]:
    """An answer with two choices."""
    return {
        "choices": [
            {"index": i, "text": f"text {i}", "finish_reason": "stop", "token_ids": [11 + i, 13, 5], **logged(3)}
            for i in range(2)
        ],
        "usage": {"prompt_tokens": 3},
    }


def logged(count: int) -> dict[str, Any]:
    return {"logprobs": {"token_logprobs": [-0.5] * count, "tokens": ["?"] * count}}


def test_a_whole_answer_gives_tokens_and_the_sum_of_their_log_probs():
    answer = read_answer(whole(), ASKED, 2)
    assert [choice.tokens.tolist() for choice in answer.choices if choice.tokens is not None] == [
        [11, 13, 5],
        [12, 13, 5],
    ]
    assert [choice.log_prob for choice in answer.choices] == [-1.5, -1.5]
    assert answer.prompt_tokens == 3


# Paths into the answer and what stands there instead.
BAD = [
    ((), []),
    ((), None),
    (("choices",), {}),
    (("choices",), [None, None]),
    (("choices", 0, "index"), 1),
    (("choices", 0, "index"), [0]),
    (("choices", 0, "index"), True),
    (("choices", 0, "finish_reason"), None),
    (("choices", 0, "finish_reason"), "abort"),
    (("choices", 0, "token_ids"), "abc"),
    (("choices", 0, "token_ids"), [1.0]),
    (("choices", 0, "token_ids"), [True]),
    (("choices", 0, "token_ids"), [61]),
    (("choices", 0, "token_ids"), [-1]),
    (("choices", 0, "token_ids"), list(range(8))),
    (("error",), {"message": "overloaded"}),
]


@pytest.mark.parametrize(("path", "value"), BAD)
def test_an_answer_that_is_not_whole_is_none(path, value):
    answer: Any = whole()
    if path:
        holder = answer
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = value
    else:
        answer = value
    with pytest.raises(BadAnswerError):
        read_answer(answer, ASKED, 2)


def test_any_damaged_answer_is_read_or_bad_and_raises_nothing_else():
    rng = np.random.default_rng(0)
    junk = [None, -1, 1e308, 10**400, "x", "\ud83d", [], {}, [[]], True, float("nan"), {"content": [{"logprob": "a"}]}]
    read = bad = 0

    def places(value: Any) -> list[tuple[Any, Any]]:
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        inner = [place for _, one in items if isinstance(one, dict | list) for place in places(one)]
        return [(value, key) for key, _ in items] + inner

    for _ in range(3000):
        answer = copy.deepcopy(whole())
        for _ in range(rng.integers(1, 4)):
            found = places(answer)
            holder, key = found[rng.integers(len(found))]
            holder[key] = copy.deepcopy(junk[rng.integers(len(junk))])
        for asked in (ASKED, CHAT):
            try:
                choices = read_answer(answer, asked, 2).choices
            except BadAnswerError:
                bad += 1
            else:
                read += 1
                for choice in choices:
                    choice.text.encode()
                    assert choice.tokens is None or (choice.tokens.dtype == np.int32 and len(choice.tokens) <= 7)
    assert read > 500 and bad > 500, (read, bad)


def test_what_follows_the_first_end_token_does_not_count():
    answer = whole()
    answer["choices"][0] |= {"token_ids": [11, 2, 13, 5], "finish_reason": "length", **logged(4)}
    choice = read_answer(answer, ASKED, 2).choices[0]
    assert choice.tokens is not None and choice.tokens.tolist() == [11, 2] and choice.log_prob == -1.0


@pytest.mark.parametrize("logprobs", [None, [], {}, {"token_logprobs": [-1.0, None, -1.0]}, {"token_logprobs": [-1.0]}])
def test_log_probs_that_are_not_complete_are_not_known(logprobs):
    answer = whole()
    answer["choices"][0]["logprobs"] = logprobs
    assert math.isnan(read_answer(answer, ASKED, 2).choices[0].log_prob)


@pytest.mark.parametrize(("temperature", "known"), [(1.0, True), (0.0, True), (0.7, False)])
def test_log_probs_are_kept_only_where_servers_agree_what_they_are(temperature, known):
    asked = Request("m", "tokens", 7, temperature, 0, 1.0, (2, 5), 61)
    assert ("logprobs" in asked.body([1], 2, 0)) == known
    assert math.isfinite(read_answer(whole(), asked, 2).choices[0].log_prob) == known


def test_token_ids_are_found_where_older_servers_put_them():
    answer = whole()
    for choice in answer["choices"]:
        ids = choice.pop("token_ids")
        choice["logprobs"]["tokens"] = [f"token_id:{one}" for one in ids]
    choice = read_answer(answer, ASKED, 2).choices[1]
    assert choice.tokens is not None and choice.tokens.tolist() == [12, 13, 5]


def test_a_chat_answer_is_read_from_its_message():
    content = [{"token": "?", "logprob": -0.25}] * 2
    choice = {"index": 0, "message": {"content": "yes"}, "finish_reason": "stop", "logprobs": {"content": content}}
    read = read_answer({"choices": [choice]}, CHAT, 1).choices[0]
    assert (read.text, read.tokens, read.log_prob) == ("yes", None, -0.5)
    choice["message"] = {"content": "yes", "reasoning_content": "because"}
    with pytest.raises(BadAnswerError, match="reasoning_content apart from its text"):
        read_answer({"choices": [choice]}, CHAT, 1)


def test_half_a_character_becomes_the_sign_for_it():
    answer = json.loads('{"choices": [{"text": "a\\ud83d", "finish_reason": "length"}]}')
    assert read_answer(answer, ASKED, 1).choices[0].text == "a\ufffd"


def test_neutral_settings_are_sent_because_servers_have_others():
    body = ASKED.body([1, 2], 3, 4)
    assert {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }.items() <= body.items()
    assert body["stop_token_ids"] == [2, 5] and body["prompt"] == [1, 2] and (body["n"], body["seed"]) == (3, 4)


def test_seeds_differ_within_a_prompt_and_between_prompts_purposes_and_jobs():
    bases = [base_seed(s, purpose, i) for s in (0, 1) for purpose in ("sample", "other") for i in range(500)]
    assert len(set(bases)) == len(bases) and min(bases) >= 0 and max(bases) < SEEDS
    assert base_seed(0, "sample", 3) == bases[3]
    assert len(set(seeds(SEEDS - 20, 50))) == 50
