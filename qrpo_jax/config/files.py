"""Config files: those that come with the package, by name, and those of the user, by path."""

import ast
import importlib.util
import inspect
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from qrpo_jax.config.config import Config, completed
from qrpo_jax.config.keys import did_you_mean
from qrpo_jax.errors import UserError, shown
from qrpo_jax.faults import user_code

PACKAGE = Path(__file__).resolve().parents[1]
FUNCTION = "get_config"


def shipped_folder() -> Path:
    """The folder `configs`: inside an installed package, beside the package in a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def shipped_names() -> list[str]:
    """The names that `--config` takes without a path."""
    names = []
    for path in sorted(shipped_folder().glob("*.py")):
        functions = {node.name: node for node in ast.parse(path.read_text("utf-8")).body if hasattr(node, "name")}
        function = functions.get(FUNCTION)
        if isinstance(function, ast.FunctionDef) and not function.args.args:
            names.append(path.stem)
    return names


def default_config() -> Config:
    """Every key with its default."""
    import_shipped()
    return importlib.import_module("configs.default").get_config()


def import_shipped() -> None:
    """Makes `from configs import default` mean the shipped file, from any folder and for an installed package too."""
    shipped = str(shipped_folder())
    try:
        package: Any = importlib.import_module("configs")
        others = [path for path in package.__path__ if path != shipped]
    except (ImportError, AttributeError):
        package, others = types.ModuleType("configs"), []
        sys.modules["configs"] = package
    package.__path__ = [shipped, *others]


def find(name: str) -> Path:
    """The config file of a name or path.

    Raises:
      UserError: there is no such file.
    """
    if not name:
        raise UserError(f"--config is empty; name a config ({', '.join(shipped_names())}) or the path of a file")
    path = Path(name)
    if path.suffix != ".py" and len(path.parts) == 1 and not os.path.exists(path):
        names = shipped_names()
        if name in names:
            return shipped_folder() / f"{name}.py"
        near = did_you_mean(name, names)
        allowed = f"allowed: {', '.join(names)}, or the path of a file"
        raise UserError(f"no shipped config {shown(name)}; {allowed}{near} (--config)")
    # os.path.exists is False where Path.exists raises: for a path that is too long, or in a folder that is closed.
    if os.path.isdir(path):
        raise UserError(f"--config={shown(name)} is a folder; name a Python file in it")
    if not os.path.exists(path):
        raise UserError(f"no config file {name}{did_you_mean(path.stem, shipped_names())}; see --config")
    return path


def read(name: str) -> Config:
    """The config that a file's `get_config()` returns, with every key checked.

    Args:
      name: of a shipped config, or the path of a file.

    Raises:
      UserError: no such file, or a mistake in it; the message has its line.
    """
    path = find(name)
    default = default_config()
    # Files beside the config can be imported as FOLDER.NAME, from any working directory.
    sys.path.append(str(path.resolve().parent.parent))
    try:
        with user_code.no_exit(), user_code.Watch() as watch:
            watch.calling(f"the config {path}")
            given = run(path)
    except UserError as error:
        raise UserError(f"{at_line(path, error)}: {error}") from None
    except KeyboardInterrupt:
        raise
    except (SystemExit, user_code.Exit) as error:
        raise UserError(f"{at_line(path, error)}: the file ends the program") from None
    except BaseException as error:
        raise UserError(f"{at_line(path, error)}: {type(error).__name__}: {message(error)}") from None
    if not isinstance(given, ConfigDict):
        kind = type(given).__name__
        raise UserError(f"{path}: {FUNCTION}() returned {kind}; it must return the config from default.get_config()")
    try:
        return completed(default, given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def run(path: Path) -> Any:
    """What `get_config` of the file returns."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"it cannot be read: {reason(error)}") from None
    module = types.ModuleType("config_of_this_run")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # for dataclasses and others that look their module up
    exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise UserError(f"it has no function {FUNCTION}()")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(f"{FUNCTION}() must take no arguments: {error}") from None
    return function()


def at_line(path: Path, error: BaseException) -> str:
    """The file with the innermost line of it that an error passed through, or that is not Python."""
    line = None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno
    elif not isinstance(error, SyntaxError):
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    return f"{path}, line {line}" if line else str(path)


def message(error: BaseException) -> str:
    """An error's message; that of a KeyError, or of one inside another error, without the quotes around it."""
    inner = error.args[0] if error.args else ""
    if isinstance(inner, BaseException):
        return message(inner)
    if isinstance(error, SyntaxError):
        return str(error.msg)
    return str(inner) if isinstance(error, KeyError) else str(error)


def reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
