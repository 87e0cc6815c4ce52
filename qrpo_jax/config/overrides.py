"""`--config.SECTION.KEY=VALUE`: single keys set on the command line."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from qrpo_jax.config.config import Config, keys_of, unknown
from qrpo_jax.config.keys import Key, Switch, refuse
from qrpo_jax.errors import UserError

FLAG = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]*)(?P<equals>=)?(?P<value>.*)", re.DOTALL)


class Override(NamedTuple):
    """One key and its text; the text is None if the command line has the key alone."""

    key: str
    text: str | None


def split(words: Sequence[str], config: Config) -> tuple[list[str], list[Override]]:
    """The words of a command line that are no overrides, and the overrides.

    A value may also be the next word. A switch needs none: `--config.log.wandb` is True, `--noconfig.log.wandb` False.

    Args:
      config: has the keys that there are.

    >>> config = Config()
    >>> config.on = Switch(False)
    >>> split(["--config.on", "--workdir=runs/a", "--config.off", "x"], config)
    (['--workdir=runs/a'], [Override(key='on', text='true'), Override(key='off', text='x')])
    """
    switches = {name for name, key in keys_of(config) if isinstance(key, Switch)}
    rest: list[str] = []
    overrides: list[Override] = []
    ahead = iter(words)
    for word in ahead:
        found = FLAG.fullmatch(word)
        if found is None:
            rest.append(word)
        elif found["equals"]:
            overrides.append(Override(("no" if found["no"] else "") + found["key"], found["value"]))
        elif found["key"] in switches:
            overrides.append(Override(found["key"], "false" if found["no"] else "true"))
        else:
            overrides.append(Override(found["key"], next(ahead, None)))
    return rest, overrides


def apply(config: Config, overrides: Sequence[Override]) -> None:
    """Sets the keys, in order.

    Raises:
      UserError: no such key, or a value that it does not allow.
    """
    keys: dict[str, Key] = dict(keys_of(config))
    for name, text in overrides:
        if name in config and isinstance(config[name], Config):
            raise UserError(f"{name} is a section; set its keys, as in --config.{name}.KEY=VALUE (--help={name})")
        if name not in keys:
            raise UserError(unknown(name, [*keys, *config]))
        if text is None:
            raise refuse(name, f"without a value; write --config.{name}=VALUE")
        section, _, last = name.rpartition(".")
        (config[section] if section else config)[last] = keys[name].parse(text)
