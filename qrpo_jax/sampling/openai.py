"""Completions in the words of an OpenAI-compatible server: the body of a request, and its answer with all checks.

An answer is whole or it is none: a choice that is missing, there twice, or ended half-way makes the whole answer bad.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.errors import shortened, shown
from qrpo_jax.servers.failures import BadAnswerError

KINDS = ("tokens", "text", "chat")
HALF = ("abort", "cancelled", "error")  # finish reasons of completions that the server gave up
SEEDS = 2**31  # some servers take seeds below it only
# Neutral values. A server may have other defaults, from the model's generation_config.json, and they would change the
# distribution; vLLM and SGLang know these fields, others may refuse them.
NEUTRAL = {"repetition_penalty": 1.0}
NO_TOP_K = -1
LARGEST = 1e4  # in size, of a log-prob; vLLM writes -9999 for -inf


@dataclass(frozen=True)
class Request:
    """How completions are asked for.

    Attributes:
      model: name of the model at the server.
      prompts: one of KINDS: token ids or text to /completions, or messages to /chat/completions.
      max_tokens: length limit of a completion.
      temperature, top_k, top_p, min_p: as in `sampler.make_sampler`.
      end_tokens: each of these ends a completion.
      vocab_size: token ids are below it.
      extra_fields: send fields beyond OpenAI's own, which vLLM and SGLang know: top_k, min_p, stop tokens, token ids.
      log_probs: ask for log-probs.
      stop: strings that end a completion.
    """

    model: str
    prompts: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    end_tokens: tuple[int, ...]
    vocab_size: int
    extra_fields: bool = True
    min_p: float = 0.0
    log_probs: bool = True
    stop: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return "/chat/completions" if self.prompts == "chat" else "/completions"

    @property
    def gives_log_probs(self) -> bool:
        """Whether the server's log-probs are those of the distribution sampled from, before top-k and top-p cut it.

        vLLM's are of the logits before the temperature divides them, SGLang's of those after.
        """
        return self.log_probs and self.temperature in (0, 1)

    def body(self, prompt: Any, count: int, seed: int) -> dict[str, Any]:
        """The JSON that asks for `count` completions of a prompt: token ids, a text, or messages."""
        chat = self.prompts == "chat"
        body = {
            "model": self.model,
            "messages" if chat else "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "n": count,
            "seed": seed,
        }
        if self.gives_log_probs:
            body["logprobs"] = True if chat else 1
        if self.stop:
            body["stop"] = list(self.stop)
        if self.extra_fields:
            body |= NEUTRAL | {
                "top_k": self.top_k or NO_TOP_K,
                "min_p": self.min_p,
                "stop_token_ids": list(self.end_tokens),
                "skip_special_tokens": False,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,  # for a vLLM older than the field before
            }
        return body


class Choice(NamedTuple):
    """One completion of an answer.

    Attributes:
      text: without the end token.
      tokens: [T] int32, without what follows the first end token; None if the server gave none.
      finish: why it ended, in the server's words: "stop", "length", ...
      log_prob: of these tokens in nats; NaN if the server gave none.
    """

    text: str
    tokens: np.ndarray | None
    finish: str
    log_prob: float


class Answer(NamedTuple):
    """The completions of one request in their order.

    Attributes:
      prompt_tokens: token ids of the prompt as the server saw it; or their number alone; None if it gave neither.
    """

    choices: list[Choice]
    prompt_tokens: list[int] | int | None


def seeds(base: int, count: int) -> list[int]:
    """The seeds of a prompt's completions: as vLLM derives them itself where a request asks for several.

    >>> seeds(SEEDS - 1, 3)
    [2147483647, 0, 1]
    """
    return [(base + index) % SEEDS for index in range(count)]


def base_seed(seed: int, purpose: str, index: int) -> int:
    """The seed of a prompt's first completion; it depends on these alone.

    Args:
      seed: of the job.
      purpose: separates draws for the same prompt.
      index: of the prompt in its split.
    """
    entropy = (seed, index, *purpose.encode())
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % SEEDS


def read_answer(answer: Any, request: Request, count: int) -> Answer:
    """The completions of an answer to `request.body(prompt, count, seed)`.

    Raises:
      BadAnswerError: it is not a whole answer to that.
    """
    if not isinstance(answer, Mapping):
        raise BadAnswerError("is no object")
    if answer.get("error"):
        raise BadAnswerError(f"is an error: {shown(answer['error'], 200)}")
    found = answer.get("choices")
    if not isinstance(found, list) or not all(isinstance(choice, Mapping) for choice in found):
        raise BadAnswerError("has no list of choices")
    if len(found) != count:
        raise BadAnswerError(f"has {len(found)} choices, asked for {count}")
    # A server that gives one choice need not number it.
    indices = [choice.get("index", 0 if count == 1 else None) for choice in found]
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(count)):
        raise BadAnswerError(f"has choices of the indices {shown(indices)}, asked for {count} different ones")
    ordered = [choice for _, choice in sorted(zip(indices, found, strict=True), key=lambda pair: pair[0])]
    return Answer([_read_choice(choice, request) for choice in ordered], _prompt_tokens(answer, ordered[0]))


def _read_choice(choice: Mapping[str, Any], request: Request) -> Choice:
    finish = choice.get("finish_reason")
    if not isinstance(finish, str) or finish in HALF:
        raise BadAnswerError(f"has a completion that did not end: finish_reason is {shown(finish)}")
    holder = choice
    if request.prompts == "chat":
        holder = choice.get("message") or {}
    text = holder.get("content" if request.prompts == "chat" else "text") if isinstance(holder, Mapping) else None
    tokens, values = _tokens(choice, request), _log_probs(choice)
    if tokens is None:
        if not isinstance(text, str):
            raise BadAnswerError(f"has a completion without text: {shown(text)}")
        if split := [key for key in ("reasoning", "reasoning_content", "tool_calls") if holder.get(key)]:
            raise BadAnswerError(f"has {split[0]} apart from its text: start the server without a parser for them")
        if not text and finish != "stop":
            raise BadAnswerError(f"has an empty completion that ended by {shortened(finish, 20)!r}")
    elif len(tokens) > request.max_tokens:
        raise BadAnswerError(f"has a completion of {len(tokens)} tokens, asked for at most {request.max_tokens}")
    elif not len(tokens) and finish != "stop":
        raise BadAnswerError(f"has a completion of no tokens that ended by {shortened(finish, 20)!r}")
    log_prob = math.nan
    if values is not None and request.gives_log_probs and (tokens is None or len(values) == len(tokens)):
        kept = values if tokens is None else values[: _end(tokens, request.end_tokens)]
        log_prob = float(np.sum(kept)) if len(kept) and (np.abs(kept) <= LARGEST).all() else math.nan
    if tokens is not None:
        tokens = tokens[: _end(tokens, request.end_tokens)]
    return Choice(_whole(text) if isinstance(text, str) else "", tokens, shortened(finish, 20), log_prob)


def _tokens(choice: Mapping[str, Any], request: Request) -> np.ndarray | None:
    """Token ids [T] int32; None if there are none. vLLM and SGLang have several places for them."""
    found = choice.get("token_ids")
    if found is None:
        found = choice.get("response_token_ids")
    if found is None:
        names = _logged(choice, "tokens", "token")
        if not names or not all(isinstance(name, str) and name.startswith("token_id:") for name in names):
            return None
        digits = [name.removeprefix("token_id:") for name in names]
        found = [int(one) if one.isdecimal() and len(one) < 10 else one for one in digits]
    if not isinstance(found, list):
        raise BadAnswerError("has token ids that are no list")
    for one in found:
        if type(one) is not int or not 0 <= one < request.vocab_size:
            raise BadAnswerError(
                f"has the token id {shown(one)}, and the model's are whole numbers below {request.vocab_size}: the "
                "server has another model"
            )
    return np.asarray(found, np.int32)


def _log_probs(choice: Mapping[str, Any]) -> np.ndarray | None:
    values = _logged(choice, "token_logprobs", "logprob")
    if values is None or not all(isinstance(value, int | float) for value in values):
        return None
    try:
        return np.asarray(values, np.float64)
    except OverflowError:
        return None


def _logged(choice: Mapping[str, Any], column: str, field: str) -> Sequence[Any] | None:
    """A column of an answer's log-probs: /completions has lists, /chat/completions a list of objects."""
    logged = choice.get("logprobs")
    if not isinstance(logged, Mapping):
        return None
    if isinstance(logged.get(column), list):
        return logged[column]
    content = logged.get("content")
    if not isinstance(content, list) or not all(isinstance(one, Mapping) for one in content):
        return None
    return [one.get(field) for one in content]


def _prompt_tokens(answer: Mapping[str, Any], first: Mapping[str, Any]) -> list[int] | int | None:
    for holder in (first, answer):
        if isinstance(found := holder.get("prompt_token_ids"), list):
            return found
    usage = answer.get("usage")
    number = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return number if isinstance(number, int) else None


def _end(tokens: np.ndarray, end_tokens: tuple[int, ...]) -> int:
    """How many of the tokens count: none after the first end token."""
    ends = np.flatnonzero(np.isin(tokens, end_tokens))
    return int(ends[0]) + 1 if len(ends) else len(tokens)


def _whole(text: str) -> str:
    """Text that UTF-8 can hold: JSON can spell half a character, as a server does whose length limit cut one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
