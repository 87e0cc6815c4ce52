"""What the README shows works as it says."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs_and_gives_the_numbers_beside_it() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    np.testing.assert_allclose(names["quantile"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(names["transforms"].identity.log_z(0.1), 7.6974, atol=5e-5)


def test_every_module_of_the_road_and_every_link_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert len(links) > 20 and not missing, missing


def test_every_key_of_a_config_is_a_key_of_the_default() -> None:
    from configs import default, optimum, quickstart, stories

    known = default.get_config()
    for config in (quickstart.get_config(), stories.get_config(), optimum.get_config()):
        for section, value in config.items():
            assert section in known
            if hasattr(value, "keys"):
                assert set(value.keys()) == set(known[section].keys()), section
