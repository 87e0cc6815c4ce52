"""Tasks for the sandbox, and sandboxes on machines that lack something."""

from contextlib import suppress
from typing import Any

import pytest

from qrpo_jax.rewards.sandbox import launch
from qrpo_jax.rewards.sandbox.pool import Call, Failed, Limits, Outputs, Sandbox, Task

LIMITS = Limits(cpu_seconds=0.2, memory_mb=128, output_bytes=4096)


def task(code: str, *inputs: tuple[object, ...]) -> Task:
    """Calls the code's function f with each of `inputs`."""
    return Task(code, "f", tuple(Call(one) for one in inputs))


def reasons(outputs: Outputs) -> list[Any]:
    """The reason where there is one, the value where there is one."""
    return [one.reason if isinstance(one, Failed) else one for one in outputs]


def weaken(patch: pytest.MonkeyPatch, lacking: str) -> None:
    """Runs a line in each interpreter of the sandbox before it locks itself down."""
    patch.setattr(launch, "START", launch.START.replace("\nmain(", f"\n{lacking}\nmain("))


def end_supervisor(sandbox: Sandbox) -> None:
    """Kills the first interpreter, as the kernel may when memory is short."""
    with suppress(ProcessLookupError):
        sandbox._zygotes[0]._kill()
