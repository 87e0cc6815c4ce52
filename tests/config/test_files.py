"""A config file is found by name or path, and every mistake in it is one line with the file and the line number."""

from pathlib import Path

import pytest

from configs import default
from qrpo_jax.config import files
from qrpo_jax.config.config import completed
from qrpo_jax.errors import UserError

HEAD = "from configs import default\n\n\ndef get_config():\n    config = default.get_config()\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    config.train.bta = 1\n", r"line 6: no config key train.bta; did you mean train.beta\?"),
        ("    config.trian = 1\n", r"line 6: no config key trian; did you mean train\?"),
        ("    config.beta = 1\n", r"line 6: no config key beta; did you mean train.beta\?"),
        ("    x = config.train.bta\n", r"line 6: AttributeError: no config key train.bta; did you mean train.beta\?"),
        ("    config.train.epochs = True\n", "line 6: train.epochs is True; it must be a whole number, at least 1"),
        ("    config.train.beta = '1'\n", "line 6: train.beta is '1'; it must be a number, finite, at least 0"),
        ("    config.train.update({'beta': -1})\n", "line 6: train.beta is -1; it must be finite, at least 0"),
        ("    config.train = {'beta': 1}\n", "line 6: train is a section"),
        ("    with config.unlocked():\n        config.train.bta = 1\n    return config\n", "no config key train.bta"),
        ("    return None\n", r"get_config\(\) returned NoneType"),
        ("    return config.train\n", r"no config key \w+"),
        ("    import sys; sys.exit(0)\n", "line 6: the file ends the program"),
        ("    import os; os._exit(0)\n", "line 6: the file ends the program"),
        ("    return 1 / 0\n", "line 6: ZeroDivisionError: division by zero"),
        ("    return (\n", "line 6: SyntaxError"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body)
    with pytest.raises(UserError, match=message) as error:
        files.read(str(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = 1\n", r"it has no function get_config\(\)"),
        (b"def get_config(size): pass\n", "must take no arguments"),
        (b"\xfe\xff\x00", "SyntaxError|ValueError"),
        (b"\0", "SyntaxError|ValueError"),
        (b"import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quikstart", r"no shipped config 'quikstart'; allowed: .*quickstart.*; did you mean 'quickstart'\?"),
        ("at_scale", "no shipped config 'at_scale'"),
        ("configs/none.py", "no config file configs/none.py"),
        ("x" * 5000, "no shipped config"),
        (f"{'x' * 5000}.py", "no config file"),
        ("", "--config is empty"),
    ],
)
def test_a_config_that_is_not_there_is_refused_with_the_nearest_name(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        files.read(name)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a Python file in it"):
        files.read(str(tmp_path))


def test_a_name_and_a_path_are_the_same_config_and_a_file_may_compute() -> None:
    by_name, by_path = files.read("quickstart"), files.read(str(files.shipped_folder() / "quickstart.py"))
    assert by_name == by_path and by_name.train.beta == 0.3
    assert files.read("llama3_70b").model.path.endswith("llama3_70b")
    assert {"quickstart", "default", "llama3_70b"} < set(files.shipped_names())


def test_a_config_of_plain_dicts_is_checked_as_a_whole() -> None:
    from ml_collections import ConfigDict

    plain = default.get_config().to_dict()
    assert completed(default.get_config(), ConfigDict(plain)) == default.get_config()
    del plain["train"]["beta"]
    with pytest.raises(UserError, match="train.beta is missing"):
        completed(default.get_config(), ConfigDict(plain))
    plain["train"]["beta"] = float("nan")
    with pytest.raises(UserError, match="train.beta is nan; it must be finite, at least 0"):
        completed(default.get_config(), ConfigDict(plain))
