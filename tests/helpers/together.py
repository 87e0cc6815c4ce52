"""Programs that several real processes run together, each with CPU devices of its own."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.jobs import ROOT, environment

JOIN = """
import json, sys
import jax
jax.config.update("jax_enable_compilation_cache", False)
process, processes = int(sys.argv[1]), int(sys.argv[2])
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", processes, process)
arguments = sys.argv[4:]

def answer(value):
    print("answer " + json.dumps(value), flush=True)

"""


def run_together(folder: Path, program: str, *arguments: object, processes: int = 2, devices: int = 1) -> list[Any]:
    """What each process passes to `answer`.

    Args:
      folder: for the program's file.
      program: source that follows on `JOIN`, which defines `process`, `processes`, `arguments` and `answer`.
      devices: of each process.
    """
    script = folder / "program.py"
    script.write_text(JOIN + program)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    started = [
        subprocess.Popen(
            [sys.executable, script, str(i), str(processes), str(port), *map(str, arguments)],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT), XLA_FLAGS=flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (output, errors) in zip(started, ends, strict=True):
        assert process.returncode == 0, f"status {process.returncode}\n{output[-1000:]}\n{errors[-3000:]}"
    return [
        json.loads(line.removeprefix("answer "))
        for output, _ in ends
        for line in output.splitlines()
        if line.startswith("answer ")
    ]
