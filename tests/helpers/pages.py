"""Pages in Markdown: their blocks of code, links and anchors, and the commands of their blocks."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
LAUNCHERS = sorted(f"launch/{path.name}" for path in (ROOT / "launch").glob("*.s[hb]*"))
STAND_IN = r"{name}() {{ printf '%s\0' {name} \"$@\" $'\x1e' >> \"$COMMANDS\"; }}".replace('\\"', '"')


class Link(NamedTuple):
    text: str
    target: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in their order."""
    return [code for _, name, code in FENCE.findall(text) if name.strip() == language]


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"(`+)[^`]+\1", "`code`", FENCE.sub("", text))


def links(text: str) -> list[Link]:
    """Links and pictures."""
    return [Link(*found) for found in re.findall(r"\[([^\]\[]*)\]\(([^)\s]+)\)", prose(text))]


def anchors(text: str) -> Iterator[str]:
    """The anchors of headings, as code hosts and MyST make them."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.*?)\s*$", FENCE.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        times = seen.get(anchor, 0)
        seen[anchor] = times + 1
        yield f"{anchor}-{times}" if times else anchor


def typed(script: str, folder: Path) -> list[list[str]]:
    """The words of the commands of a script, as bash passes them on, in a folder.

    Commands that install, compute, or ask a cluster are stand-ins, which only note their words. All others run: `cat`
    writes the files that a page shows.
    """
    names = ["qrpo-jax", "python", "pip", "pytest", "sbatch", "bash", "pre-commit", *LAUNCHERS]
    noted = folder / "commands"
    lines = [f"COMMANDS={noted}", *(STAND_IN.format(name=name) for name in names), script]
    words = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not noted.exists():
        return []
    return [command.split("\0")[:-1] for command in noted.read_text("utf-8").split("\x1e\0")[:-1]]
