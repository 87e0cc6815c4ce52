"""Storage that fails is one line with path and reason, whichever library met it; anything else stays a traceback."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qrpo_jax import files, main, pipeline
from qrpo_jax.devices import peers
from qrpo_jax.errors import UserError
from qrpo_jax.faults import storage
from qrpo_jax.job.manifest import SETTINGS
from tests.helpers.jobs import ROOT, SMALL, environment

RESUME = "and run the same command: it goes on from what is complete"
# Every writer of this program on a disk where no file may grow beyond 50 kB.
WRITERS = """
import json, os, resource, sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from qrpo_jax import files
from qrpo_jax.faults import storage
from qrpo_jax.data import loader, row_files
from qrpo_jax.hugging_face.tensor_file import write_tensors
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.saved_parameters import save_parameters
from qrpo_jax.training.metrics import MetricsWriter, Written
from qrpo_jax.training.state import initial_state
from tests.helpers import sample_rows, tiny
from tests.helpers.steps import OPTIMIZER

workdir = Path(sys.argv[1])
storage.hush(workdir)
state = initial_state({"a": jnp.asarray(np.random.default_rng(0).normal(size=(173, 211)))}, OPTIMIZER, seed=0)

def checkpoint():
    table = tiny.examples(7)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(state, loader.batches(table, tiny.plan(table)), Written())

def metrics(tensorboard):
    with MetricsWriter(workdir / "metrics", tensorboard=tensorboard) as writer:
        writer.begin(0, Written())
        for step in range(3000 if tensorboard else 9000):
            writer.write(step, {"loss": 0.0, "reward": 1.0} if tensorboard else {})

def whole_folder():
    with files.whole_folder(workdir / "model") as partial:
        write_tensors(partial / "model.safetensors", {"a": np.zeros((173, 211), np.float32)})

writers = {
    "text": lambda: files.write_text(workdir / "report.html", "x" * 100_000),
    "rows": lambda: row_files.write_unit(workdir / "rows", 0, 1, [sample_rows.make_row(i) for i in range(3)]),
    "tensors": whole_folder,
    "lines": lambda: metrics(False),
    "tensorboard": lambda: metrics(True),
    "parameters": lambda: save_parameters(workdir / "parameters", state.parameters),
    "checkpoint": checkpoint,
}
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
lines = {}
for name, write in writers.items():
    try:
        write()
        lines[name] = "written"
    except Exception as error:
        lines[name] = storage.explain(error, workdir)
print(json.dumps(lines), flush=True)
os._exit(0)
"""


def test_every_writer_names_its_file_and_threads_keep_quiet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITERS, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    lines = json.loads(done.stdout)
    places = {
        "text": "/report.html",
        "rows": "/rows/rows-train.array_record-00000-of-00001",
        "tensors": "",  # the buffer of an open file reports no name
        "lines": "",
        "tensorboard": "",
        "parameters": "/parameters",
        "checkpoint": "/checkpoints/0",
    }
    expected = {name: f"{tmp_path}/run{place}: File too large; make room {RESUME}" for name, place in places.items()}
    assert lines == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_our_own_writers_name_the_file_and_not_its_temporary(tmp_path, monkeypatch, code: int, call: str) -> None:
    def fail(first: object, *others: object) -> None:
        raise OSError(code, os.strerror(code), *([str(first), None, str(others[0])] if others else []))

    files.write_text(tmp_path / "kept.json", "old")
    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError) as caught:
        files.write_text(tmp_path / "kept.json", "new")
    line = storage.explain(caught.value, tmp_path)
    assert (
        line is not None and line.startswith(f"{tmp_path}/kept.json: {os.strerror(code)}; ") and line.endswith(RESUME)
    )
    assert "\n" not in line and files.TEMPORARY not in line, line
    assert (tmp_path / "kept.json").read_text() == "old" and os.listdir(tmp_path) == ["kept.json"]


def raised(*errors: BaseException) -> BaseException:
    """The last error, each raised from the one before."""
    for cause, error in zip(errors, errors[1:], strict=False):
        error.__cause__ = cause
    return errors[-1]


def test_errors_of_libraries_are_read_through_whatever_is_wrapped_around_them(tmp_path: Path) -> None:
    place = tmp_path / "sft" / "checkpoints"
    text = f'RESOURCE_EXHAUSTED: Error writing local file "{place}/3.orbax-checkpoint-tmp/state/_sharding": No space'
    inner = ValueError(f"{text} left on device [os_error_code='28']")
    expected = f"{place}/3: No space left on device; make room {RESUME}"
    for error in (
        inner,
        raised(inner, RuntimeError("a thread failed"), TypeError("while closing")),
        BaseExceptionGroup("two", [KeyError("x"), inner]),
    ):
        assert storage.explain(error, tmp_path) == expected, error
    # The flush that failed while the file was closed does not know its name; the first error did.
    flush = raised(inner, OSError(errno.ENOSPC, "No space left on device"))
    assert storage.explain(flush, tmp_path) == expected


def test_bugs_and_mistakes_are_not_taken_for_storage(tmp_path: Path) -> None:
    inside, outside = str(tmp_path / "sft" / "rows"), "/somewhere/else"
    files.write_text(tmp_path / "sft" / SETTINGS, "{}")
    for error in (
        KeyError("x"),
        ValueError("No such thing"),
        UserError("no file /data/prompts.jsonl"),
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), inside),  # its stage's folder is as it was
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), outside),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), outside),
        ConnectionError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)),
        OSError("no number"),
    ):
        assert storage.explain(error, tmp_path) is None, error
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), inside)
    assert storage.explain(denied, tmp_path) == f"{inside}: Permission denied; make it writable {RESUME}"


def test_a_work_directory_that_vanishes_is_named(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    assert storage.RECORD == SETTINGS
    files.write_text(workdir / "sft" / SETTINGS, "{}")
    with pytest.raises(OSError) as caught, files.whole_file(workdir / "sft" / "manifest.json") as temporary:
        shutil.rmtree(workdir)
        temporary.write_text("{}")
    line = storage.explain(caught.value, workdir)
    expected = f"{workdir}/sft/manifest.json: No such file or directory; make it available again {RESUME}"
    assert line == expected
    (workdir / "sft").mkdir(parents=True)  # as Orbax does, when its next file is written
    assert storage.explain(caught.value, workdir) == expected


def test_a_thread_that_meets_a_bug_still_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_value))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    storage.hush(tmp_path)
    bug = KeyError("x")

    def run(error: BaseException) -> None:
        raise error

    for error in (OSError(errno.ENOSPC, "full"), RuntimeError("Event loop is closed"), bug):
        thread = threading.Thread(target=run, args=(error,))
        thread.start()
        thread.join()
    assert seen == [bug]


def test_the_command_prints_one_line_with_status_1_and_bugs_pass(tmp_path, monkeypatch, capsys) -> None:
    def run(error: BaseException) -> None:
        def fail(job: object, fork_from: object) -> bool:
            raise error

        monkeypatch.setattr(pipeline, "run", fail)
        main.run(["qrpo_jax.main", "--config=quickstart", f"--workdir={tmp_path}"])

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(main, "make_job", lambda request: None)
    monkeypatch.setattr(main, "quiet", lambda: None)
    monkeypatch.setattr(main.storage, "hush", lambda workdir: None)
    monkeypatch.setattr(peers, "leave_together", leave)
    with pytest.raises(SystemExit) as caught:
        run(OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "sft")))
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/sft: Read-only file system; make it writable {RESUME}\n"
    with pytest.raises(KeyError):
        run(KeyError("x"))


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "failed"), [(300, "sft"), (30_000, "sft/checkpoints"), (100_000, "")])
def test_a_job_goes_on_where_the_disk_was_full(tmp_path: Path, limit: int, failed: str) -> None:
    """A limit on the size of a file stands in for the disk. The job goes on, and ends as an undisturbed one does.

    Which file is the first to exceed 100,000 bytes depends on how Orbax lays out arrays.
    """

    def run(name: str, size: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qrpo_jax.main", *SMALL, "--config.train.epochs=1", f"--workdir={tmp_path / name}"],
            cwd=ROOT,
            env=environment(JAX_ENABLE_COMPILATION_CACHE="true", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache")),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)),
        )

    full = run("full", limit)
    lines = full.stderr[full.stderr.find("error: ") :].strip().splitlines()
    assert full.returncode == 1 and len(lines) == 1, full.stderr[-3000:]
    assert lines[0].startswith(f"error: {tmp_path}/full/{failed}") and "File too large" in lines[0], lines
    assert "Traceback" not in full.stderr
    for name in ("full", "undisturbed"):
        done = run(name, resource.RLIM_INFINITY)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("results.json", "export/model/model.safetensors"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
