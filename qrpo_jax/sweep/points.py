"""The points of a sweep: the combinations of its values, each with a whole config and a name for its folder.

Imports no jax, so that a mistake in `config.sweep` is answered at once.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qrpo_jax.config.config import Config, completed, keys_of, unknown
from qrpo_jax.config.files import default_config
from qrpo_jax.config.grids import Grid
from qrpo_jax.config.keys import refuse
from qrpo_jax.errors import UserError

SWEEP, SEED = "sweep", "seed"
# Keys that a process has once, whatever it runs, or that are about all points together.
NOT_SWEPT = {
    SWEEP: "it is the sweep itself",
    "stages": "all points have the same stages",
    "mesh.cpu_devices": "a process has one number of devices",
}
COLLECT = "collect"  # the section about all points
LONGEST = 200  # bytes of a name; file systems allow 255, and temporary names have more


class Point(NamedTuple):
    """One combination of a sweep.

    Attributes:
      name: of its folder.
      settings: the swept keys with their values, in the order of the sweep.
      config: all keys; its own `sweep` is empty.
    """

    name: str
    settings: dict[str, Any]
    config: Config


def points_of(config: Config) -> tuple[Point, ...]:
    """The points of a config's sweep in order: grid by grid, the last key of a grid fastest; empty without a sweep.

    Raises:
      UserError: no such key, one that cannot be swept, a value that it does not allow, or a point that is there twice.
    """
    points: dict[str, Point] = {}
    if config[SWEEP]:
        check_collect(config)
    try:
        for grid in config[SWEEP]:
            for settings in combinations(grid):
                point = make_point(config, settings)
                if point.name in points:
                    raise UserError(f"the sweep has the point {point.name} twice")
                points[point.name] = point
        check_published(points.values())
    except UserError as error:
        error.keys = (SWEEP, *(key for key in error.keys if key != SWEEP))
        raise
    return tuple(points.values())


def check_collect(config: Config) -> None:
    """Refuses keys of `collect.method` that do not exist, and Best-of-N of more completions than are evaluated.

    Raises:
      UserError: naming the first one.
    """
    names = [key for key, _ in keys_of(config)]
    for name in config.collect.method:
        if name not in names:
            raise refuse("collect.method", unknown(name, names))
    most = config.evaluate.completions
    for n in config.collect.best_of:
        if n > most:
            raise refuse("collect.best_of", f"{n}; allowed: up to evaluate.completions, which is {most}", "has")


def check_published(points: Iterable[Point]) -> None:
    """Refuses points that would all be published as one model of the hub.

    Raises:
      UserError: naming two of them.
    """
    seen: dict[str, str] = {}
    for point in points:
        name = point.config.export.push_to_hub
        if name and name in seen:
            raise UserError(
                f"points {seen[name]} and {point.name} would both be published as {name}; give each a name of its own, "
                "or publish none (config.export.push_to_hub)"
            )
        seen[name] = point.name


def check_shard(shard: tuple[int, int], points: Sequence[Point], *, forked: bool) -> None:
    """Refuses a shard of a run that is forked, and more shards than a sweep has points.

    Raises:
      UserError: naming the flags.
    """
    if forked and shard[1] > 1 and not points:
        raise UserError("--fork is for the first start of a run: start once without --shard")
    if points and shard[1] > len(points):
        raise UserError(
            f"--shard={shard[0]}/{shard[1]}: a sweep is split by its points, and this one has {len(points)}; allowed: "
            f"n up to {len(points)}; to split the units of shared stages, run these alone (docs/sweeps.md)"
        )


def combinations(grid: Grid) -> Iterator[dict[str, Any]]:
    """Each combination of the values of a grid, the last key fastest."""
    names = [name for name, _ in grid]
    for values in itertools.product(*(values for _, values in grid)):
        yield dict(zip(names, values, strict=True))


def make_point(config: Config, settings: Mapping[str, Any]) -> Point:
    """The point with these values, each checked by its key."""
    own = completed(default_config(), config)
    own[SWEEP] = ()
    known = [key for key, _ in keys_of(own)]
    checked: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            raise UserError(unknown(name, known))
        section, _, last = name.rpartition(".")
        if name in NOT_SWEPT or section == COLLECT:
            raise UserError(f"{name} cannot be swept: {NOT_SWEPT.get(name, 'it is about all points together')}")
        (own[section] if section else own)[last] = value
        checked[name] = (own[section] if section else own)[last]
    return Point(point_name(checked, known), checked, own)


def point_name(settings: Mapping[str, Any], known: list[str]) -> str:
    """The name of a folder. It depends on the point alone, so a sweep that grows finds its earlier points.

    >>> point_name({"train.beta": 0.3, "train.learning_rate": 1e-06, "seed": 0}, ["train.beta", "sft.learning_rate",
    ...     "train.learning_rate", "seed"])
    'beta=0.3,train.learning_rate=1e-06,seed=0'
    """
    parts = [f"{short_key(key, known)}={slug(value)}" for key, value in settings.items()]
    name = ",".join(parts)
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore')}-{digest(name)}"


def short_key(key: str, known: list[str]) -> str:
    """The last word of a key, if no other key ends with it; else the whole key."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in known) == 1 else key


def slug(value: Any) -> str:
    """A value for the name of a folder; what a name cannot have becomes a hyphen, and a digest keeps names apart.

    >>> slug(1e-6), slug("normal-icdf"), slug("power(0.7)")
    ('1e-06', 'normal-icdf', 'power-0.7-1b4fc926')
    """
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    kept = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")
    return kept if kept == text else f"{kept}-{digest(text)}".lstrip("-")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
