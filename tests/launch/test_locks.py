"""The lock files and setup.py agree, and the containers install from the lock files."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "launch" / "locks"
KINDS = {"base": (), "tpu": ("tpu",), "gpu": ("cuda",)}
EXTRAS = ("gcs", "hf", "wandb")


def setup_arguments() -> dict[str, ast.expr]:
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def requirements(*extras: str) -> list[Requirement]:
    arguments = setup_arguments()
    texts = ast.literal_eval(arguments["install_requires"])
    named = arguments["extras_require"]
    assert isinstance(named, ast.Dict)
    for key, value in zip(named.keys, named.values, strict=True):
        if isinstance(key, ast.Constant) and key.value in extras:
            texts = texts + ast.literal_eval(value)
    return [Requirement(text) for text in texts]


def locked(kind: str) -> dict[str, str]:
    """Version of each package of a lock file and of those that it includes."""
    versions: dict[str, str] = {}
    for line in (LOCKS / f"{kind}.txt").read_text().splitlines():
        if line.startswith("-r "):
            versions |= locked(line[3:].removesuffix(".txt"))
        elif found := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line):
            versions[canonicalize_name(found[1])] = found[2]
    return versions


@pytest.mark.parametrize("kind", KINDS)
def test_every_requirement_is_locked_within_its_bounds(kind: str) -> None:
    versions = locked(kind)
    for requirement in requirements(*EXTRAS, *KINDS[kind]):
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in {kind}.txt: run launch/lock.sh"
        assert requirement.specifier.contains(version), f"{requirement}: {kind}.txt has {version}: run launch/lock.sh"


@pytest.mark.parametrize("kind, package", [("tpu", "libtpu"), ("gpu", "jax-cuda13-plugin")])
def test_the_libraries_of_an_accelerator_are_locked(kind: str, package: str) -> None:
    assert package in locked(kind) and package not in locked("base")
    assert locked(kind)["jax"] == locked("base")["jax"]


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.name)
def test_every_locked_package_has_hashes(path: Path) -> None:
    text = re.sub(r"\\\n\s*", "", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "-r "))]
    assert lines
    for line in lines:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
        assert "://" not in line, line
