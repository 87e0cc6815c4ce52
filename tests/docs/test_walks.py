"""Commands of walks pass every check of their runs, with small model folders and files in place of the named ones."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from qrpo_jax import command_line, main, pipeline
from qrpo_jax.command_line import Request
from qrpo_jax.hugging_face.config import read_settings
from qrpo_jax.hugging_face.tensors import stored_tensors
from tests.helpers import chats, reward_folders
from tests.helpers.pages import ROOT, blocks, typed

LONG = {"max_position_embeddings": 4096}  # as many as the named models have, or fewer
POLICY = reward_folders.LLAMA | LONG | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
CHAT = "--config.prompts.source=jsonl:prompts.jsonl", "--config.reward.path=reward"
# A machine of the tests may hold less than a run asks for.
CODE = "--config.prompts.source=jsonl:many.jsonl", "--config.reward.require_isolation=limits"


def write_policy(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(POLICY))
    shapes = {stored.name: stored.shape for stored in stored_tensors(read_settings(folder))}
    save_file(reward_folders.drawn(shapes), folder / "model.safetensors")
    chats.tokenizer("llama-3").save_pretrained(folder)


@pytest.mark.parametrize("walk, here, runs", [("chat_model", CHAT, 4), ("code_model", CODE, 5)])
def test_runs_of_a_walk_pass_their_checks(
    walk: str, here: tuple[str, ...], runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_policy(tmp_path / "policy")
    reward_folders.write(tmp_path / "reward", reward_folders.CLASSIFIER | LONG)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {i}."}}\n' for i in range(7)))
    text = (ROOT / "docs" / "guides" / f"{walk}.md").read_text("utf-8")
    commands = typed("\n".join(blocks(text, "bash")), tmp_path)
    if walk == "code_model":  # its own problems, often enough for both parts
        (tmp_path / "many.jsonl").write_text((tmp_path / "problems.jsonl").read_text("utf-8") * 3, "utf-8")
    checked = 0
    for name, *words in commands:
        if name != "qrpo-jax" or not words[0].startswith("--config=") or words[-1] == "--config.stages=chat":
            continue
        given = [word for word in words if not word.startswith("--fork=")]
        held_out = [] if "--config.prompts.held_out=0" in given else ["--config.prompts.held_out=0.4"]
        others = "--config.model.path=policy", "--config.prompts.split=", "--config.prompts.count=0"
        request = command_line.read([name, *given, *others, *held_out, *here])
        assert isinstance(request, Request)
        pipeline.check(main.make_job(request))
        checked += 1
    assert checked == runs
