"""Several processes together write the same files as one process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from qrpo_jax.data import row_files, rows
from qrpo_jax.data.sources import SOURCES
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.model import decoder
from qrpo_jax.training import saved_parameters
from qrpo_jax.training.metrics import read_metrics
from tests.helpers.jobs import ROOT, SMALL, environment
from tests.job.test_resume import compare
from tests.job.test_resume import outputs as outputs_of


def start(
    workdir: Path, processes: int, *overrides: str, folders: Sequence[Path] = ()
) -> list["subprocess.Popen[str]"]:
    """Starts a small job; each process has one CPU device.

    Args:
      folders: that the processes work in.
    """
    command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, "--config=quickstart", f"--workdir={workdir}", *overrides]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"] if processes > 1 else []
    started = []
    for i in range(processes):
        flags = [*joined, f"--process={i}"] if joined else []
        started.append(
            subprocess.Popen(
                [*command, *flags],
                cwd=folders[i] if folders else ROOT,
                env=environment(PYTHONPATH=path),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def run(workdir: Path, processes: int, *overrides: str) -> None:
    """Runs a small job and waits for it."""
    for process in start(workdir, processes, *overrides):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    settings = decoder.DecoderSettings(
        vocab_size=len(vocabulary_tokenizer(SOURCES["programs"].vocabulary())),
        d_model=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        d_ff=61,
        max_positions=512,
    )
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = decoder.abstract_parameters(settings)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=where), shapes)
    loaded = saved_parameters.load_parameters(folder / "parameters", abstract)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(loaded)}


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    run(tmp_path / "one", 1)
    run(tmp_path / "two", 2)
    # Sums over devices round differently, so parameters agree closely and not bit for bit.
    one, two = (parameters(tmp_path / name / "sft") for name in ("one", "two"))
    for name, array in one.items():
        worst = float(np.abs(array - two[name]).max())
        assert worst < 2e-3, f"{name} differs by {worst}"
    ids = [[row.id for row in row_files.read(tmp_path / name / "score")] for name in ("one", "two")]
    assert ids[0] == ids[1] and len(ids[0]) == 59
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    for side in ("reference", "policy"):
        means = [r[side]["mean_reward"] for r in results]
        assert abs(means[0] - means[1]) < 0.1, means


@pytest.mark.slow
def test_units_of_all_processes_together_are_those_of_each_alone(tmp_path: Path) -> None:
    run(tmp_path / "apart", 2)
    run(tmp_path / "together", 2, "--config.mesh.units=all")
    for stage in ("sample", "score", "evaluate/reference"):
        apart, together = (
            [(row.id, [c.text for c in row.completions]) for row in row_files.read(tmp_path / name / stage)]
            for name in ("apart", "together")
        )
        assert apart == together, stage
    values = [
        [c.reference_log_prob for row in row_files.read(tmp_path / name / "reference") for c in row.completions]
        for name in ("apart", "together")
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_held_out_figures_and_kept_steps_of_two_processes_agree_with_those_of_one(tmp_path: Path) -> None:
    """Models and rows are split over both processes, and each evaluates units of its own."""
    keys = ["--config.train.evaluate_every=3", "--config.train.held_out=7", "--config.train.keep_every=4"]
    keys += ["--config.evaluate.checkpoints=0,4,last", "--config.evaluate.seeds=0,1", "--config.export.checkpoint=4"]
    keys += ["--config.watch.every=3", "--config.watch.prompts=5"]
    run(tmp_path / "one", 1, *keys)
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("journal*", "results.json"))
    for stage in ("train", "evaluate", "report", "export"):
        shutil.rmtree(tmp_path / "two" / stage)
    run(tmp_path / "two", 2, *keys, "--config.mesh.fsdp=2")
    lines = [
        [line for line in read_metrics(tmp_path / name / "train" / "metrics.jsonl") if "held_out_loss" in line]
        for name in ("one", "two")
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] and len(lines[0]) >= 3
    for one, two in zip(*lines, strict=True):
        for name in (name for name in one if name.startswith("held_out")):
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-3), (one["step"], name)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    for one, two in zip(*(found["curve"] for found in results), strict=True):
        assert one["step"] == two["step"] and abs(one["mean_reward"] - two["mean_reward"]) < 0.1, (one, two)


@pytest.mark.slow
def test_four_then_two_then_one_process_end_like_one(tmp_path: Path) -> None:
    """Each start is stopped in another stage of training; the next one has other devices and another mesh."""
    workdir, stages = tmp_path / "fewer", "--config.stages=sft,sample,score,reference,train"
    for processes, stage, *mesh in ((4, "sft", "--config.mesh.fsdp=2"), (2, "train")):
        started = start(workdir, processes, stages, *mesh)
        end = time.monotonic() + 600
        while time.monotonic() < end and all(process.poll() is None for process in started):
            if any(path.name.isdigit() for path in (workdir / stage / "checkpoints").glob("*")):
                break
            time.sleep(0.05)
        started[-1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=600)[0] for process in started]
        assert [process.returncode for process in started] == [75] * processes, outputs[0][-3000:]
        assert not (workdir / stage / "manifest.json").exists(), f"{stage} ended before the signal"
    run(workdir, 1, stages)
    run(tmp_path / "one", 1, stages)
    for stage in ("sft", "train"):
        fewer, one = (parameters(tmp_path / name / stage) for name in ("fewer", "one"))
        for name, array in one.items():
            worst = float(np.abs(array - fewer[name]).max())
            assert worst < 2e-3, f"{stage}: {name} differs by {worst}"


@pytest.mark.slow
def test_a_kill_of_one_of_four_in_each_stage_stops_the_others_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The victim is another process in each stage. The others leave with one line, and the next start goes on."""
    for name, value in (("ENABLE_COMPILATION_CACHE", "true"), ("COMPILATION_CACHE_DIR", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"JAX_{name}", value)  # what is not compiled anew takes seconds a start
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    run(tmp_path / "undisturbed", 4)
    workdir, stages = tmp_path / "killed", ("sft", "sample", "score", "reference", "train", "evaluate", "export")
    for number, stage in enumerate(stages):
        started, victim = start(workdir, 4), number % 4
        end = time.monotonic() + 600
        while time.monotonic() < end and all(process.poll() is None for process in started):
            if (workdir / stage / "settings.json").exists():
                break
            time.sleep(0.01)
        started[victim].kill()
        began = time.monotonic()
        outputs = [process.communicate(timeout=600)[0] for process in started]
        seconds, text = time.monotonic() - began, outputs[(victim + 1) % 4]
        print(f"{stage}: process {victim} killed, the others left after {seconds:.0f} s")
        statuses = [process.returncode for process in started]
        assert statuses == [-signal.SIGKILL if i == victim else 1 for i in range(4)], (stage, statuses, text[-3000:])
        assert not (workdir / stage / "manifest.json").exists(), f"{stage} ended before the kill"
        assert seconds < 60, (stage, seconds)
        for i, output in enumerate(outputs):
            errors = [line for line in output.splitlines() if line.startswith("error: ")]
            assert i == victim or (len(errors) == 1 and f"process {victim} (" in errors[0]), (stage, output[-3000:])
            assert "Traceback" not in output, (stage, output[-3000:])
    run(workdir, 4)
    compare(outputs_of(workdir), outputs_of(tmp_path / "undisturbed"), list(stages))


@pytest.mark.slow
def test_separate_shards_write_the_rows_of_one_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", 1, "--config.stages=('sft','sample','score')")
    run(tmp_path / "shards", 1, "--config.stages=('sft',)")
    for shard in ("2/3", "0/3", "1/3", "0/1"):
        run(tmp_path / "shards", 1, "--config.stages=('sft','sample','score')", f"--shard={shard}")
    whole, shards = (
        [rows.encode(r) for r in row_files.read(tmp_path / name / "score")] for name in ("whole", "shards")
    )
    assert whole == shards


@pytest.mark.slow
def test_adapters_on_a_base_split_over_two_processes_agree_with_one_process(tmp_path: Path) -> None:
    lora = ["--config.lora.rank=3", "--config.train.reference_log_probs=on_the_fly", "--config.export.adapter=merged"]
    lora += ["--config.stages=('sft','sample','score','train','export')", "--config.sft.examples=97"]
    run(tmp_path / "one", 1, *lora)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for stage in ("train", "export"):
        shutil.rmtree(tmp_path / "two" / stage)
    run(tmp_path / "two", 2, *lora, "--config.mesh.fsdp=2")
    files = [load_file(tmp_path / name / "export" / "model" / "model.safetensors") for name in ("one", "two")]
    names = [saved_names(tmp_path / name / "train") for name in ("one", "two")]
    assert names[0] == names[1] and len(names[0]) == 2 * 7 and all("_adapter" in name for name in names[0]), names
    for name, array in files[0].items():
        worst = float(np.abs(array - files[1][name]).max())
        assert worst < 2e-3, f"{name} differs by {worst}"


def saved_names(stage: Path) -> set[str]:
    """Paths of the parameters that a stage saved, on any mesh."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata((stage / "parameters" / "arrays").absolute()).item_metadata.tree
    return {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(saved)}
