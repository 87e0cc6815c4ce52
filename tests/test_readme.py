"""README and docs are true: the example runs, and files and config keys that they mention exist (links: `docs/`)."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from configs import default, optimum, quickstart, stories
from tests.helpers.pages import PAGES, ROOT, blocks, name_of


def test_the_library_example_runs_and_gives_the_numbers_beside_it() -> None:
    (code,) = blocks((ROOT / "docs" / "api.md").read_text(encoding="utf-8"), "python")
    names: dict = {}
    exec(code, names)
    np.testing.assert_allclose(names["quantile"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(names["transforms"].identity.log_z(0.1), 7.6974, atol=5e-5)
    np.testing.assert_allclose(names["optimum"].kl(0.3, names["transforms"].identity), 0.3636, atol=5e-5)
    np.testing.assert_allclose(names["beta"], 0.2083, atol=5e-5)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_named_file_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = [ROOT / name for name in re.findall(r"`((?:configs|launch|tests|docs|qrpo_jax)/[\w./]+\w)", text)]
    missing = [str(path) for path in files if not path.exists()]
    assert not missing, missing


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80, len(lines)


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "configs").glob("*.py"))], ids=name_of)
def test_every_mentioned_config_key_exists(page: Path) -> None:
    config = default.get_config()
    text = page.read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(text)) or "") if page.suffix == ".py" else text
    for key in re.findall(r"(?<![\w-])config\.([a-z_]+(?:\.[a-z_]+)?)", text):
        section, _, name = key.partition(".")
        if (section, name) == ("get", "") or section in ("json", "py", "yaml"):
            continue
        assert section in config, f"{page.name}: config.{key}"
        assert not name or name in config[section], f"{page.name}: config.{key}"


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "configs").glob("*.py"))], ids=name_of)
def test_no_figure_is_left_to_be_filled_in(page: Path) -> None:
    words = re.findall(r"^[A-Z]{4,}$|\b[A-Z]+_(?:TIME|COUNT|FIGURES)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert not words, words


def test_every_key_of_a_config_is_a_key_of_the_default() -> None:
    known = default.get_config()
    for config in (quickstart.get_config(), stories.get_config(), optimum.get_config()):
        for section, value in config.items():
            assert section in known
            if hasattr(value, "keys"):
                assert set(value.keys()) == set(known[section].keys()), section
