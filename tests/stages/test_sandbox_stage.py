"""Stage `sandbox` says what is held here, and a run refuses less than it asks for before anything else happens."""

import json
from pathlib import Path

import pytest

from configs import quickstart
from qrpo_jax import main
from qrpo_jax.errors import UserError
from qrpo_jax.job.code_sandbox import check_sandbox
from qrpo_jax.rewards.sandbox import launch, pool


def test_the_table_says_what_each_level_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--config.stages=sandbox"]
    main.run(["qrpo-jax", *flags, "--config.reward.workers=1"])
    output = capsys.readouterr()
    printed = output.out + output.err
    found = json.loads((tmp_path / "sandbox" / "sandbox.json").read_text())
    assert list(found) == ["bubblewrap", "kernel", "limits"]
    for level, one in found.items():
        held = [one["protections"].get(name) for name in pool.HELD]
        assert all(held) == (one["level"] in ("kernel", "bubblewrap")), (level, one)
        assert one["level"] == level or one["why"], (level, one)
    assert found["limits"]["protections"]["cpu"] and found["limits"]["programs_per_second"] > 5
    assert "start or signal processes" in printed and "refuses less than" in printed


def test_a_weaker_level_than_required_is_refused_in_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "bubblewrap", lambda: "")
    config = quickstart.get_config().reward
    config.require_isolation = "bubblewrap"
    with pytest.raises(UserError) as caught:
        check_sandbox(config)
    message = str(caught.value)
    assert "'bubblewrap' is required: bubblewrap is not installed" in message, message
    assert "config.reward.require_isolation" in message and "\n" not in message, message
    config.require_isolation, config.isolation = "kernel", "limits"
    with pytest.raises(UserError, match="isolated by 'limits' here, 'kernel' is required"):
        check_sandbox(config)
    config.require_isolation = "limits"
    check_sandbox(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("python", "/no/such/python", "does not start"),
        ("preload", ("no_such_module",), "No module named 'no_such_module'"),
        ("command", "no-such-runtime run", "'no-such-runtime' does not start"),
    ],
)
def test_what_does_not_start_is_a_users_mistake(key: str, value: object, message: str) -> None:
    config = quickstart.get_config().reward
    config[key] = value
    with pytest.raises(UserError, match=message) as caught:
        check_sandbox(config)
    assert f"config.reward.{key}" in str(caught.value), caught.value
