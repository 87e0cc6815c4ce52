"""Stage chat: lines in, answers out."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.stages import chat
from tests.helpers.jobs import job, refused

SMALL: dict[str, Any] = {
    "stages": ("sft", "sample", "score", "reference", "train", "export"),
    "prompts__count": 13,
    "prompts__held_out": 3,
    "sft__examples": 61,
    "sft__batch_size": 31,
    "sample__completions": 2,
    "sample__max_new_tokens": 5,
    "reward__name": "tests.helpers.text_rewards:digits",
    "train__batch_size": 13,
    "train__learning_rate": 0.03,
    "log__tensorboard": False,
    "mesh__cpu_devices": 1,
}
TALKING = SMALL | {"stages": ("chat",), "evaluate__max_new_tokens": 7}
LINES = "write f(a):\n\n/new\ndouble a\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    run = job(tmp_path_factory.mktemp("run") / "run", **SMALL)
    assert pipeline.run(run)
    return run


def talk(talking: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    capsys.readouterr()
    assert pipeline.run(talking)
    return capsys.readouterr().out


def test_the_policy_answers_each_message_and_its_exported_folder_says_the_same(
    trained: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = talk(job(trained.workdir, **TALKING), monkeypatch, capsys, LINES)
    again = talk(job(trained.workdir, **TALKING), monkeypatch, capsys, LINES)
    folder = str(trained.folder("export") / "model")
    of_folder = talk(job(tmp_path / "new", **TALKING | {"model__path": folder}), monkeypatch, capsys, LINES)
    assert said == again == of_folder and len(said) > 4, said
    other = talk(job(trained.workdir, **TALKING | {"seed": 5}), monkeypatch, capsys, LINES)
    assert other != said


def test_the_result_of_sft_talks_where_no_policy_is_trained_yet(trained: Job, tmp_path: Path) -> None:
    half = job(tmp_path / "half", **SMALL | {"stages": ("sft",)})
    assert pipeline.run(half, fork_from=trained.workdir)
    sides = [chat.talking(job(workdir, **TALKING)) for workdir in (trained.workdir, half.workdir)]
    assert [side for side, _ in sides] == ["policy", "reference"]
    leaves = zip(*(jax.tree.leaves(parameters) for _, parameters in sides), strict=True)
    assert max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in leaves) > 0


def test_a_conversation_that_is_too_long_is_said_and_the_next_line_is_answered(
    trained: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talking = job(trained.workdir, **TALKING | {"prompts__max_tokens": 16})
    monkeypatch.setattr("sys.stdin", io.StringIO("a + " * 40 + "\na\n"))
    assert pipeline.run(talking)
    captured = capsys.readouterr()
    assert "more than 16 tokens (config.prompts.max_tokens)" in captured.err and captured.out.count("\n") >= 1


def test_turns_of_a_conversation_are_kept_until_a_new_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a policy that answers how many messages it was given."""
    heard: list[list[Message]] = []

    def counting(job: Job) -> Any:
        def answer(messages: list[Message], turn: int) -> str:
            heard.append(messages)
            return f"{len(messages)} messages \x1b[2J"

        return answer

    monkeypatch.setattr(chat, "make_answer", counting)
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n/new\nthree"))
    monkeypatch.setattr("sys.stdout", out)
    assert chat.run(job(tmp_path, model__template="chat")) == {"turns": 3}
    assert [[m.role for m in messages] for messages in heard] == [["user"], ["user", "assistant", "user"], ["user"]]
    assert out.getvalue().startswith("1 messages") and "\x1b" not in out.getvalue() and heard[1][0].content == "one"


def test_nothing_to_talk_to_and_another_config_than_the_runs_are_refused(trained: Job, tmp_path: Path) -> None:
    refused(tmp_path, "nothing to talk to: .* has no trained policy, and config.model.path", stages=("chat",))
    with pytest.raises(UserError, match=r"trained with other settings \(model.d_ff: 11 -> 13\)") as error:
        pipeline.run(job(trained.workdir, **TALKING | {"model__d_ff": 13}))
    assert "\n" not in str(error.value) and "config.model" in str(error.value)
