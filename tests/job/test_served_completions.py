"""Stage `sample` on servers: whatever goes wrong between, the rows are those of an undisturbed server."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax import pipeline
from qrpo_jax.data.rows import decode, encode
from qrpo_jax.errors import ServerError, UserError
from qrpo_jax.job import verdicts
from qrpo_jax.job.job import Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.served_completions import ALIKE, END_ADDED, MADE_HERE, NO_LOG_PROB, OTHER_PROMPT, UNSEEN_PROMPT
from qrpo_jax.servers import failures
from tests.helpers.fake_openai import KEY
from tests.helpers.faults import content
from tests.helpers.served_jobs import COMPLETIONS, PROMPTS, job, rows_of, server, write_policy

# Each is answered by another attempt. "trickle" ends when the time-out for the whole answer does.
IN_SHORT = ("500", "reset", "half", "list")  # without -m slow, of the passing faults one by one
PASSING = (
    *IN_SHORT,
    *("503", "429", "trickle", "no json", "error", "too few", "too many", "twice"),
    *("no end", "abort", "no text", "empty"),
)
HURRY = {"openai__answer_seconds": 1.0, "openai__attempts": 12}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: Any) -> Path:
    return write_policy(tmp_path_factory.mktemp("served") / "policy")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(failures, "LONGEST_WAIT", 0.1)


def counts(workdir: Path) -> dict[str, int]:
    manifest = read_manifest(workdir / "sample")
    assert manifest is not None
    return manifest["counts"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: Any, policy: Path) -> list[bytes]:
    """The rows of stage `sample` from a server without faults."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    with server(policy) as fake:
        assert pipeline.run(job(workdir, policy, fake))
    return [encode(row) for row in rows_of(workdir)]


def test_each_prompt_gets_its_completions_with_the_servers_tokens_and_log_probs(tmp_path, policy):
    with server(policy) as fake:
        made = job(tmp_path, policy, fake)
        assert pipeline.run(made)
    assert not verdicts.by_verdict(counts(tmp_path)), "what servers do is no verdict on completions"
    rows, text = rows_of(tmp_path), made.text
    assert [row.messages[0].content for row in rows] == [f"What is {i} + {i * i}?" for i in range(PROMPTS)]
    for index, row in enumerate(rows):
        assert len(row.completions) == COMPLETIONS
        for completion in row.completions:
            assert completion.source == "reference"
            assert completion.finished == (completion.tokens[-1] in text.end_tokens), completion
            assert completion.text == text.decode(completion.tokens, completion.finished)
            assert -len(completion.tokens) <= completion.log_prob <= 0, completion
        asked = text.prompt(row.messages).tolist()
        seeds = sorted(one["seed"] for one in fake.requests[1:] if one["prompt"] == asked)
        assert len(seeds) == 3, (index, seeds)
        assert seeds[2] - seeds[0] == 4, f"one seed a completion, requests of 2, 2 and 1: {seeds}"
    found = counts(tmp_path)
    assert found["completions"] == PROMPTS * COMPLETIONS
    assert found["completion tokens"] == sum(len(c.tokens) for row in rows for c in row.completions)
    cut = sum(not c.finished for row in rows for c in row.completions)
    assert 0 < found["completions cut by length limit"] == cut < PROMPTS * COMPLETIONS
    assert not {MADE_HERE, END_ADDED, NO_LOG_PROB, OTHER_PROMPT, UNSEEN_PROMPT, ALIKE} & set(found), found


def test_no_weights_are_loaded(tmp_path, policy):
    assert not list(policy.glob("*.safetensors"))
    with server(policy) as fake:
        assert pipeline.run(job(tmp_path, policy, fake))
    assert len(rows_of(tmp_path, "score")) == PROMPTS


def test_how_requests_are_split_over_units_concurrency_and_servers_changes_no_row(tmp_path, policy, undisturbed):
    with server(policy) as one, server(policy) as other:
        others = {"openai__concurrency": 1, "prompts__unit": 11}
        assert pipeline.run(job(tmp_path, policy, one, other, **others))
        answered = len(one.requests), len(other.requests)
    assert [encode(row) for row in rows_of(tmp_path)] == undisturbed
    assert min(answered) > 20, f"both servers share the load: {answered}"


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault in IN_SHORT else pytest.mark.slow) for fault in PASSING]
)
def test_a_passing_fault_of_every_third_request_changes_no_row(tmp_path, policy, undisturbed, fault, capsys):
    with server(policy, fault=lambda number: fault if number and number % 3 == 0 else "") as fake:
        assert pipeline.run(job(tmp_path, policy, fake, **HURRY))
        assert fake.faults[fault] >= 20, fake.faults
        assert set(fake.answered.values()) == {1}, "no completion is asked for again after a whole answer"
    assert [encode(row) for row in rows_of(tmp_path)] == undisturbed
    assert f"{fake.faults[fault]} requests were sent again" in capsys.readouterr().err


def test_all_faults_together_and_a_dead_server_change_no_row(tmp_path, policy, undisturbed, capsys):
    kinds = [*PASSING, *[""] * len(PASSING), "shuffled"]

    def fault(number: int) -> str:
        return kinds[number * 7 % len(kinds)] if number else ""

    with server(policy) as dead:
        pass
    with server(policy, fault=fault) as fake:
        made = job(tmp_path, policy, fake, dead, openai__attempts=60, openai__answer_seconds=1.0)
        assert pipeline.run(made)
        assert set(fake.faults) == set(kinds), fake.faults
    assert [encode(row) for row in rows_of(tmp_path)] == undisturbed
    assert "the other servers take its share" in capsys.readouterr().err


@pytest.mark.parametrize("token_ids", [True, False])
def test_stop_strings_end_completions_before_them(tmp_path, policy, undisturbed, token_ids):
    with server(policy, token_ids=token_ids) as fake:
        made = job(tmp_path, policy, fake, sample__stop=("min", " - "))
        assert pipeline.run(made)
    assert all(request["stop"] == ["min", " - "] for request in fake.requests)
    long = [c for row in map(decode, undisturbed) for c in row.completions]
    short = [c for row in rows_of(tmp_path) for c in row.completions]
    cut = 0
    for one, whole in zip(short, long, strict=True):
        before = whole.text.partition("min")[0].partition(" - ")[0]
        if whole.finished and before != whole.text:
            cut += 1
            assert one.text == before and one.finished, (one, whole)
            kept = made.text.decode(one.tokens, one.tokens[-1] in made.text.end_tokens)
            if token_ids:
                assert kept.startswith(before) and kept != before, "the tokens end with the string"
            else:  # this tokenizer loses a space
                assert kept.strip() == before.strip(), (one, whole)
    assert cut > 20, cut
    assert END_ADDED not in counts(tmp_path)


def test_choices_in_another_order_are_put_back(tmp_path, policy, undisturbed):
    with server(policy, fault=lambda number: "shuffled") as fake:
        assert pipeline.run(job(tmp_path, policy, fake))
    assert [encode(row) for row in rows_of(tmp_path)] == undisturbed


@pytest.mark.parametrize("concurrency", [pytest.param(1, marks=pytest.mark.slow), 5, 31])
def test_so_many_requests_are_under_way_and_no_more(tmp_path, policy, concurrency):
    with server(policy, seconds=0.03, together=concurrency) as fake:
        assert pipeline.run(job(tmp_path, policy, fake, openai__concurrency=concurrency))
    # A unit has 21 requests, so 31 need those of the next unit.
    assert fake.most == concurrency


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "status 500, the engine said 500"),
        pytest.param("half", "broke off", marks=pytest.mark.slow),
        pytest.param("no json", "no JSON", marks=pytest.mark.slow),
        pytest.param("too few", "choices, asked for", marks=pytest.mark.slow),
        ("no end", "finish_reason is None"),
    ],
)
def test_a_prompt_that_fails_for_good_stops_the_run_in_one_line_and_loses_nothing(
    tmp_path, policy, undisturbed, fault, words
):
    workdir = tmp_path / "run"
    with server(policy, fault=lambda number: fault if number > 40 else "") as fake:
        with pytest.raises(ServerError, match=words) as error:
            pipeline.run(job(workdir, policy, fake, openai__attempts=3, openai__concurrency=1))
        assert "\n" not in str(error.value)
        assert fake.address in str(error.value) and "row '" in str(error.value), error.value
    asked = Counter(fake.answered)
    written = len(list((workdir / "sample" / "counts").glob("*.json")))
    assert written == 1, "40 requests are one unit of 21, and a part of the next"
    with server(policy) as again:
        assert pipeline.run(job(workdir, policy, again))  # another address, and that may change
        twice = [key for key in again.answered if key in asked]
    assert [encode(row) for row in rows_of(workdir)] == undisturbed
    assert len(twice) == 20, "the trial, and the 19 requests of a unit that was not complete"


def test_shards_of_other_machines_add_up(tmp_path, policy, undisturbed):
    with server(policy) as fake:
        assert not pipeline.run(job(tmp_path, policy, fake, shard=Shard(1, 3), stages=("sample",)))
        assert not pipeline.run(job(tmp_path, policy, fake, shard=Shard(0, 3), stages=("sample",)))
        assert pipeline.run(job(tmp_path, policy, fake, shard=Shard(2, 3), stages=("sample",)))
        assert set(fake.answered.values()) <= {1, 3}, "but for the three trials"
    assert [encode(row) for row in rows_of(tmp_path)] == undisturbed


def test_the_key_is_sent_and_written_nowhere(tmp_path, policy, monkeypatch, capsys):
    monkeypatch.setenv("A_KEY", KEY + "\n")
    with server(policy, key=KEY, fault=lambda number: "500" if number == 5 else "") as fake:
        assert pipeline.run(job(tmp_path, policy, fake, openai__key_variable="A_KEY"))
    found = [name for name, data in content(tmp_path).items() if KEY.encode() in data]
    assert not found and KEY not in "".join(capsys.readouterr())


def test_a_wrong_key_is_refused_before_anything_is_written_and_not_shown(tmp_path, policy, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-wrong")
    with (
        server(policy, key=KEY) as fake,
        pytest.raises(UserError, match=r"status 401, wrong key Bearer \*\*\* .*config.openai.key_variable") as error,
    ):
        pipeline.run(job(tmp_path / "run", policy, fake, openai__key_variable="A_KEY"))
    assert "sk-wrong" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"openai__servers": ()}, "name at least one server"),
        ({"openai__servers": ("localhost:8000",)}, "must be a base URL"),
        ({"openai__servers": ("http://me:word@host/v1",)}, "with a user or a key in it"),
        ({"openai__model": ""}, "the name under which the servers know the model"),
        ({"openai__key_variable": "sk-123"}, "no name of an environment variable"),
        ({"openai__key_variable": "NO_SUCH_KEY"}, "the environment has no such variable"),
        (
            {"stages": ("sft", "sample"), "model__path": "", "prompts__source": "programs", "prompts__count": 3},
            "no server has",
        ),
        ({"model__template": "plain", "openai__prompts": "chat"}, "use 'tokens'"),
        ({"sample__top_k": 3, "openai__extra_fields": False}, "one of config.openai.extra_fields"),
        ({"openai__attempts": 1}, r"broke off: ConnectError.*config.openai.servers"),
    ],
)
def test_settings_that_no_server_can_serve_are_refused_in_one_line(tmp_path, policy, monkeypatch, overrides, message):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with server(policy) as fake:
        pass  # it is gone
    with pytest.raises(UserError, match=message) as error:
        pipeline.run(job(tmp_path / "run", policy, fake, **overrides))
    assert "\n" not in str(error.value) and "config." in str(error.value)
    assert "sk-123" not in str(error.value) and "word" not in str(error.value).replace("words", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("fault", "key"), [("404", "openai.model"), ("400", "openai.prompts")])
def test_a_server_that_refuses_the_trial_is_said_with_the_key_to_change(tmp_path, policy, fault, key):
    with server(policy, fault=lambda number: fault) as fake:
        with pytest.raises(UserError, match=f"the engine said {fault}.*config.{key}"):
            pipeline.run(job(tmp_path / "run", policy, fake))
        assert len(fake.requests) == 1, "asking again would change nothing"


def test_a_finished_stage_asks_no_server(tmp_path, policy):
    with server(policy) as fake:
        assert pipeline.run(job(tmp_path, policy, fake))
    assert pipeline.run(job(tmp_path, policy, fake)), "the server is gone, and nothing is left to ask for"


@pytest.mark.parametrize("prompts", ["text", "chat"])
def test_without_token_ids_the_tokens_are_made_here_and_counted(tmp_path, policy, prompts, capsys):
    with server(policy, token_ids=False) as fake:
        made = job(tmp_path, policy, fake, openai__prompts=prompts, openai__extra_fields=False)
        assert pipeline.run(made)
    text, found = made.text, counts(tmp_path)
    for row in rows_of(tmp_path):
        for c in row.completions:
            assert c.tokens.tolist() == text.completion(c.text, c.finished).tolist()
            assert math.isnan(c.log_prob)
    assert found[MADE_HERE] == found[NO_LOG_PROB] == PROMPTS * COMPLETIONS
    assert "the server gives no token ids" in capsys.readouterr().err
    asked = fake.requests[-1]
    assert asked["path"] == ("/v1/chat/completions" if prompts == "chat" else "/v1/completions")
    assert not {"top_k", "stop_token_ids", "return_token_ids"} & set(asked), asked
    if prompts == "text":
        shown = text.tokenizer(asked["prompt"])["input_ids"]
        wanted = {json.dumps(text.prompt(row.messages).tolist()) for row in rows_of(tmp_path)}
        assert json.dumps(shown) in wanted, "the text gives the prompt's own tokens"


def test_a_server_that_does_not_sample_is_noticed(tmp_path, policy, capsys):
    with server(policy) as fake:
        answer = fake.answer
        fake.answer = lambda body: answer(body | {"seed": 0, "n": 1})  # type: ignore[method-assign]
        assert pipeline.run(job(tmp_path, policy, fake, openai__completions=1))
    assert counts(tmp_path)[ALIKE] == PROMPTS
    assert "are alike: the server may not sample" in capsys.readouterr().err
