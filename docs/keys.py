"""Writes what pages say of stages and config keys, from the table of stages and the comments of configs/default.py.

    python docs/keys.py

A page has `<!-- keys: train -->` where the table of section `train` belongs (`<!-- keys: top -->` for keys outside of
sections), and `<!-- stage: train -->` where the facts of stage `train` do. What is written ends at `<!-- end -->`.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from qrpo_jax.config import comments
from qrpo_jax.config.config import Config, keys_of
from qrpo_jax.config.files import default_config, shipped_folder
from qrpo_jax.stages import STAGES

DOCS = Path(__file__).parent
MARK = re.compile(r"(<!-- (keys|stage): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OUTSIDE = "top"  # the keys that are in no section


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def places(texts: Mapping[Path, str]) -> dict[str, list[Path]]:
    """The pages that have the table of each section."""
    found: dict[str, list[Path]] = {}
    for path, text in texts.items():
        for _, kind, name, _, _ in MARK.findall(text):
            if kind == "keys":
                found.setdefault(name, []).append(path)
    return found


def written(path: Path, texts: Mapping[Path, str]) -> str:
    """A page as it should be.

    Args:
      texts: of all pages, among which links find the tables of sections.
    """
    make = {"keys": lambda name: table(name), "stage": lambda name: facts(name, path, places(texts))}
    return MARK.sub(lambda mark: f"{mark[1]}{make[mark[2]](mark[3])}\n{mark[5]}", texts[path])


def table(section: str) -> str:
    """The keys of a section as a table."""
    config = default_config()
    about = comments.read((shipped_folder() / "default.py").read_text("utf-8"))
    lines = [about[section], ""] if about.get(section) else []
    lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    prefix = "" if section == OUTSIDE else section
    for name, key in keys_of(config):
        if name.rpartition(".")[0] == prefix:
            inside = config[prefix] if prefix else config
            value = shown(inside[name.rpartition(".")[2]])
            cells = [f"`{name}`", value and f"`{value}`", cell(key.allowed()), cell(about.get(name, ""))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: object) -> str:
    """A default as the command line writes it."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace("\n", "\\n").replace("|", "\\|")


def cell(text: str) -> str:
    """Text for a cell of a table: `|` and what HTML or Markdown would read stays as it is."""
    return re.sub(r"([|<>*\[\]])", r"\\\1", text)


def facts(stage: str, page: Path, where: Mapping[str, list[Path]]) -> str:
    """What the table of stages says about one."""
    record = STAGES[stage]
    lines = list(requirements(stage))
    links = [link(name, page, where) for name in record.sections]
    lines.append(f"Its output depends on the sections {', '.join(links)}, and on the stages before it.")
    if record.machine_keys:
        keys = ", ".join(f"`{key}`" for key in record.machine_keys)
        lines.append(f"These keys may have other values when a run goes on: {keys}.")
    return "\n".join(f"- {line}" for line in lines)


def requirements(stage: str) -> Iterator[str]:
    record, config = STAGES[stage], default_config()
    if record.needs:
        yield f"Needs {', '.join(f'`{name}`' for name in record.needs)} before it" + (
            ", or a source that brings completions." if record.needs == ("sample",) else "."
        )
    if not record.needs_model:
        yield "Needs no weights of a model."
    elif not record.needs_weights(config):
        yield "Needs config.json and the tokenizer of the model, and no weights."
    if record.shardable:
        yield "Splits into units of work: `--shard=i/n` runs one slice on any machine."
    if record.repeats:
        yield "Runs each time that it is named, and no other stage depends on it."


def link(section: str, page: Path, where: Mapping[str, list[Path]]) -> str:
    target = where.get(section, [page])[0]
    if target == page:
        return f"`{section}`"
    return f"[{section}]({Path(os.path.relpath(target, page.parent)).as_posix()}#keys-of-{section})"


def sections() -> list[str]:
    config = default_config()
    return [OUTSIDE, *(name for name in config._fields if isinstance(config[name], Config))]


def main() -> None:
    texts = {path: path.read_text("utf-8") for path in pages()}
    for path in texts:
        new = written(path, texts)
        if new != texts[path]:
            path.write_text(new, "utf-8")
            print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
