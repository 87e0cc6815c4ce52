"""Where prompts come from: the table of kinds of sources, and the text that names a source.

The table has what the checks of a config need to know. A source itself is a module in this folder. It is imported when
one of its functions is first called.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from qrpo_jax.data.sources.source import SourceKind


def source(name: str, *, vocabulary: bool = False, **facts: Any) -> SourceKind:
    """The source of the module `name`; `facts` as in `SourceKind`."""
    words = (lambda: _module(name).vocabulary()) if vocabulary else None
    return SourceKind(open=lambda options: getattr(_module(name), f"open_{name}")(options), vocabulary=words, **facts)


def tabular(kind: str, address: str) -> SourceKind:
    """The source of the tables that the module `data/tables/KIND` opens."""
    return SourceKind(
        open=lambda options: _module("tabular").open_tabular(kind, options),
        identity=lambda options: _module("tabular").identity(kind, options),
        address=address,
        completions=True,
        demonstrations=True,
        tests=True,
        answers=True,
        listed=True,
        columns=True,
    )


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


MIX = "mix"  # the kind whose rows are those of others
SOURCES: dict[str, SourceKind] = {
    "programs": source("programs", demonstrations=True, tests=True, vocabulary=True),
    "jsonl": tabular("json_lines", "FILES"),
    "parquet": tabular("parquet", "FILES"),
    "hf": tabular("hub", "ORG/NAME[:CONFIG][@REVISION]"),
    "disk": tabular("saved", "FOLDER"),
    "tfds": tabular("catalogue", "NAME[:VERSION]"),
    "rows": SourceKind(
        open=lambda options: _module("stored_rows").open_rows(options),
        identity=lambda options: _module("stored_rows").identity(options),
        address="FOLDER",
        completions=True,
        demonstrations=True,
        tests=True,
        answers=True,
        listed=True,
    ),
    MIX: SourceKind(
        open=lambda options: _module("mix").open_mix(options, kind_of),
        identity=lambda options: _module("mix").identity(options, kind_of),
        completions=True,
        demonstrations=True,
        tests=True,
        answers=True,
        listed=True,
    ),
    "model": source("model", sampled=True),
}


def split_name(name: str) -> tuple[str, str]:
    """The kind of source that a text names, and its address.

    >>> split_name("hf:org/name:config"), split_name("programs")
    (('hf', 'org/name:config'), ('programs', ''))
    """
    kind, _, address = name.partition(":")
    return kind, address


def kind_of(name: str, sources: Mapping[str, SourceKind] = SOURCES) -> SourceKind:
    """The kind of source that a text names, which must exist."""
    return sources[split_name(name)[0]]
