"""What the pages of reports hold: their text without markup, and the texts of their plots."""

import base64
import html
import re
from xml.etree import ElementTree

from qrpo_jax.job.job import Job
from qrpo_jax.stages import report

SVG = "{http://www.w3.org/2000/svg}"


def page_of(job: Job) -> str:
    """The page that stage `report` writes."""
    report.run(job)
    return (job.folder("report") / "report.html").read_text(encoding="utf-8")


def plots(page: str) -> dict[str, tuple[str, str]]:
    """The dark and the light SVG of each plot, by its name."""
    found = {}
    for picture in re.findall(r"<picture>.*?</picture>", page, re.DOTALL):
        (name,) = re.findall(r'data-plot="([^"]*)"', picture)
        images = re.findall(r'="data:image/svg\+xml;base64,([^"]*)"', picture)
        dark, light = (base64.b64decode(image).decode() for image in images)
        assert html.unescape(name) not in found, name
        found[html.unescape(name)] = dark, light
    return found


def words_of(svg: str) -> str:
    """All texts of a plot, one after the other."""
    return " ".join("".join(text.itertext()).strip() for text in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def plain(page: str) -> str:
    """A page, or a part of it, without markup, with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
