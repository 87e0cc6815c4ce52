"""Mistakes of a user, as opposed to bugs of this program."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A user's mistake in one line: what was given and what is allowed. `main` prints it and exits with status 2.

    Everything else that is raised is a bug and keeps its traceback. The lower floors know arguments and no config, so
    they say with `about` which argument is wrong; the stage that called them adds the config key with `located`.

    Attributes:
      message: one line, without the config key.
      about: the argument at fault, or several that do not go together.
      keys: config keys such as "train.beta", once `located` has found them.

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


@contextmanager
def located(*otherwise: str, **keys: str) -> Iterator[None]:
    """Names the config keys at fault in every `UserError` raised inside; the innermost `located` that can decides.

    Args:
      otherwise: keys for errors that are about no argument, or about one that is not in `keys`.
      keys: for each argument the config key that it comes from.

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
            error.keys = named or otherwise
        raise
