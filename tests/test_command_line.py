"""The command line: mistakes are refused before libraries are imported; installed packages find their configs."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest

from qrpo_jax import command_line
from qrpo_jax.errors import UserError
from qrpo_jax.stores.path import StorePath
from qrpo_jax.stores.store import open_store
from tests.helpers.jobs import ROOT, environment

HEAVY = {
    "jax",
    "flax",
    "orbax",
    "grain",
    "tensorflow_datasets",
    "transformers",
    "matplotlib",
    "torch",
    "scipy",
    "optax",
}
PROGRAM = """
import json, sys
from qrpo_jax import main
try:
    main.run(["qrpo-jax", *json.loads(sys.argv[1])])
except SystemExit as error:
    print(json.dumps([error.code, sorted({{name.split(".")[0] for name in sys.modules}} & set({heavy}))]))
"""
START = ("--config=quickstart", "--workdir=run")


def read(*words: str) -> command_line.Request:
    return command_line.read(["qrpo-jax", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.train.bta=1"], "no config key train.bta; did you mean train.beta?"),
        (["--config.trian.beta=1"], "no config key trian.beta; did you mean train.beta?"),
        (["--config.beta=1"], "no config key beta; did you mean train.beta?"),
        (["--config.train=1"], "train is a section; set its keys, as in --config.train.KEY=VALUE"),
        (["--config.train.beta"], "train.beta is without a value; write --config.train.beta=VALUE"),
        (["--config.train.beta=much"], "train.beta is 'much'; it must be a number, finite, at least 0"),
        (["--config.train.epochs=1.5"], "train.epochs is '1.5'; it must be a whole number, at least 1"),
        (["--config.train.epochs=True"], "train.epochs is 'True'; it must be a whole number, at least 1"),
        (["--config.log.wandb=maybe"], "log.wandb is 'maybe'; it must be True or False"),
        (["--config.seed=99999999999"], "seed is 99999999999; it must be at most 2147483647"),
        (["--config.stages=compile,repot"], "stages is 'repot'; allowed: sft"),
        (["--config.stages=sft,train"], "stage 'train' needs 'sample' before it"),
        (
            ["--config.prompts.source=json"],
            "prompts.source is 'json'; allowed: programs, jsonl:FILES, parquet:FILES, hf:ORG/NAME[:CONFIG][",
        ),
        (["--config=quikstart"], "did you mean 'quickstart'?"),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (["surprise"], "unknown argument 'surprise'"),
        (["--workdir=nonsense://bucket/x"], "--workdir=nonsense://bucket/x: nonsense:// is no protocol of a store"),
        (["--workdir=file:///tmp/x"], "file:// is no object store; name a folder"),
        (["--workdir="], "name a folder"),
        (["--fork=https://bucket/x"], "--fork=https://bucket/x: https:// is no object store"),
        (["--fork=other", "--shard=0/2"], "start once without --shard"),
        (["--shard=2/2"], "shard is '2/2'; allowed: i/n"),
        (["--shard=a"], "shard is 'a'; allowed: i/n"),
        (["--distributed", "--shard=0/2"], "--shard is for independent processes"),
        (["--processes=2"], "need --coordinator"),
        (["--coordinator=host"], "is no HOST:PORT"),
        (["--coordinator=host:1", "--processes=2"], "name both"),
        (["--coordinator=host:1", "--processes=2", "--process=2"], "0 <= process < processes"),
        (["--processes=two"], "processes"),
    ],
)
def test_a_mistake_is_refused_in_one_line(words, message) -> None:
    with pytest.raises(UserError) as error:
        read(*START, *words)
    assert message in str(error.value) and "\n" not in str(error.value), error.value


def test_an_address_whose_package_is_missing_says_what_to_install(monkeypatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(protocol)

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    for flag, address, package in (("workdir", "gs://bucket/x", "gcsfs"), ("fork", "s3://bucket/x", "s3fs")):
        open_store.cache_clear()
        with pytest.raises(UserError, match=f"--{flag}={address}: .*: pip install {package} "):
            read(*START, f"--{flag}={address}")
    open_store.cache_clear()


def test_a_work_directory_may_be_an_address(bucket: str) -> None:
    request = read("--config=quickstart", f"--workdir={bucket}/run")
    assert request.workdir == StorePath(f"{bucket}/run")


def test_config_and_workdir_are_needed() -> None:
    for words in ([], ["--config=quickstart"], ["--workdir=x"]):
        with pytest.raises(UserError, match="are needed"):
            read(*words)


def test_overrides_are_values_of_their_keys_and_the_last_one_counts() -> None:
    request = read(
        *START,
        *("--config.train.beta=0.5", "--config.train.beta", "0.7", "--config.log.wandb", "--noconfig.log.tensorboard"),
        "--config.stages=sft,sample",
    )
    config = request.config
    assert (config.train.beta, config.log.wandb, config.log.tensorboard) == (0.7, True, False)
    assert config.stages == ("sft", "sample") and config.sft.epochs == 1 and request.shard == (0, 1)
    assert (request.workdir, request.fork) == (Path("run"), None)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        [*START, "--config.train.bta=1"],
        [*START, "--config.train.objective=trpo"],
        [*START, "--config.stages=sft,train"],
        ["--config=none.py", "--workdir=run"],
    ],
    ids=lambda words: words[-1],
)
def test_help_and_mistakes_import_no_library_that_takes_seconds(words) -> None:
    command = [sys.executable, "-c", PROGRAM.format(heavy=sorted(HEAVY)), json.dumps(words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    status, imported = json.loads(done.stdout.splitlines()[-1])
    assert (status, imported) == (0 if words == ["--help"] else 2, []), done.stderr


def test_an_installed_package_finds_its_configs_and_a_file_of_the_user_finds_the_default(tmp_path: Path) -> None:
    """The wheel is unpacked and run far from the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("qrpo_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    entry_points = next(site.glob("*.dist-info/entry_points.txt")).read_text()
    assert "qrpo-jax = qrpo_jax.main:command" in entry_points
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(
        "from configs import default\n\ndef get_config():\n    config = default.get_config()\n"
        "    config.seed = 7\n    return config\n"
    )
    program = (
        "from qrpo_jax import command_line; names = ('quickstart', 'mine.py', 'tulu3_8b'); "
        "c = [command_line.read(['x', f'--config={name}', '--workdir=w']).config for name in names]; "
        "import pathlib, qrpo_jax; print(qrpo_jax.__file__, c[0].train.beta, c[1].seed, "
        "(pathlib.Path(c[2].model.path) / 'config.json').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "qrpo_jax" / "__init__.py"), "0.3", "7", "True"], done.stderr
