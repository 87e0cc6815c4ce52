"""The tables of config keys are those of configs/default.py, and every stage and section has its place."""

from collections import Counter
from pathlib import Path

import pytest

from docs import keys
from qrpo_jax.stages import STAGES
from tests.helpers.pages import name_of

TEXTS = {path: path.read_text("utf-8") for path in keys.pages()}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_a_page_has_the_keys_of_the_defaults(page: Path) -> None:
    written = keys.written(page, TEXTS)
    differing = [new for new, old in zip(written.splitlines(), TEXTS[page].splitlines(), strict=False) if new != old]
    assert written == TEXTS[page], f"run `python docs/keys.py`; it changes {differing[:3]}"


def test_each_section_is_on_one_page() -> None:
    where = Counter({section: len(pages) for section, pages in keys.places(TEXTS).items()})
    missing, twice = Counter(keys.sections()) - where, where - Counter(keys.sections())
    assert not missing, (
        f"put `<!-- keys: NAME -->` and `<!-- end -->` on a page of docs/, and run docs/keys.py: {missing}"
    )
    assert not twice, f"more than one page has, or no section is called: {twice}"


def test_each_stage_has_a_page_with_what_the_table_of_stages_says() -> None:
    stages = {path.stem for path in TEXTS if path.parent.name == "stages"}
    assert stages == set(STAGES), f"docs/stages has no page, or one of no stage: {stages ^ set(STAGES)}"
    for name in STAGES:
        assert f"<!-- stage: {name} -->" in TEXTS[keys.DOCS / "stages" / f"{name}.md"], name


def test_a_comment_that_has_signs_of_markdown_is_shown_as_it_is() -> None:
    assert keys.cell("v5p:4x4x8*2 | [a] <b>") == r"v5p:4x4x8\*2 \| \[a\] \<b\>"
