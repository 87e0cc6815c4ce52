"""A rollout: what one iteration samples and learns from, and its files.

The scored rows of iteration i are unit i of a folder of rows, so that all of a run's completions can be read like those
of any stage. Beside them lie log-probs of tokens and facts. An iteration is complete or absent: its rows come last.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.files import sha256, whole_file
from qrpo_jax.stores.copies import local

SUM = "tokens_sha256"


class Rollout(NamedTuple):
    """Completions of some prompts by the policy as it was at some step.

    Attributes:
      rows: scored; each has completions of the policy.
      tokens: numbers of all tokens of all completions, one after the other, float32 each, by name: "sampler", log π of
        the sampler; "old", that of the trainer; where they are needed "reference", log π_ref, and "value". NaN for
        completions that are too long for a packed row.
      facts: JSON: figures for the metrics, and where the next iteration goes on.
    """

    rows: list[Row]
    tokens: dict[str, np.ndarray]
    facts: dict[str, Any]


def write_rollout(folder: Path, iteration: int, iterations: int, rollout: Rollout) -> None:
    """Writes the files of an iteration, complete or not at all; what is there is replaced."""
    path = _tokens_file(folder, iteration)
    with whole_file(path) as temporary:
        with temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **rollout.tokens)
        checksum = sha256(temporary)
    write_record(_facts_file(folder, iteration), {"facts": rollout.facts, SUM: checksum})
    row_files.write_unit(folder, iteration, iterations, rollout.rows)


def read_rollout(folder: Path, iteration: int, iterations: int) -> Rollout:
    """The files of an iteration.

    Raises:
      DamagedError: they are not what was written.
    """
    record, path = read_record(_facts_file(folder, iteration)), _tokens_file(folder, iteration)
    if record[SUM] != sha256(path):
        raise DamagedError(path, "it is not what was written here")
    with np.load(local(path), allow_pickle=False) as arrays:
        tokens = dict(arrays)
    return Rollout(list(row_files.read_unit(folder, iteration, iterations)), tokens, record["facts"])


def is_whole(folder: Path, iteration: int, iterations: int) -> bool:
    """Whether an iteration is there and is what was written."""
    if not row_files.unit_done(folder, iteration, iterations):
        return False
    try:
        record = read_record(_facts_file(folder, iteration))
        return row_files.unit_whole(folder, iteration, iterations) and record[SUM] == sha256(
            _tokens_file(folder, iteration)
        )
    except (FileNotFoundError, DamagedError):
        return False


def read_facts(folder: Path, iteration: int) -> dict[str, Any]:
    """The facts of a complete iteration."""
    return read_record(_facts_file(folder, iteration))["facts"]


def aligned(rows: list[Row], tokens: dict[str, np.ndarray], scored: list[Row]) -> dict[str, np.ndarray]:
    """The numbers of tokens of the completions that still are in `scored`, which scoring made from `rows`.

    Scoring drops completions and rows without a reward. It passes on the arrays of tokens themselves, which tell which
    ones are left.
    """
    spans: dict[int, tuple[int, int]] = {}
    start = 0
    for row in rows:
        for completion in row.completions:
            spans[id(completion.tokens)] = start, start + len(completion.tokens)
            start += len(completion.tokens)
    kept = [spans[id(completion.tokens)] for row in scored for completion in row.completions]
    places = np.concatenate([np.zeros(0, int), *(np.arange(*span) for span in kept)])
    return {name: values[places] for name, values in tokens.items()}


def _tokens_file(folder: Path, iteration: int) -> Path:
    return folder / "tokens" / f"{iteration:05d}.npz"


def _facts_file(folder: Path, iteration: int) -> Path:
    return folder / "facts" / f"{iteration:05d}.json"
