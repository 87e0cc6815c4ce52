"""Each error that docs/troubleshooting.md quotes is an error of the program: its text is one of the source."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.pages import ROOT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
QUOTED = re.findall(r"^### (.*)$", TEXT, re.MULTILINE)
ANY = "…"  # stands for what a message fills in


def templates(node: ast.AST) -> Iterator[str]:
    """The texts of an expression, with ANY for what is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else ANY for part in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in templates(node.left):
            yield from (left + right for right in templates(node.right))


def all_templates() -> set[str]:
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "qrpo_jax").rglob("*.py"))]
    return {text for tree in trees for node in ast.walk(tree) for text in templates(node)}


SOURCE = all_templates()


@pytest.mark.parametrize("heading", QUOTED, ids=lambda heading: heading.strip("`")[:40])
def test_the_source_has_the_quoted_error(heading: str) -> None:
    assert re.fullmatch("`[^`]+`", heading), heading
    text = heading.strip("`")
    assert len(text.replace(ANY, "").strip()) > 12, f"{text}: too short to be found again"
    if not any(text in one for one in SOURCE):
        near = max(SOURCE, key=lambda one: len(set(one.split()) & set(text.split())))
        pytest.fail(f"no message has the text {text!r}; the nearest one is {near!r}")


def test_a_text_that_no_message_has_is_noticed() -> None:
    assert not any("no shipped config of this name" in one for one in SOURCE)
    assert len(QUOTED) >= 40, len(QUOTED)
