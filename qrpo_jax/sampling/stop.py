"""Stop strings: a table by which the sampler knows, token by token, whether a completion's text contains one.

The table is the automaton of Aho and Corasick ("Efficient string matching", 1975) over the bytes of the strings. Its
state is how much of each string the text ends with, so a string may begin and end anywhere within tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qrpo_jax.errors import UserError

BYTES = 256
MOST_BYTES = 1000  # of all strings together; the table has a state for each, and a number of V tokens for each state


@dataclass(frozen=True)
class Stops:
    """When a completion has its first stop string. It begins in state 0; the last state is that of one which has.

    Attributes:
      states: S.
      table: uint16 [S, V] as bytes: the state after each token in each state.
    """

    states: int
    table: bytes

    @cached_property
    def table_SxV(self) -> np.ndarray:
        return np.frombuffer(self.table, np.uint16).reshape(self.states, -1)


def check_stops(strings: Sequence[str]) -> None:
    """Refuses strings whose table would be too large.

    Raises:
      UserError: about `stop`.
    """
    total = sum(len(string.encode()) for string in strings)
    if total > MOST_BYTES:
        raise UserError(f"the stop strings have {total:,} bytes together; allowed are {MOST_BYTES:,}", about="stop")


def make_stops(strings: Sequence[str], pieces: Sequence[bytes], vocab_size: int) -> Stops:
    """The table of some strings, none of which is empty, and which `check_stops` allows.

    Args:
      pieces: the bytes that each token adds to the text; tokens behind them, up to `vocab_size`, add none.
    """
    next_SxB = _automaton([string.encode() for string in strings])
    states = len(next_SxB)
    lengths_V = np.zeros(vocab_size, np.int64)
    lengths_V[: len(pieces)] = [len(piece) for piece in pieces[:vocab_size]]
    table_SxV = np.repeat(np.arange(states)[:, None], vocab_size, axis=1)
    for at in range(int(lengths_V.max(initial=0))):
        longer = np.flatnonzero(lengths_V > at)
        bytes_of = np.asarray([pieces[token][at] for token in longer.tolist()], np.int64)
        table_SxV[:, longer] = next_SxB[table_SxV[:, longer], bytes_of[None]]
    return Stops(states, table_SxV.astype(np.uint16).tobytes())


def _automaton(strings: Sequence[bytes]) -> np.ndarray:
    """The state after each byte in each state, [S, 256]; the last state is the end, and stays."""
    children: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for string in strings:
        node = 0
        for byte in string:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends.add(node)
    next_NxB = np.zeros((len(children), BYTES), np.int64)
    shorter = np.zeros(len(children), np.int64)  # the longest other beginning of a string that a node's text ends with
    waiting = [0]
    for node in waiting:  # breadth first, so that shorter texts are done
        if node and int(shorter[node]) in ends:
            ends.add(node)
        next_NxB[node] = next_NxB[shorter[node]] if node else 0
        for byte, child in children[node].items():
            shorter[child] = next_NxB[node, byte] if node else 0
            next_NxB[node, byte] = child
            waiting.append(child)
    inner = [node for node in range(len(children)) if node not in ends]
    state = np.full(len(children), len(inner))
    state[inner] = np.arange(len(inner))
    end = np.full((1, BYTES), len(inner))
    return np.concatenate([state[next_NxB[inner]], end])


def cut(text: str, strings: Sequence[str]) -> str | None:
    """The text in front of its first stop string; None if it has none.

    >>> cut("a = 1; b", [" b", ";"]), cut("a", [";"])
    ('a = 1', None)
    """
    found = [at for at in map(text.find, strings) if at >= 0]
    return text[: min(found)] if found else None
