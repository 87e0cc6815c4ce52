"""Metrics of a run: a JSONL file, TensorBoard files, and Weights & Biases if asked for."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import tensorboardX


class MetricsWriter:
    """Writes scalars by step; a resumed run takes back what was written after its checkpoint.

    A context manager; `write` keeps files complete line by line, so a kill loses at most the line being written.
    """

    def __init__(self, directory: Path, *, resume_step: int, tensorboard: bool, wandb: dict[str, Any] | None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = [m for m in read_metrics(self._path) if m["step"] <= resume_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(m) + "\n" for m in kept))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._board = None
        if tensorboard:
            self._board = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)
        self._wandb = None
        if wandb is not None:
            import wandb as library  # an option that is never required, so never imported without being asked

            name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
            self._wandb = library.init(dir=str(directory), resume="allow", id=name, **wandb)

    def write(self, step: int, values: dict[str, float]) -> None:
        # What a run does not know (a reward in SFT) is NaN, which JSON cannot say: it is left out.
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()
        for name, value in known.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def flush(self) -> None:
        """Puts everything on disk: what lies before a checkpoint must not be lost, since it is not written again."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All complete lines of a metrics file; a line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
