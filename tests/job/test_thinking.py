"""The job's tokenizer has thoughts as the config says, and what its chat template does is said once."""

import pytest

from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError
from tests.helpers import chats, thinking_chats
from tests.helpers.jobs import job

QUESTION = [Message("user", "Why?")]


@pytest.mark.parametrize(
    "thinking, end", [("template", "<think>\n"), ("on", "<think>\n"), ("off", "<think>\n\n</think>\n\n")]
)
def test_the_config_switches_thoughts_in_prompts(tmp_path, capsys, thinking, end):
    thinking_chats.tokenizer("continues").save_pretrained(tmp_path / "model")
    made = job(tmp_path / "run", model__path=str(tmp_path / "model"), model__thinking=thinking)
    assert made.text.tokenizer.decode(made.text.prompt(QUESTION)).endswith("<|im_start|>assistant\n" + end)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("model: the chat template ")]
    assert said == [f"model: the chat template {note}" for note in made.text.notes] and len(said) == 1


def test_a_template_without_thoughts_is_refused_by_key(tmp_path):
    chats.tokenizer("chatml").save_pretrained(tmp_path / "model")
    made = job(tmp_path / "run", model__path=str(tmp_path / "model"), model__thinking="off")
    with pytest.raises(UserError, match=r"set thinking to 'template' \(config.model.thinking\)"):
        made.text  # noqa: B018
