"""What `--help` prints: flags, stages, and every config key with its default, the allowed values and its comment."""

import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path

from qrpo_jax.config import comments
from qrpo_jax.config.config import Config, keys_of
from qrpo_jax.config.files import default_config, shipped_folder, shipped_names
from qrpo_jax.config.keys import did_you_mean
from qrpo_jax.errors import UserError

WIDTH = 110
COMMAND = "qrpo-jax --config=NAME --workdir=DIR [--config.SECTION.KEY=VALUE ...]"


def page(flags: Mapping[str, str], stages: Mapping[str, str], section: str = "") -> str:
    """The help as text.

    Args:
      flags, stages: a line about each, by name.
      section: show this section of the config alone, or that of this key; "" for everything.

    Raises:
      UserError: there is no such section.
    """
    config = default_config()
    about = comments.read((shipped_folder() / "default.py").read_text("utf-8"))
    sections = [name for name in config._fields if isinstance(config[name], Config)]
    if section:
        section = section.removeprefix("config.")
        if section in dict(keys_of(config)):
            return "\n".join(section_lines(config, about, section.rpartition(".")[0]))
        if section not in sections and section not in stages:
            near = did_you_mean(section, [*sections, *stages], quote="")
            raise UserError(f"no section {section}; allowed: {', '.join(sections)}{near} (--help)")
        lines = [f"stage {section}: {stages[section]}", ""] if section in stages else []
        lines += section_lines(config, about, section) if section in sections else ["It has no config keys."]
        return "\n".join(lines)
    lines = [f"usage: {COMMAND}", "   or: python -m qrpo_jax ..., which is the same", "", "flags:"]
    lines += [line for name, text in flags.items() for line in entry(f"--{name}", text)]
    lines += ["", "shipped configs, for --config:", *wrapped(", ".join(shipped_names()))]
    lines += ["", "stages, for config.stages; they run in the order in which it names them:"]
    lines += [line for name, text in stages.items() for line in entry(name, text)]
    lines += ["", "config keys, for --config.KEY=VALUE, with their defaults (--help=SECTION shows one section):", ""]
    lines += section_lines(config, about, "")
    for name in sections:
        lines += ["", *section_lines(config, about, name)]
    return "\n".join(lines)


def section_lines(config: Config, about: Mapping[str, str], section: str) -> list[str]:
    """The keys of one section, or for "" those outside of sections."""
    lines = []
    if section:
        lines += [f"[{section}]", *(wrapped(about[section], indent=2) if about.get(section) else [])]
    for name, key in keys_of(config):
        if name.rpartition(".")[0] != section:
            continue
        inside = config[section] if section else config
        value = inside[name.rpartition(".")[2]]
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value if value != "" else '""'
        line = str(shown).replace("\n", "\\n")
        lines.append(f"  {name} = {line}")
        text = ". ".join(part.rstrip(".") for part in (key.allowed(), about.get(name, "")) if part)
        lines += wrapped(text, indent=6)
    return lines


def entry(name: str, text: str) -> list[str]:
    first, *rest = wrapped(text, indent=24)
    return [f"  {name:<20}  {first.strip()}" if len(name) <= 20 else f"  {name}  {first.strip()}", *rest]


def wrapped(text: str, indent: int = 2) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring, without the name in front: "Stage `sft`: fine-tunes ..."."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].rpartition("`: ")[2].rstrip(".")
