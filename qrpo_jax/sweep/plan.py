"""Which stages the points of a sweep share, and where: found by comparing what each stage's record of settings has.

A stage's record has the settings of all stages before it too (`pipeline.settings`), so points share a first part of
their stages. Each such part runs once, in a folder of its own that is named after its last stage and its settings;
points begin as forks of it. The name does not change when the sweep grows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHARED, POINTS, FAILURES = "shared", "points", "failures"
RECORD = "sweep.json"
Records = Mapping[str, Mapping[str, Any]]  # the settings of each stage of a point, in order


class Part(NamedTuple):
    """A first part of the stages that several points share.

    Attributes:
      folder: its work directory.
      stages: from the first one on.
      parent: the folder of a shorter part, from which it begins; None for the first.
      points: indices of the points that share it.
    """

    folder: Path
    stages: tuple[str, ...]
    parent: Path | None
    points: tuple[int, ...]


class Plan(NamedTuple):
    """The parts by folder, shorter ones first, and for each point the folder of its longest one, or None."""

    parts: dict[Path, Part]
    origins: tuple[Path | None, ...]


def make_plan(workdir: Path, records: Sequence[Records]) -> Plan:
    """The shared parts of points whose stages have these settings.

    Args:
      workdir: of the sweep.
      records: of each point.
    """
    chains = [chain(of_point) for of_point in records]
    counts = Counter(link for links in chains for link in links)
    parts: dict[Path, Part] = {}
    origins: list[Path | None] = []
    for index, (links, of_point) in enumerate(zip(chains, records, strict=True)):
        names, parent = list(of_point), None
        for k, link in enumerate(links):
            shared = counts[link] > 1
            if not shared or (k + 1 < len(links) and counts[links[k + 1]] == counts[link]):
                continue  # only this point has it, or all that have it share the next stage too
            folder = workdir / SHARED / f"{names[k]}-{link[:10]}"
            sharing = (*parts[folder].points, index) if folder in parts else (index,)
            parts[folder] = Part(folder, tuple(names[: k + 1]), parent, sharing)
            parent = folder
        origins.append(parent)
    ordered = sorted(parts.values(), key=lambda part: len(part.stages))
    return Plan({part.folder: part for part in ordered}, tuple(origins))


def begun(workdir: Path, fork: Path | None) -> tuple[Path, ...]:
    """The work directories that a sweep has so far, and the one that it is forked from.

    All jobs of a start look into these for what earlier ones decided, such as the commit of a model of the hub, so that
    all points have the same.
    """
    folders = [path for name in (SHARED, POINTS) for path in sorted((workdir / name).glob("*"))]
    return (*folders, *([] if fork is None else [fork])) or (workdir,)


def chain(records: Records) -> list[str]:
    """A digest for each stage, of its settings and those of all stages before it."""
    links, before = [], ""
    for name, settings in records.items():
        content = json.dumps([before, name, settings], sort_keys=True)
        before = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        links.append(before)
    return links
