"""Builds these pages as a site: `sphinx-build -W -c docs . build/site` in the repository's folder (extra `docs`).

Pages are plain Markdown that reads as well on a code host. What Sphinx needs besides is added here when it reads them:
the contents, from the folders, and docstrings where api.md has `<!-- module: NAME -->`.
"""

import ast
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
MODULE = re.compile(r"^<!-- module: ([\w.]+) -->$", re.MULTILINE)
OTHERS = "*"  # pages of the folder that no part names, so that a new page needs no entry
CONTENTS = {
    "Guides": ["guides/*"],
    "Stages": ["stages", "stages/*", "shared_keys"],
    "Using it": [
        *("runs", "data", "rewards", "evaluation", "sweeps", "models", "sampling", "launch", "sandbox"),
        *(OTHERS, "troubleshooting", "questions"),
    ],
    "How it works": ["api", "partition_functions", "exactness", "packing", "scale", "road"],
    "The project": ["../README", "../CHANGELOG", "../CONTRIBUTING"],
}

project = "qrpo-jax"
author = "the authors of qrpo-jax"
release = next(
    ast.literal_eval(node.value)
    for node in ast.parse((DOCS.parent / "qrpo_jax" / "__init__.py").read_text("utf-8")).body
    if isinstance(node, ast.Assign)
)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
default_role = "code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and units
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes that a docstring lists are not described a second time


def contents() -> str:
    """The trees of contents of the start page, one a part."""
    named = {name for part in CONTENTS.values() for name in part} | {"index"}
    others = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in named)
    trees = []
    for title, part in CONTENTS.items():
        names = [name for entry in part for name in (others if entry == OTHERS else [entry])]
        trees.append("\n".join(["```{toctree}", f":caption: {title}", ":hidden:", ":glob:", "", *names, "```"]))
    return "\n\n".join(trees)


def completed(page: str, text: str) -> str:
    """The text of a page with what Sphinx needs besides."""
    if page == root_doc:
        return f"{text}\n{contents()}\n"
    return MODULE.sub(r"```{eval-rst}\n.. automodule:: \1\n   :members:\n```", text)


def setup(app: Any) -> None:
    def read(app: Any, page: str, source: list[str]) -> None:
        source[0] = completed(page, source[0])

    def skips(app: Any, kind: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
        """Fields of named tuples have no words of their own; docstrings of the classes describe them."""
        return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None

    def begin(app: Any, error: Exception | None) -> None:
        start = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(start, "utf-8")

    app.connect("source-read", read)
    app.connect("autodoc-skip-member", skips)
    app.connect("build-finished", begin)
