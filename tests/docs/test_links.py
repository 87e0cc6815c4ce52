"""No page has a dead link within the project, and every page is near the README. Addresses of the web are not asked."""

from pathlib import Path

import pytest

from tests.helpers.pages import PAGES, ROOT, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_has_its_file_and_anchor(page: Path) -> None:
    dead = []
    for link in links(page.read_text("utf-8")):
        if "://" in link.target:
            continue
        file, _, anchor = link.target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or not path.is_relative_to(ROOT):
            dead.append(f"{link.target}: no such file")
        elif anchor and anchor not in set(anchors(path.read_text("utf-8"))):
            dead.append(f"{link.target}: no such heading")
    assert not dead, dead


def test_every_page_is_two_clicks_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    for _ in range(2):
        found = {
            (page.parent / link.target.partition("#")[0]).resolve()
            for page in reached
            for link in links(page.read_text("utf-8"))
            if link.target.partition("#")[0].endswith(".md") and "://" not in link.target
        }
        reached |= found
    far = [name_of(page) for page in PAGES if page not in reached]
    assert not far, far


def test_the_readme_leads_to_every_walk() -> None:
    linked = {link.target for link in links((ROOT / "README.md").read_text("utf-8"))}
    walks = {name_of(page) for page in PAGES if page.parent.name == "guides"}
    assert walks and walks <= linked, walks - linked


def test_a_heading_has_the_anchor_that_code_hosts_give_it() -> None:
    text = "# Keys of `log_probs`\n## A [link](b.md), and 2 × 3\n## Twice\n## Twice\n```\n# code\n```\n"
    assert list(anchors(text)) == ["keys-of-log_probs", "a-link-and-2--3", "twice", "twice-1"]
