"""The config of a run: a `ConfigDict` that knows its keys, and refuses other keys and values at once.

A config file starts from `configs/default.py`, so the line with a mistake is the line that raises.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, FieldReference

from qrpo_jax.config.keys import Either, Key, checked, did_you_mean, refuse
from qrpo_jax.errors import UserError, shown


class Config(ConfigDict):
    """A config, or one section of it. Assigning a `Key` defines a key; assigning any other value sets one.

    >>> from qrpo_jax.config.keys import Whole
    >>> config = Config()
    >>> config.train = Config()
    >>> config.train.epochs = Whole(1, least=1)
    >>> config.train.epochs = 0
    Traceback (most recent call last):
    qrpo_jax.errors.UserError: train.epochs is 0; it must be at least 1 (config.train.epochs)
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        object.__setattr__(self, "_keys", {})
        object.__setattr__(self, "_section", "")
        super().__init__(*arguments, **options)

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, Key):
            self._keys[name] = value
            value = value.default
        elif isinstance(value, FieldReference):
            pass  # its value may still change; `completed` checks it
        elif name in self._keys:
            value = checked(self._path(name), self._keys[name], value)
        elif name in self and isinstance(self[name], Config):
            first = next(iter(self[name].own_keys()), "KEY")
            raise UserError(f"{name} is a section; set its keys, as in config.{name}.{first} = ...")
        elif self.is_locked and name not in self:
            raise UserError(self._unknown(name))
        elif isinstance(value, Config):
            object.__setattr__(value, "_section", name)
        if isinstance(self._keys.get(name), Either):
            self._fields[name] = value  # a `ConfigDict` would cast it to the type of the value before
        else:
            super().__setitem__(name, value)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name in self:
                raise
            raise AttributeError(self._unknown(name)) from None

    def own_keys(self) -> dict[str, Key]:
        """The keys of this section alone, in the order of their definition."""
        return self._keys

    def _path(self, name: str) -> str:
        return f"{self._section}.{name}" if self._section else name

    def _unknown(self, name: str) -> str:
        return unknown(self._path(name), [key for key, _ in keys_of(self)] + [self._path(one) for one in self])


def keys_of(config: Config, section: str = "") -> Iterator[tuple[str, Key]]:
    """Every key such as "train.beta" with its kind, in the order of their definition."""
    prefix = section or config._section
    for name, key in config.own_keys().items():
        yield (f"{prefix}.{name}" if prefix else name), key
    for name in config._fields:
        if isinstance(config[name], Config):
            yield from keys_of(config[name], name)


def unknown(name: str, known: list[str]) -> str:
    """What to say of a key that does not exist: the nearest one that does.

    >>> unknown("train.bta", ["train.beta", "train.b1"])
    'no config key train.bta; did you mean train.beta?'
    >>> unknown("beta", ["train.beta", "seed"])
    'no config key beta; did you mean train.beta?'
    """
    namesakes = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = f"; did you mean {' or '.join(namesakes[:3])}?" if namesakes else did_you_mean(name, known, quote="")
    return f"no config key {name}{near or '; --help lists all keys'}"


def completed(default: Config, given: Any) -> Config:
    """The default with the values of a config that was derived from it, each checked.

    Raises:
      UserError: `given` has other keys than the default, or a value that is not allowed.
    """
    names = [key for key, _ in keys_of(default)]
    for section, value in given.items():
        if section not in default:
            raise UserError(unknown(str(section), [*names, *default]))
        if not isinstance(default[section], Config):
            default[section] = value
            continue
        if not isinstance(value, ConfigDict):
            raise UserError(f"{section} is {shown(value)}; it must be a section with the keys of the default config")
        for name, of_key in value.items():
            if name not in default[section]:
                raise UserError(unknown(f"{section}.{name}", names))
            default[section][name] = of_key
    for name in names:
        section, _, key = name.rpartition(".")
        if key not in (given.get(section, {}) if section else given):
            raise refuse(name, "missing; start from default.get_config()")
    return default
