"""The pages build as a site without a warning: every reference within them is found, and API pages have docstrings."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from docs.conf import DOCS, MODULE, contents
from tests.helpers.pages import ROOT

HAS_SPHINX = importlib.util.find_spec("sphinx") is not None


def test_each_module_of_the_api_page_exists() -> None:
    modules = MODULE.findall((DOCS / "api.md").read_text("utf-8"))
    missing = [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert modules and not missing, missing


def test_every_page_is_in_the_contents() -> None:
    named = contents().split("\n")
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    folders = {name.partition("/")[0] for name in named if name.endswith("/*")}
    lost = [page for page in pages if page not in named and page.partition("/")[0] not in folders]
    assert not lost, lost


@pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed: pip install -e '.[docs]'"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    api = (tmp_path / "site" / "docs" / "api.html").read_text("utf-8")
    for described in ("qrpo_jax.losses.qrpo", "qrpo_jax.quantiles.ecdf", "qrpo_jax.optimum.beta_for"):
        assert f'id="{described}"' in api, described
