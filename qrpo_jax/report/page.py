"""Pages of reports: templates filled with numbers, and with text that may be hostile."""

import base64
import hashlib
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from qrpo_jax.report.tables import shown
from qrpo_jax.report.texts import number, visible

PAGE = "report.html"  # name of a page on disk
TEMPLATES = "templates"


class Script(NamedTuple):
    """A script that a page may run, and the digest by which browsers know it; they run no other one."""

    code: Markup
    digest: str


def script(name: str) -> Script:
    """A script among the templates."""
    code = resources.files("qrpo_jax.report").joinpath(TEMPLATES, name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return Script(Markup(code), f"sha256-{digest}")


def render(template: str, /, script: Script | None = None, **parts: Any) -> str:
    """Fills a template with its parts; everything that is not Markup is escaped."""
    loader = jinja2.PackageLoader("qrpo_jax.report", TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "visible": visible, "shown": shown}
    return environment.get_template(template).render(script=script, **parts)
