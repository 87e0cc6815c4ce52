"""The Row: one prompt with its scored completions, and its bytes.

A row's bytes are a tf.train.Example in the layout of TensorFlow Datasets, written and read without TensorFlow;
`row_files` keeps rows on disk. NaN marks a number that is not known: a reward not scored, a log-prob not computed.

Rows that were written before rewards had components lack their two features, and are read as rows without components.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from qrpo_jax.errors import UserError

LARGEST_REWARD = float(np.finfo(np.float32).max)  # in size; rows keep rewards in float32
COMPLETION_SOURCES = ("dataset", "reference", "policy")
COMPONENTS = ("component_names", "components")  # features that older rows lack
NO_TOKENS = np.zeros(0, np.int32)
NO_REWARDS = np.zeros(0, np.float32)
NO_LOG_PROBS = np.zeros(0, np.float32)
for _empty in (NO_TOKENS, NO_REWARDS, NO_LOG_PROBS):
    _empty.flags.writeable = False  # rows share them


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One completion of a row's prompt. To compare completions, compare `encode` of their rows.

    Attributes:
      tokens: [L] int32 token ids, empty where the text was not tokenized.
      finished: whether the completion ended by itself and not at the length limit.
      source: one of COMPLETION_SOURCES.
      reward: float32 on disk; NaN = not scored.
      log_prob: log-prob in nats under the distribution it was sampled from, float32 on disk; NaN = not sampled by us.
      reference_log_prob: log pi_ref in nats, float32 on disk; NaN = not computed.
      components: the parts of a weighted reward, by name, as they were before weights; float32 on disk.
      token_log_probs: [L] float32, those of its tokens that `log_prob` sums up; empty where only the sum is known. Not
        on disk.
    """

    text: str
    tokens: np.ndarray
    finished: bool
    source: str
    reward: float = math.nan
    log_prob: float = math.nan
    reference_log_prob: float = math.nan
    components: tuple[tuple[str, float], ...] = ()
    token_log_probs: np.ndarray = field(default_factory=lambda: NO_LOG_PROBS)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One prompt with its completions. To compare rows, compare their `encode`.

    Attributes:
      payload: JSON for the reward function, such as unit tests; "" if none.
      reference_rewards: [N] float32 rewards of further reference completions whose text is not kept; usually empty.
      preferences: pairs of indices of completions, the better one first, of which the order is known and no reward.
        They count until their completions have rewards.
    """

    id: str
    messages: tuple[Message, ...]
    payload: str = ""
    completions: tuple[Completion, ...] = ()
    reference_rewards: np.ndarray = field(default_factory=lambda: NO_REWARDS)
    preferences: tuple[tuple[int, int], ...] = ()


def check_row(row: Row) -> None:
    """Refuses a row that can be neither scored nor trained on.

    Raises:
      UserError: about `row`: an empty prompt, no completion, or a completion with neither text nor tokens.
    """
    if not any(m.content.strip() for m in row.messages):
        raise UserError(
            f"row {row.id!r}: the prompt is empty; at least one message must have content: drop the row at its source",
            about="row",
        )
    if not row.completions:
        raise UserError(
            f"row {row.id!r}: no completion; at least one is needed: run a sample stage first or drop the row at its "
            "source",
            about="row",
        )
    for i, c in enumerate(row.completions):
        if not len(c.tokens) and not c.text:
            raise UserError(
                f"row {row.id!r}, completion {i}: neither text nor tokens; one is needed: drop the completion at its "
                "source",
                about="row",
            )


def check_scored(row: Row) -> None:
    """Refuses a row with a reward that is not a finite number.

    Raises:
      UserError: about `row`: a NaN or infinite reward of a completion or in reference_rewards.
    """
    own = [completion.reward for completion in row.completions]
    for what, rewards in (("completion", own), ("reference reward", row.reference_rewards)):
        for index, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise unscored(row.id, what, index, float(reward))


def unscored(row_id: str, what: str, index: int, reward: float) -> UserError:
    """What to say of a reward that is not a finite number.

    Args:
      what: "completion" or "reference reward".
      index: of it in its row.
    """
    return UserError(
        f"row {row_id!r}, {what} {index}: the reward is {reward}; it must be a finite number: run a score stage, or "
        "correct the reward function",
        about="row",
    )


@cache
def features(components: bool = True) -> tfds.features.FeaturesDict:
    """The layout of a row as TFDS features.

    TFDS without TensorFlow cannot read a sequence inside a sequence. The token ids of all completions are therefore
    one flat sequence, and `completions/length` says where to cut it. So are the two indices of each preference, and the
    components of each completion, NaN where it lacks one.

    Args:
      components: False gives the layout of rows that were written before there were components.
    """
    text = tfds.features.Text
    further = {
        "component_names": tfds.features.Sequence(text()),
        "components": tfds.features.Sequence(np.float32),
    }
    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "payload": text(),
            "messages": tfds.features.Sequence({"role": text(), "content": text()}),
            "completions": tfds.features.Sequence(
                {
                    "text": text(),
                    "length": np.int32,
                    "finished": np.bool_,
                    "source": text(),
                    "reward": np.float32,
                    "log_prob": np.float32,
                    "reference_log_prob": np.float32,
                }
            ),
            "tokens": tfds.features.Sequence(np.int32),
            "reference_rewards": tfds.features.Sequence(np.float32),
            "preferences": tfds.features.Sequence(np.int32),
        }
        | (further if components else {})
    )


def encode(row: Row) -> bytes:
    """A row as a serialized tf.train.Example of `features`; equal rows give equal bytes.

    Writes the protocol buffer directly, which is many times faster than `features().serialize_example`.

    Raises:
      UserError: about `row`: text that UTF-8 cannot hold.
      ValueError: a bug: a source outside COMPLETION_SOURCES, or tokens that are not a vector of int32.
    """
    _check_completions(row)
    example = tf_example_pb2.Example()
    feature, completions = example.features.feature, row.completions
    component_names, components_CxK = component_table(row)
    for key, texts in {
        "id": (row.id,),
        "payload": (row.payload,),
        "messages/role": [m.role for m in row.messages],
        "messages/content": [m.content for m in row.messages],
        "completions/text": [c.text for c in completions],
        "completions/source": [c.source for c in completions],
        "component_names": component_names,
    }.items():
        _fill(feature[key].bytes_list, _utf8(row, key, texts))
    for key, integers in {
        "completions/length": [len(c.tokens) for c in completions],
        "completions/finished": [int(c.finished) for c in completions],
        "tokens": np.concatenate([c.tokens for c in completions]).tolist() if completions else [],
        "preferences": [index for pair in row.preferences for index in pair],
    }.items():
        _fill(feature[key].int64_list, integers)
    for key, floats in {
        "completions/reward": [c.reward for c in completions],
        "completions/log_prob": [c.log_prob for c in completions],
        "completions/reference_log_prob": [c.reference_log_prob for c in completions],
        "reference_rewards": np.asarray(row.reference_rewards, np.float32).tolist(),
        "components": [number for numbers in components_CxK for number in numbers],
    }.items():
        _fill(feature[key].float_list, floats)
    return example.SerializeToString(deterministic=True)


def component_table(row: Row) -> tuple[list[str], list[list[float]]]:
    """The names of a row's components, in the order in which they first occur, and each completion's; NaN for none."""
    names = list(dict.fromkeys(name for c in row.completions for name, _ in c.components))
    found = [dict(c.components) for c in row.completions]
    return names, [[known.get(name, math.nan) for name in names] for known in found]


def known_components(names: Sequence[str], numbers: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """The components of one completion of a `component_table`."""
    return tuple(pair for pair in zip(names, numbers, strict=True) if not math.isnan(pair[1]))


def _check_completions(row: Row) -> None:
    for i, c in enumerate(row.completions):
        if c.source not in COMPLETION_SOURCES:
            raise ValueError(f"row {row.id!r}, completion {i}: source is {c.source!r}; allowed: {COMPLETION_SOURCES}")
        if c.tokens.ndim != 1 or c.tokens.dtype != np.int32:
            raise ValueError(
                f"row {row.id!r}, completion {i}: tokens are {c.tokens.dtype} of shape {c.tokens.shape}; they must be "
                "a vector of int32"
            )


def _utf8(row: Row, key: str, texts: Iterable[str]) -> list[bytes]:
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise UserError(f"row {row.id!r}: {key} is not text that UTF-8 can hold: {error}", about="row") from None


def _fill(values: Any, items: Iterable[bytes | float]) -> None:
    values.SetInParent()  # an empty list must be present, too
    values.value.extend(items)


def decode(record: bytes) -> Row:
    """The inverse of `encode`."""
    feature = tf_example_pb2.Example.FromString(record).features.feature

    def texts(key: str) -> list[str]:
        return [value.decode() for value in feature[key].bytes_list.value]

    (row_id,), (payload,) = texts("id"), texts("payload")
    flat = feature["tokens"].int64_list.value
    tokens = np.fromiter(flat, np.int32, len(flat))
    tokens.flags.writeable = False
    component_names, numbers = texts("component_names"), feature["components"].float_list.value
    completions: list[Completion] = []
    start = 0
    for text, length, finished, source, reward, log_prob, reference_log_prob in zip(
        texts("completions/text"),
        feature["completions/length"].int64_list.value,
        feature["completions/finished"].int64_list.value,
        texts("completions/source"),
        feature["completions/reward"].float_list.value,
        feature["completions/log_prob"].float_list.value,
        feature["completions/reference_log_prob"].float_list.value,
        strict=True,
    ):
        ids = tokens[start : start + length]
        start += length
        first = len(completions) * len(component_names)
        components = known_components(component_names, numbers[first : first + len(component_names)])
        completions.append(
            Completion(text, ids, bool(finished), source, reward, log_prob, reference_log_prob, components)
        )
    messages = tuple(map(Message, texts("messages/role"), texts("messages/content")))
    reference_rewards = np.array(feature["reference_rewards"].float_list.value, np.float32)
    indices = list(feature["preferences"].int64_list.value)
    preferences = tuple(zip(indices[0::2], indices[1::2], strict=True))
    return Row(row_id, messages, payload, tuple(completions), reference_rewards, preferences)
