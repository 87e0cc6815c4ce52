"""The help shows every stage and every key with its default, its allowed values and its comment."""

import pytest

from configs import default
from qrpo_jax import command_line
from qrpo_jax.config import comments, help
from qrpo_jax.config.config import keys_of
from qrpo_jax.config.files import shipped_folder
from qrpo_jax.errors import UserError
from qrpo_jax.stages import STAGES


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        command_line.read(["qrpo-jax", *words])
    assert leaving.value.code == 0
    return capsys.readouterr().out


def test_help_lists_flags_stages_and_keys_with_their_comments(capsys) -> None:
    text = printed(capsys, "--help")
    for name, _ in keys_of(default.get_config()):
        assert f"\n  {name} = " in text, name
    for name in STAGES:
        assert f"\n  {name} " in text, name
    for line in ("train.learning_rate = 1e-06", "sft.learning_rate = 0.002", "cosine | linear | constant", "--fork"):
        assert line in text, line
    assert "units (completions, or pairs) in a global batch" in text
    assert all(len(line) <= help.WIDTH for line in text.splitlines()), max(map(len, text.splitlines()))


def test_help_of_a_section_or_key_shows_that_section_alone(capsys) -> None:
    for word in ("--help=train", "--help=train.beta", "--help=config.train"):
        text = printed(capsys, word)
        assert "train.beta = 0.1" in text and "KL strength" in text and "sft." not in text, text
    assert "seed = 0" in printed(capsys, "--help=seed")
    with pytest.raises(UserError, match=r"no section trian; allowed: .*; did you mean train\?"):
        command_line.read(["qrpo-jax", "--help=trian"])


def test_every_stage_has_a_sentence() -> None:
    folder = shipped_folder().parent / "qrpo_jax" / "stages"
    for name in STAGES:
        assert len(help.first_sentence(folder / f"{name}.py")) > 10, name


def test_comments_above_and_beside_a_key_belong_to_it() -> None:
    found = comments.read((shipped_folder() / "default.py").read_text())
    assert found["model.layers"] == ""
    assert found["train.warmup_share"] == found["sft.warmup_share"] == "share of all steps"
    assert found["lora"].startswith("Low-rank adapters")
    assert set(found) >= {name for name, _ in keys_of(default.get_config())}


def test_the_version_is_that_of_the_package(capsys) -> None:
    import qrpo_jax

    assert printed(capsys, "--version") == f"qrpo-jax {qrpo_jax.__version__}\n"
