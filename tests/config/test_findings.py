"""The table of findings: a line is of one setting."""

import importlib

import pytest

from configs import findings
from qrpo_jax.sweep.points import points_of


@pytest.mark.parametrize("name", ["beta", "length", "references", "ties"])
def test_no_two_settings_share_a_line(name: str) -> None:
    config = importlib.import_module(f"configs.finding_{name}").get_config()
    points = [{"settings": point.settings, "folder": point.name} for point in points_of(config)]
    lines = findings.settings(points)
    settings = {str({key: v for key, v in point.settings.items() if key != "seed"}) for point in points_of(config)}
    assert len(lines) == len(settings) and {len(of) for of in lines.values()} == {3}, list(lines)
