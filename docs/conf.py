"""Builds these pages as a site: `sphinx-build -W docs build/docs` (extra `docs`).

Pages are plain Markdown that reads as well on a code host. What Sphinx needs besides is added here when it reads them:
the contents, from the folders, and docstrings where api.md has `<!-- module: NAME -->`.
"""

import ast
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
MODULE = re.compile(r"^<!-- module: ([\w.]+) -->$", re.MULTILINE)
CONTENTS = {  # of the start page: pages by their names, and the order of those that are not all of a folder
    "Guides": "guides/*",
    "Stages": "stages\nstages/*\nshared_keys",
    "Using it": "runs\ndata\nrewards\nevaluation\nsweeps\nmodels\nsampling\nlaunch\nsandbox\ntroubleshooting\nquestions\n*",
    "How it works": "api\nroad\npartition_functions\nexactness\npacking\nscale",
}

project = "qrpo-jax"
author = "the authors of qrpo-jax"
release = next(
    ast.literal_eval(node.value)
    for node in ast.parse((DOCS.parent / "qrpo_jax" / "__init__.py").read_text("utf-8")).body
    if isinstance(node, ast.Assign)
)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
root_doc = "index"
html_theme = "furo"
html_title = f"{project} {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False


def contents() -> str:
    """The trees of contents. A page that none names is in the third, so that a new page needs no entry."""
    named = {name for tree in CONTENTS.values() for name in tree.split("\n")}
    others = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in named | {"index"})
    trees = (
        f"```{{toctree}}\n:caption: {title}\n:hidden:\n:glob:\n\n{tree}\n```"
        for title, tree in ((title, tree.replace("\n*", "".join(f"\n{name}" for name in others))) for title, tree in CONTENTS.items())
    )
    return "\n\n".join(trees)


def completed(name: str, text: str) -> str:
    """The text of a page with what Sphinx needs besides."""
    if name == root_doc:
        return f"{text}\n{contents()}\n"
    return MODULE.sub(r"```{eval-rst}\n.. automodule:: \1\n   :members:\n   :no-index-entry:\n```", text)


def setup(app: Any) -> None:
    def read(app: Any, name: str, source: list[str]) -> None:
        source[0] = completed(name, source[0])

    app.connect("source-read", read)
