"""Layouts and targets of packed rows: of whole sequences one after the other, and of groups that share a prompt."""

from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.model.layout import Layout
from qrpo_jax.model.token_log_probs import NO_TARGET


def layout(numbers_BxL: np.ndarray, positions_BxL: np.ndarray, own_BxL: np.ndarray | None = None) -> Layout:
    """The layout of sequences that share no prompt.

    Args:
      numbers_BxL: which sequence of its row a token belongs to, from 1; 0 is padding.
      own_BxL: whether a token belongs to a completion; by default none does. A completion's segment begins one token
        earlier, at the token that predicts its first.
    """
    own_BxL = np.zeros(numbers_BxL.shape, bool) if own_BxL is None else own_BxL
    segments_BxL = np.where(own_BxL | _before(own_BxL), numbers_BxL, 0)
    return Layout(*(np.asarray(x, np.int32) for x in (numbers_BxL, segments_BxL, positions_BxL)))


def one_a_row(shape: tuple[int, ...]) -> Layout:
    """The layout of rows [B, L] that are one sequence without padding."""
    return layout(np.ones(shape, np.int32), np.broadcast_to(np.arange(shape[1]), shape))


def targets(tokens_BxL: np.ndarray, own_BxL: np.ndarray) -> np.ndarray:
    """The token to predict from each position: the next one, where `own_BxL` says that it is predicted at all."""
    return np.where(_before(own_BxL), np.roll(tokens_BxL, -1, 1), NO_TARGET).astype(np.int32)


def _before(own_BxL: np.ndarray) -> np.ndarray:
    """Whether the next token of the row is one of `own_BxL`; no row begins with one."""
    assert not own_BxL[:, 0].any(), "nothing predicts the first token of a row"
    return np.roll(own_BxL, -1, 1)


class Group(NamedTuple):
    """A prompt of at least one token with its completions, of at least one token each."""

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]

    def apart(self) -> list["Group"]:
        """Every completion with a copy of the prompt."""
        return [Group(self.prompt, (completion,)) for completion in self.completions]


class Packed(NamedTuple):
    """The first arguments of a forward pass and of `row_log_probs`."""

    tokens_BxL: np.ndarray
    layout: Layout
    targets_BxL: np.ndarray


def random_groups(rng: np.random.Generator, count: int, vocab: int) -> list[Group]:
    """Groups of one to four completions of up to 7 tokens, with prompts of up to 9; the first prompt has one token."""

    def draw(length: Any) -> np.ndarray:
        return rng.integers(0, vocab, length).astype(np.int32)

    return [
        Group(
            draw(rng.integers(1, 10) if i else 1),
            tuple(draw(rng.integers(1, 8)) for _ in range(rng.integers(1, 5) if i else 3)),
        )
        for i in range(count)
    ]


def pack(rows: list[list[Group]], length: int, rng: np.random.Generator | None = None) -> Packed:
    """Rows of groups that share their prompts; with `rng`, a random number of padding tokens before each group."""
    tokens, groups, segments, positions = np.zeros((4, len(rows), length), np.int32)
    targets = np.full((len(rows), length), NO_TARGET, np.int32)
    for b, row in enumerate(rows):
        at, segment = 0, 0
        for g, group in enumerate(row):
            at += int(rng.integers(0, 3)) if rng else 0
            shared, first = len(group.prompt) - 1, at
            tokens[b, at : at + shared], positions[b, at : at + shared] = group.prompt[:-1], np.arange(shared)
            at += shared
            for completion in group.completions:
                segment += 1
                own = slice(at, at + len(completion))
                tokens[b, own] = [group.prompt[-1], *completion[:-1]]
                targets[b, own], segments[b, own] = completion, segment
                positions[b, own] = shared + np.arange(len(completion))
                at += len(completion)
            assert at <= length, f"row {b} needs {at} tokens"
            groups[b, first:at] = g + 1
    return Packed(tokens, Layout(groups, segments, positions), targets)


def pack_randomly(rng: np.random.Generator, groups: list[Group], length: int) -> Packed:
    """Groups in a random number of rows, in order, with padding between them."""
    rows: list[list[Group]] = [[]]
    room = length
    for group in groups:
        needed = len(group.prompt) + sum(map(len, group.completions)) + 1  # with padding
        if needed > room or (rows[-1] and rng.integers(4) == 0):
            rows.append([])
            room = length
        rows[-1].append(group)
        room -= needed
    return pack(rows, length, rng)
