"""What stops a run and is no bug: mistakes of a user, and files that changed after they were written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A user's mistake in one line: the value and the allowed values. `main` prints it and exits with status 2.

    Bugs raise other exceptions and keep their traceback. The lower floors know arguments but no config, so they name
    the wrong argument with `about`; the stage that called them adds the config key with `located`.

    Attributes:
      message: one line, without the config key.
      about: the wrong argument, or several that contradict each other.
      keys: config keys such as "train.beta", set by `located`.

    >>> str(UserError("beta is -1; it must be above 0", about="beta"))
    'beta is -1; it must be above 0'
    """

    def __init__(self, message: str, *, about: str | tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.about = (about,) if isinstance(about, str) else about
        self.keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = ", ".join(f"config.{key}" for key in self.keys)
        return f"{self.message} ({where})" if where else self.message


class DamagedError(RuntimeError):
    """A file of a run is not what was written. `main` prints the one line and exits with status 1.

    Attributes:
      path: the file or folder.
      reason: what is wrong with it.
      remedy: what the user can do.

    >>> str(DamagedError(Path("sft/rows.json"), "it is cut", "run again"))
    'sft/rows.json is damaged: it is cut: run again'
    """

    REMEDY = "restore it from a copy, or remove its stage's folder and those of the stages after it, and run again"

    def __init__(self, path: Path, reason: str, remedy: str = REMEDY) -> None:
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.reason}: {self.remedy}"


class ServerError(RuntimeError):
    """A server does not answer as it must, in one line that names it. `main` prints it and exits with status 1.

    Attributes:
      status: of HTTP; 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class FailuresError(RuntimeError):
    """Too many completions have no reward, in one line. `main` prints it and exits with status 1."""


class PointsError(RuntimeError):
    """Points of a sweep failed, in one line that names them. `main` prints it and exits with status 1."""


class PeerError(RuntimeError):
    """Another process of the job is missing, in one line that names it. `main` prints it and exits with status 1."""


def shown(value: object, most: int = 60) -> str:
    """A user's value for a message: its `repr` on one line, shortened.

    >>> shown("word " * 100, 20)
    "'word word word word..."
    """
    try:
        text = repr(value)
    except Exception:  # of a user's class, of a list that is nested too deeply, of an integer with too many digits
        text = f"a {type(value).__name__}"
    return shortened(text, most)


def reason(error: BaseException, most: int = 200) -> str:
    """What an error of a user's code or of a library says, with its type, on one line, shortened.

    >>> reason(KeyError("x")), reason(AssertionError())
    ("KeyError: 'x'", 'AssertionError')
    """
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return shortened(f"{name}: {text}" if text.strip() else name, most)


def shortened(text: str, most: int) -> str:
    """A text on one line, with dots for what comes after `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


@contextmanager
def located(*fallback: str, **keys: str) -> Iterator[None]:
    """Adds config keys to every `UserError` raised inside; the innermost `located` that knows a key decides.

    Args:
      fallback: keys for errors about no argument, or about an argument that is not in `keys`.
      keys: for each argument the config key of its value.

    >>> with located("train.beta", transform="train.transform"):
    ...     raise UserError("transform is 'cube'; allowed: identity, log", about="transform")
    Traceback (most recent call last):
    qrpo_jax.errors.UserError: transform is 'cube'; allowed: identity, log (config.train.transform)
    """
    try:
        yield
    except UserError as error:
        if not error.keys:
            named = tuple(keys[argument] for argument in error.about if argument in keys)
            error.keys = named or fallback
        raise
