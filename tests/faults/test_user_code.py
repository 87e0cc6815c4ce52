"""A user's functions in this process: whatever they do ends in one line, and never the process."""

import itertools
import os
import subprocess
import sys
import threading

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.faults import user_code
from qrpo_jax.faults.user_code import Watch, guard, imported

NAMES = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that can be imported, and returns its name and its file."""

    def write(source):
        name = f"a_users_module_{next(NAMES)}"
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return name, path

    return write


def raise_without_text():
    class SpeechlessError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    raise SpeechlessError


def recurse():
    recurse()


FAULTS = {
    "KeyError: 'x'": lambda: {}["x"],
    "ValueError: a b": lambda: int_of("a\nb"),
    "AssertionError": lambda: (_ for _ in ()).throw(AssertionError()),
    "SpeechlessError": raise_without_text,
    "MemoryError": lambda: (_ for _ in ()).throw(MemoryError()),
    "RecursionError: maximum": recurse,
    "SystemExit: 0": lambda: sys.exit(0),
    "SystemExit: bye": lambda: sys.exit("bye"),
    "GeneratorExit": lambda: (_ for _ in ()).throw(GeneratorExit()),
    "Exit: os._exit(0)": lambda: os._exit(0),
}


def int_of(text):
    raise ValueError(text)


@pytest.mark.parametrize("text", FAULTS)
def test_whatever_a_function_raises_is_one_line_with_its_place(text):
    with pytest.raises(UserError) as caught, guard("reward 'f' failed", "name"):
        FAULTS[text]()
    line = str(caught.value)
    assert line.startswith(f"reward 'f' failed ({text}") and "\n" not in line and len(line) < 400, line
    assert f" in {__file__}, line " in line and caught.value.about == ("name",), line


def test_ctrl_c_and_errors_of_ours_pass():
    with pytest.raises(KeyboardInterrupt), guard("reward", "name"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"^mine$"), guard("reward", "name"):
        raise UserError("mine")


@pytest.mark.filterwarnings("ignore:os.fork")  # the child does nothing but leave
def test_children_of_a_function_may_exit_and_the_exit_comes_back_afterwards():
    leave = os._exit
    with guard("reward", "name"):
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert os._exit is leave


@pytest.mark.parametrize(
    "source, message",
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero in FILE, line 1"),
        ("\nimport no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' in FILE, line 2"),
        ("x = 1\n", "AttributeError: module 'NAME' has no attribute 'f'"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0 in FILE, line 2"),
        ("import os\nos._exit(0)\n", "Exit: os._exit(0) in FILE, line 2"),
        ("def f(:\n", "SyntaxError: invalid syntax (NAME.py, line 1)"),
        ("def __getattr__(name): raise RuntimeError(name)\n", "RuntimeError: f in FILE, line 1"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(module, source, message):
    name, path = module(source)
    with pytest.raises(UserError) as caught:
        imported(f"{name}:f", "no function", "name")
    expected = message.replace("FILE", str(path)).replace("NAME", name)
    assert str(caught.value) == f"no function ({expected})"


@pytest.mark.parametrize("name", [":f", ".module:f", "..:f", "a b:f", "a/b.py:f", "\0:f", "\ud800:f", "json:loads:x"])
def test_names_of_no_function_are_one_line(name):
    with pytest.raises(UserError, match=r"^no function \(\w+Error: ") as caught:
        imported(name, "no function", "name")
    assert "\n" not in str(caught.value)


def test_a_process_whose_function_exits_does_not_end_as_if_it_were_complete(module):
    """Without the guard its status would be 0."""
    name, path = module("import os\ndef f():\n    os._exit(0)\n")
    code = (
        "import sys\nfrom qrpo_jax.faults.user_code import guard, imported\nf = imported(sys.argv[1], 'no', 'name')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code + "with guard('call', 'name'):\n    f()\n", f"{name}:f"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(path.parent), *sys.path])},
    )
    assert run.returncode == 1 and f"call (Exit: os._exit(0) in {path}, line 3)" in run.stderr, run.stderr


def test_a_call_that_does_not_return_is_named_until_it_does():
    said, reached = [], threading.Event()

    def say(line):
        said.append(line)
        reached.set()

    with Watch(0.01, say) as watch:
        watch.calling("reward 'slow' of row 'r'")
        assert reached.wait(30), "nothing was said about a call that takes forever"
    assert said[0].startswith("reward 'slow' of row 'r' has taken 0 s so far, and has no time limit; Ctrl-C"), said
    silent = []
    with Watch(user_code.PATIENCE, silent.append) as watch:
        watch.calling("quick")
    assert not silent
