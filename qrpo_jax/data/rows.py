"""The Row: one prompt with its scored completions, and its bytes.

A row is a tf.train.Example in the layout of TensorFlow Datasets, written and read without TensorFlow;
`row_files` keeps rows on disk. Absent numbers (a reward not scored, a log-prob not computed) are NaN;
`missing` counts them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

SOURCES = ("dataset", "reference", "policy")


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One completion of a row's prompt; two are equal when their rows' `encode` are.

    Attributes:
      tokens: [L] int32 token ids, empty where the text was not tokenized.
      finished: whether the completion ended by itself and not at the length limit.
      source: one of SOURCES.
      reward: float32 on disk; NaN = not scored.
      log_prob: log-prob in nats under the distribution it was sampled from, float32 on disk;
        NaN = not sampled by us.
      reference_log_prob: log pi_ref in nats, float32 on disk; NaN = not computed.
    """

    text: str
    tokens: np.ndarray
    finished: bool
    source: str
    reward: float = math.nan
    log_prob: float = math.nan
    reference_log_prob: float = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One prompt with its completions; two rows are equal when their `encode` are.

    Attributes:
      payload: JSON for the reward, such as unit tests; "" if none.
      reference_rewards: [N] float32 rewards of further reference completions of which only the
        reward is known; usually empty.
    """

    id: str
    messages: tuple[Message, ...]
    payload: str
    completions: tuple[Completion, ...]
    reference_rewards: np.ndarray


class Missing(NamedTuple):
    """How many completions lack a number, by number."""

    reward: int
    log_prob: int
    reference_log_prob: int


def missing(rows: Iterable[Row]) -> Missing:
    """How many completions of `rows` have NaN as reward, log_prob, reference_log_prob."""
    counts = [0, 0, 0]
    for row in rows:
        for c in row.completions:
            for i, number in enumerate((c.reward, c.log_prob, c.reference_log_prob)):
                counts[i] += math.isnan(number)
    return Missing(*counts)


def check_row(row: Row) -> None:
    """Refuses a row that cannot be trained or scored on.

    Raises:
      ValueError: empty prompt, no completion, or a completion with neither text nor tokens.
    """
    if not any(m.content.strip() for m in row.messages):
        raise ValueError(
            f"row {row.id!r}: the prompt is empty; at least one message must have content: drop the row at its source"
        )
    if not row.completions:
        raise ValueError(
            f"row {row.id!r}: no completion; at least one is needed: run a sample stage first "
            "or drop the row at its source"
        )
    for i, c in enumerate(row.completions):
        if not len(c.tokens) and not c.text:
            raise ValueError(
                f"row {row.id!r}, completion {i}: neither text nor tokens; one is needed: drop "
                "the completion at its source"
            )


def check_scored(row: Row) -> None:
    """Refuses a row with a reward that is not a finite number.

    Raises:
      ValueError: a NaN or infinite reward of a completion or of reference_rewards.
    """
    for what, rewards in (
        ("completion", [c.reward for c in row.completions]),
        ("reference reward", row.reference_rewards),
    ):
        for i, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise ValueError(
                    f"row {row.id!r}, {what} {i}: the reward is {float(reward)}; it must be a "
                    "finite number: run a score stage, or mend the reward function"
                )


@cache
def features() -> tfds.features.FeaturesDict:
    """The layout of a row as TFDS features.

    TFDS without TensorFlow cannot read a sequence inside a sequence, so the token ids of all
    completions are one flat sequence, cut by `completions/length`.
    """
    text = tfds.features.Text
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
        }
    )


def encode(row: Row) -> bytes:
    """A row as a serialized tf.train.Example of `features`; equal rows give equal bytes.

    Writes the protocol buffer directly, which is many times faster than
    `features().serialize_example`.

    Raises:
      ValueError: a source outside SOURCES, tokens that are not a vector of int32, or text that
        UTF-8 cannot hold.
    """
    example = tf_example_pb2.Example()
    feature = example.features.feature
    completions = row.completions
    try:
        for key, texts in {
            "id": (row.id,),
            "payload": (row.payload,),
            "messages/role": [m.role for m in row.messages],
            "messages/content": [m.content for m in row.messages],
            "completions/text": [c.text for c in completions],
            "completions/source": [c.source for c in completions],
        }.items():
            values = feature[key].bytes_list
            values.SetInParent()  # so that an empty list is a list, and not an absent feature
            values.value.extend([text.encode() for text in texts])
    except UnicodeEncodeError as error:
        raise ValueError(f"row {row.id!r}: {key} is not text that UTF-8 can hold: {error}") from None
    for i, c in enumerate(completions):
        if c.source not in SOURCES:
            raise ValueError(f"row {row.id!r}, completion {i}: source is {c.source!r}; allowed: {SOURCES}")
        if c.tokens.ndim != 1 or c.tokens.dtype != np.int32:
            raise ValueError(
                f"row {row.id!r}, completion {i}: tokens are {c.tokens.dtype} of shape "
                f"{c.tokens.shape}; they must be a vector of int32"
            )
    tokens = np.concatenate([c.tokens for c in completions]).tolist() if completions else []
    for key, integers in {
        "completions/length": [len(c.tokens) for c in completions],
        "completions/finished": [int(c.finished) for c in completions],
        "tokens": tokens,
    }.items():
        numbers = feature[key].int64_list
        numbers.SetInParent()
        numbers.value.extend(integers)
    for key, floats in {
        "completions/reward": [c.reward for c in completions],
        "completions/log_prob": [c.log_prob for c in completions],
        "completions/reference_log_prob": [c.reference_log_prob for c in completions],
        "reference_rewards": np.asarray(row.reference_rewards, np.float32).tolist(),
    }.items():
        reals = feature[key].float_list
        reals.SetInParent()
        reals.value.extend(floats)
    return example.SerializeToString(deterministic=True)


def decode(record: bytes) -> Row:
    """The row of which `record` is the `encode`."""
    feature = tf_example_pb2.Example.FromString(record).features.feature

    def texts(key: str) -> list[str]:
        return [value.decode() for value in feature[key].bytes_list.value]

    (row_id,), (payload,) = texts("id"), texts("payload")
    flat = feature["tokens"].int64_list.value
    tokens = np.fromiter(flat, np.int32, len(flat))
    tokens.flags.writeable = False
    completions = []
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
        completions.append(Completion(text, ids, bool(finished), source, reward, log_prob, reference_log_prob))
    roles, contents = texts("messages/role"), texts("messages/content")
    reference_rewards = np.array(feature["reference_rewards"].float_list.value, np.float32)
    return Row(
        row_id,
        tuple(map(Message, roles, contents)),
        payload,
        tuple(completions),
        reference_rewards,
    )
