"""Metrics of a run on disk: a JSON-lines file, TensorBoard files and, as an option, Weights & Biases.

Objects in a store cannot grow. There, metrics are written to local files, which are put whole at each checkpoint and
at the end.
"""

import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from qrpo_jax.devices import processes
from qrpo_jax.errors import DamagedError
from qrpo_jax.files import grown, hand_over, write_bytes
from qrpo_jax.training.host_skew import SECONDS, SLOWEST

METRICS = "metrics.jsonl"  # in the folder of a stage
# Figures of a line that depend on the machine and on what else it does. No two runs share them.
MACHINE = "tokens_per_second", "step_seconds", "step_seconds_95", "peak_memory_gb", SECONDS, SLOWEST


class Written(NamedTuple):
    """A metrics file up to a checkpoint: its first `bytes` bytes and their checksum."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class MetricsWriter:
    """Writes scalars by step to every sink. A resumed run first removes the lines after its checkpoint.

    A context manager, used after `begin`. Lines are written whole, so a kill loses at most the line being written. Only
    the first process writes; on the others every method does nothing.

    Args:
      wandb: arguments of `wandb.init`; None does not use Weights & Biases.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = False, wandb: dict[str, Any] | None = None) -> None:
        self._directory, self._tensorboard, self._wandb = directory, tensorboard, wandb
        self._sinks: list[Sink] = []
        self._lines: JsonLines | None = None

    def begin(self, resume_step: int, kept: Written) -> None:
        """Opens the sinks.

        Args:
          resume_step: step of the checkpoint that the run resumes from, or 0.
          kept: what this checkpoint knows of the metrics file.

        Raises:
          DamagedError: the metrics file does not begin with that.
        """
        if not processes.is_first():
            return
        self._lines = JsonLines(self._directory / METRICS, kept)
        self._sinks.append(self._lines)
        if self._tensorboard:
            self._sinks.append(TensorBoard(self._directory / "tensorboard", resume_step))
        if self._wandb is not None:
            self._sinks.append(WeightsAndBiases(self._directory, self._wandb))

    @property
    def written(self) -> Written:
        """What this process has written of the metrics file."""
        return Written() if self._lines is None else self._lines.written

    def write(self, step: int, values: dict[str, float]) -> None:
        """A line in every sink."""
        for sink in self._sinks:
            sink.write(step, known(values))

    def write_step(self, step: int, values: dict[str, float]) -> None:
        """A line in the metrics file alone, which has every step: the report draws no sample of them."""
        if self._lines is not None:
            self._lines.write(step, known(values))

    def flush(self) -> None:
        """Hands everything to the storage: lines before a checkpoint are not written a second time."""
        for sink in self._sinks:
            sink.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()


def known(values: dict[str, float]) -> dict[str, float]:
    """Without NaN, which marks a figure that a run does not have, such as a reward in SFT. JSON has no NaN."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


class Sink(Protocol):
    """One place that metrics are written to."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A file with one JSON object a step, which begins with what is `kept` of it.

    Raises:
      DamagedError: the file begins with something else.
    """

    def __init__(self, path: Path, kept: Written) -> None:
        content = path.read_bytes() if path.exists() else b""
        content = content[: kept.bytes]
        self._sum = hashlib.sha256(content)
        if self._sum.hexdigest() != kept.sha256:
            raise DamagedError(path, f"its first {kept.bytes} bytes are not what was written before the checkpoint")
        self._path, self._local = path, grown(path)
        write_bytes(self._local, content)
        hand_over(self._local, path)
        self._file, self._bytes = self._local.open("ab"), len(content)

    @property
    def written(self) -> Written:
        return Written(self._bytes, self._sum.hexdigest())

    def write(self, step: int, values: dict[str, float]) -> None:
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._sum.update(line)
        self._bytes += len(line)

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint on another machine counts on these lines
        hand_over(self._local, self._path)

    def close(self) -> None:
        self._file.close()
        hand_over(self._local, self._path)


class TensorBoard:
    """TensorBoard event files; steps after `resume_step` are purged.

    Writes where it is called. tensorboardX's SummaryWriter has a thread of its own: on a full disk that thread dies,
    and the run hangs as soon as its queue is full.
    """

    def __init__(self, directory: Path, resume_step: int) -> None:
        # Imported here because it imports PyTorch wherever that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        self._directory, self._local = directory, grown(directory)
        self._local.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._local / "events"))
        self._add(resume_step + 1, file_version="brain.Event:2")
        self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._add(step, summary=self._scalar(name, value))

    def _add(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), **content))

    def flush(self) -> None:
        self._writer.flush()
        hand_over(self._local, self._directory)

    def close(self) -> None:
        self._writer.close()
        hand_over(self._local, self._directory)


class WeightsAndBiases:
    """A Weights & Biases run; its id comes from the directory, so that a resumed run continues it."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        import wandb  # an optional dependency

        name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(dir=str(grown(directory)), resume="allow", id=name, **options)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def flush(self) -> None:
        """Weights & Biases sends in the background."""

    def close(self) -> None:
        self._run.finish()


def begins_with(path: Path, kept: Written) -> bool:
    """Whether a metrics file, which may be missing, begins with what a checkpoint knows of it."""
    content = path.read_bytes() if path.exists() else b""
    return hashlib.sha256(content[: kept.bytes]).hexdigest() == kept.sha256


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All complete lines of a metrics file, which may be missing; a line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
