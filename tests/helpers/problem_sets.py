"""The fixtures' problem sets: rows with their published solutions, and the data sets' own harness."""

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.rewards.sandbox.pool import Call, Sandbox, Task
from tests.helpers.tables import opened

FILES = {"humaneval": "humaneval/*.gz", "mbpp": "mbpp/*.jsonl", "leetcode": "leetcode/*.gz"}


def rows_of_set(fixtures: Path, name: str, step: int = 1) -> list[Row]:
    """Every `step`-th problem, with the published solution as its completion."""
    source = opened(f"jsonl:{fixtures}/{FILES[name]}")
    return source.rows(range(0, source.count, step))


def records_of_set(fixtures: Path, name: str) -> dict[str, dict[str, Any]]:
    """The records by id."""
    (path,) = fixtures.glob(FILES[name])
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {record["task_id"]: record for record in map(json.loads, text.splitlines())}


def problem_row(payload: Any, *texts: str, name: str = "r") -> Row:
    completions = tuple(Completion(text, NO_TOKENS, True, "dataset") for text in texts)
    return Row(name, (Message("user", "q"),), json.dumps(payload), completions)


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def with_completions(row: Row, codes: Sequence[str]) -> Row:
    return dataclasses.replace(
        row, completions=tuple(Completion(fenced(code), NO_TOKENS, True, "dataset") for code in codes)
    )


def passes_own_harness(sandbox: Sandbox, record: dict[str, Any], codes: Sequence[str]) -> list[bool]:
    """Whether the data set's own `check` accepts each code: in one process with it, all tests together."""
    tasks = []
    for code in codes:
        source = "\n".join([code, record["test"], f"check_of = {record['entry_point']}", ""])
        tasks.append(Task(source, "lambda: check(check_of) or True", (Call([]),)))
    return [outputs == (True,) for outputs in sandbox.run(tasks)]
