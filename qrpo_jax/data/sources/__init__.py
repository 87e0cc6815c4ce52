"""Where prompts come from: one module a source, and the table that names them.

The table has what the checks of a config need to know. The source itself is the module of that name in this folder,
with functions `open_NAME` and, if a model that is trained from scratch can read its prompts, `vocabulary`. It is
imported when one of them is first called.
"""

import importlib
from typing import Any

from qrpo_jax.data.sources.source import SourceKind


def source(name: str, *, vocabulary: bool = False, **facts: bool) -> SourceKind:
    """The source of the module `name`; `facts` as in `SourceKind`."""

    def module() -> Any:
        return importlib.import_module(f"{__name__}.{name}")

    words = (lambda: module().vocabulary()) if vocabulary else None
    return SourceKind(open=lambda options: getattr(module(), f"open_{name}")(options), vocabulary=words, **facts)


SOURCES: dict[str, SourceKind] = {
    "programs": source("programs", demonstrations=True, tests=True, vocabulary=True),
    "jsonl": source("jsonl", completions=True, demonstrations=True, tests=True, listed=True),
    "model": source("model", sampled=True),
}
