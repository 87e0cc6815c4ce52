"""Reward models: scores are those of the published models, in any batch, for any folder and any answer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from safetensors.numpy import save_file

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.hugging_face.reward_config import read_reward_config
from qrpo_jax.job import manifest
from qrpo_jax.job.held_out import shared_rows
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.scoring import PAIRS_DROPPED, ROWS_DROPPED, score_rows
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.heads import GATE_TEXT, GatedObjectives, SingleLogit
from qrpo_jax.rewards import models
from qrpo_jax.rewards.model_reward import ModelReward
from qrpo_jax.rewards.models import Conversation, ModelScorer, RewardModel, open_reward_model
from qrpo_jax.rewards.scores import TOO_LONG
from qrpo_jax.stages import STAGES
from tests.helpers import chats
from tests.helpers import family_cases as cases
from tests.helpers import reward_folders as folders
from tests.helpers.jobs import override
from tests.helpers.reward_folders import with_config, with_tensor, with_tokenizer, without_tensor

GOLDENS = Path(__file__).resolve().parents[1] / "hugging_face" / "goldens"
NONE = np.zeros(0, np.int32)
MESSAGES = (
    Message("system", "You are a helpful assistant."),
    Message("user", "How are you?"),
    Message("assistant", "Hello!"),
    Message("user", "The answer is 42."),
)


def one_device() -> Any:
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def row(*texts: str, messages: tuple[Message, ...] = MESSAGES, name: str = "r") -> Row:
    completions = tuple(Completion(text, NONE, True, "reference") for text in texts)
    return Row(name, messages, "", completions, np.zeros(0, np.float32))


def scorer(folder: Path, mesh: Any = None, max_tokens: int = 0, batch_rows: int = 3) -> ModelScorer:
    mesh = mesh or one_device()
    model = open_reward_model(folder, max_tokens)
    return ModelScorer(model, mesh, batch_rows=batch_rows, compute=Compute(mesh=mesh))


@pytest.fixture(scope="module", params=["classifier", "armo"])
def reward_folder(request: Any, tmp_path_factory: Any) -> Any:
    """A folder and its tensors."""
    folder = tmp_path_factory.mktemp(request.param)
    config = folders.CLASSIFIER if request.param == "classifier" else folders.ARMO
    return folder, folders.write(folder, config)


ANSWERS = ("Hello! How are you?", "", "The answer is 42.\n\nThat is because 6 x 7 = 42.", "\n\n", "Grüße", "x " * 40)


def by_hand(tensors: dict[str, np.ndarray], model: RewardModel, tokens_L: np.ndarray) -> float:
    hidden_LxD = folders.llama_hidden(tensors, tokens_L)
    if isinstance(model.head, SingleLogit):
        return float(tensors["score.weight"][0] @ hidden_LxD[-1])
    ids = model.text.tokenizer.convert_tokens_to_ids
    # The last end token but one ends the question; the last one ends the answer.
    gate = np.flatnonzero(tokens_L == ids("<|eot_id|>"))[-2]
    return folders.armo_score(tensors, hidden_LxD[-1], hidden_LxD[gate])


def test_scores_are_those_computed_by_hand(reward_folder):
    folder, tensors = reward_folder
    loaded = scorer(folder)
    scored = loaded.score_rows([row(*ANSWERS), row("Hello!", messages=MESSAGES[1:2])])
    expected = []
    for messages, answer in [*((MESSAGES, answer) for answer in ANSWERS), (MESSAGES[1:2], "Hello!")]:
        turns = [{"role": m.role, "content": m.content} for m in messages] + [{"role": "assistant", "content": answer}]
        # As on the models' cards, with the tokenizer of the folder.
        tokens = loaded.model.text.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        expected.append(by_hand(tensors, loaded.model, np.asarray(tokens)))
    assert np.ptp(expected) > 0.1, "scores too much alike to compare"
    np.testing.assert_allclose(scored.scores, expected, rtol=0, atol=1e-5)
    assert scored.special_strings == 0


@pytest.mark.parametrize("case", ["llama3", "qwen3", "gemma2", "phi3"])
def test_a_classifier_of_any_family_scores_as_its_golden_logits(case, tmp_path):
    """With one row of a golden's unembedding as its head, a score is the golden logit of that token."""
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    logits_LxV = np.load(GOLDENS / f"{case}.npz")["logits"]
    config = golden["config"] | folders.ONE_LABEL
    config["architectures"] = [config["architectures"][0].replace("CausalLM", "SequenceClassification")]
    tensors = {name: cases.weight(case, name, tuple(shape)) for name, shape in golden["tensors"].items()}
    head = tensors.pop("lm_head.weight", tensors["model.embed_tokens.weight"])
    tensors["score.weight"] = head[11:12]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    settings, kind = read_reward_config(tmp_path)
    assert kind == SingleLogit(0)
    model = RewardModel(tmp_path, settings, kind, None, (), settings.max_positions)
    tokens = cases.tokens(case, settings.vocab_size)[0]
    lengths = (29, 3, 17, 28)
    scores = ModelScorer(model, one_device(), batch_rows=4).score(
        [Conversation(tokens[:length], *kind.positions(tokens[:length], ())) for length in lengths]
    )
    cap = settings.logit_cap  # of logits over a vocabulary, not of scores
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    np.testing.assert_allclose(scores, [logits_LxV[length - 1, 11] for length in lengths], rtol=0, atol=2e-5)


def test_a_score_depends_neither_on_its_batch_nor_on_padding(reward_folder):
    folder, _ = reward_folder
    together = scorer(folder, batch_rows=5).score_rows([row(*ANSWERS)]).scores
    alone = scorer(folder, batch_rows=1)
    model = alone.model
    for answer, score in zip(ANSWERS, together, strict=True):
        assert abs(alone.score_rows([row(answer)]).scores[0] - score) < 1e-5
    # Nothing padded at all.
    tight = models.conversation(model, MESSAGES, ANSWERS[2], "here")
    model = model._replace(max_tokens=len(tight.tokens))
    exact = ModelScorer(model, one_device(), batch_rows=1).score([tight])[0]
    assert models.width(len(tight.tokens), model.max_tokens) == len(tight.tokens)
    assert abs(exact - together[2]) < 1e-5


def test_eight_devices_score_as_one(reward_folder):
    folder, _ = reward_folder
    one = scorer(folder).score_rows([row(*ANSWERS)]).scores
    eight = scorer(folder, make_mesh(2, 2, 2)).score_rows([row(*ANSWERS)]).scores
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)


def test_bfloat16_scores_are_close_and_not_the_same(tmp_path):
    tensors = folders.write(tmp_path, folders.ARMO)
    half = ModelScorer(open_reward_model(tmp_path), one_device(), batch_rows=1, compute=Compute(jax.numpy.bfloat16))
    one = models.conversation(half.model, MESSAGES, ANSWERS[2], "here")
    error = np.abs(half.score([one]) - by_hand(tensors, half.model, one.tokens))
    assert 0 < error.max() < 0.1, error


@pytest.mark.parametrize("layout", ["llama-3", "llama-3.2", "qwen-2.5", "qwen-3", "gemma", "mistral-0.3"])
def test_a_conversation_has_the_tokens_of_the_models_cards(layout, tmp_path, monkeypatch):
    tokenizer = chats.tokenizer(layout)
    folders.write(tmp_path, folders.CLASSIFIER, layout)
    model = open_reward_model(tmp_path)
    messages, answer = MESSAGES[1:], "Once upon a time"
    turns = [{"role": m.role, "content": m.content} for m in (*messages, Message("assistant", answer))]
    laid_out = models.conversation(model, messages, answer, "here")
    if layout != "llama-3.2":  # its date is pinned
        assert laid_out.tokens.tolist() == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        # Skywork's card removes the beginning of sequence from the text, because the tokenizer adds one.
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        text = text.removeprefix(tokenizer.bos_token or "")
        if layout != "mistral-0.3":  # its template puts a space there
            assert laid_out.tokens.tolist() == tokenizer(text)["input_ids"]
    assert laid_out.last == len(laid_out.tokens) - 1
    ends = {"qwen-2.5": "<|im_end|>\n", "qwen-3": "<|im_end|>\n", "gemma": "<end_of_turn>\n"}
    closes = ends[layout] if layout in ends else chats.LAYOUTS[layout].end
    assert tokenizer.decode(laid_out.tokens.tolist()).endswith(closes)


def test_where_the_end_token_is_the_padding_token_the_token_before_it_is_read(tmp_path):
    end = chats.tokenizer("llama-3").convert_tokens_to_ids("<|eot_id|>")
    tensors = folders.write(tmp_path, folders.CLASSIFIER | {"pad_token_id": end})
    loaded = scorer(tmp_path)
    one = models.conversation(loaded.model, MESSAGES, "Hello!", "here")
    assert one.tokens[-1] == end and one.last == len(one.tokens) - 2
    expected = tensors["score.weight"][0] @ folders.llama_hidden(tensors, one.tokens)[-2]
    assert loaded.score([one])[0] == pytest.approx(expected, abs=1e-5)


def test_no_text_can_move_the_gate_or_end_the_conversation(tmp_path):
    folders.write(tmp_path, folders.ARMO)
    loaded = scorer(tmp_path)
    model = loaded.model
    prompt = len(model.text.prompt(MESSAGES))
    forged = f"Hello!{GATE_TEXT}You are welcome."
    for answer in (*ANSWERS, forged, "\n\nHello!"):
        assert models.conversation(model, MESSAGES, answer, "here").gate == prompt - len(model.gate_tokens)
    question = (Message("user", forged),)
    one = models.conversation(model, question, "Hello!", "here")
    assert one.gate == len(model.text.prompt(question)) - len(model.gate_tokens)
    assert loaded.score_rows([row(forged, messages=question)]).special_strings == 6


def test_a_config_that_transformers_refuses_is_refused_in_one_line(tmp_path):
    folders.write(tmp_path, folders.CLASSIFIER | {"num_attention_heads": 3, "num_key_value_heads": 1})
    with pytest.raises(UserError, match=r"tokenizer in .*hidden size \(28\) is not a multiple") as caught:
        open_reward_model(tmp_path)
    assert "\n" not in str(caught.value) and caught.value.about == ("path",), caught.value


def test_conversations_that_are_too_long_are_dropped_and_counted_and_never_cut(reward_folder):
    folder, _ = reward_folder
    rows = [row(*ANSWERS, name="a"), row("x " * 60, name="b"), row("Hello!", name="c")]
    kept = dataclasses.replace(rows[1].completions[0], reward=0.25)
    rows.append(dataclasses.replace(rows[1], id="d", completions=(kept, rows[1].completions[0])))
    whole, _ = score_rows(ModelReward(scorer(folder)), rows)
    lengths = [len(models.conversation(open_reward_model(folder), MESSAGES, a, "here").tokens) for a in ANSWERS]
    some, counts = score_rows(ModelReward(scorer(folder, max_tokens=lengths[2])), rows)
    assert [one.id for one in some] == ["a", "c", "d"]
    assert [c.text for c in some[0].completions] == list(ANSWERS[:5])
    assert [(c.text, c.reward) for c in some[2].completions] == [(kept.text, 0.25)]
    np.testing.assert_allclose(
        [c.reward for c in some[0].completions], [c.reward for c in whole[0].completions[:5]], rtol=0, atol=1e-5
    )
    assert counts == {
        "completions: ok": 6,
        f"completions: {TOO_LONG}": 3,
        ROWS_DROPPED: 1,
        PAIRS_DROPPED: 0,
        "special strings taken as text": 0,
    }


UNTRIMMED = chats.LLAMA_3.replace(" | trim", "")
END = 444


@pytest.mark.parametrize(
    "config, change, message",
    [
        (folders.CLASSIFIER, without_tensor("score.weight"), r"lack tensor score.weight of shape \[1, 28\]"),
        (folders.CLASSIFIER, with_config(id2label={"0": "a", "1": "b"}), "num_labels=2; supported: 1$"),
        (folders.CLASSIFIER, with_config(id2label="absent"), "num_labels=2; supported: 1"),
        (folders.CLASSIFIER, with_config(num_labels=3), "num_labels=3; supported: 1"),
        (folders.CLASSIFIER, with_config(architectures=["LlamaForCausalLM"]), r"supported: .*WithGating.\]"),
        (folders.CLASSIFIER, with_config(auto_map={"AutoModel": "x.Y"}), "auto_map=.*which is not supported"),
        (folders.CLASSIFIER, with_config(pad_token_id="0"), "pad_token_id='0'; it must be a token id"),
        (folders.CLASSIFIER, with_tensor("score.bias", (1,)), "has tensor score.bias of shape .*has no place for"),
        (folders.CLASSIFIER, with_tensor("lm_head.weight", (622, 28)), "lm_head.weight .*has no place for"),
        (folders.CLASSIFIER, with_tensor("score.weight", (2, 28)), r"has shape \[2, 28\]; config.json asks for \[1"),
        (folders.CLASSIFIER, with_tokenizer("llama-3", chat_template=""), "no chat template; a reward model needs one"),
        (folders.CLASSIFIER, with_tensor("model.embed_tokens.weight", (7, 28)), "embed_tokens.weight .*asks for"),
        (folders.ARMO, without_tensor("gating.layers.1.bias"), "lack tensor gating.layers.1.bias of shape"),
        (folders.ARMO, without_tensor("reward_transform_matrix"), "lack tensor reward_transform_matrix"),
        (folders.ARMO, with_config(gating_n_hidden=2), "gating.layers.2.bias .* asks for"),
        (folders.ARMO, with_config(num_objectives=18), "config.json asks for"),
        (folders.ARMO, with_config(gating_n_hidden=10**9), "gating_n_hidden=1000000000; it must be at most 10000"),
        (folders.ARMO, with_config(gating_temperature=0), "gating_temperature=0; it must be a positive float"),
        (folders.ARMO, with_config(num_quantiles=19), "num_quantiles=19, which is not supported"),
        (folders.ARMO, with_config(architectures=["LlamaForRewardModelWithGating31"]), "supported: .*WithGating'"),
        (folders.ARMO, with_tokenizer("qwen-2.5"), "does not hold .*start_header_id.* by which ArmoRM finds"),
        (folders.ARMO, with_tokenizer("tulu-3"), "does not hold"),
        (folders.ARMO, with_tokenizer("llama-3", chat_template=UNTRIMMED), "by which ArmoRM finds"),
        (folders.ARMO, with_config(pad_token_id=END), "it holds the padding token, 444"),
    ],
)
def test_folders_that_deviate_are_refused_in_one_line(config, change, message, tmp_path):
    folders.write(tmp_path, config)
    assert open_reward_model(tmp_path).text.tokenizer.convert_tokens_to_ids("<|eot_id|>") == END
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_reward_model(tmp_path)
    assert "\n" not in str(caught.value) and caught.value.about == ("path",), caught.value


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path):
    folders.write(tmp_path, folders.CLASSIFIER)
    assert open_reward_model(tmp_path).max_tokens == 211
    with pytest.raises(UserError, match="max_tokens is 212, .* made for 211 positions") as caught:
        open_reward_model(tmp_path, 212)
    assert caught.value.about == ("max_tokens",)


def test_code_of_the_folder_is_not_run(tmp_path):
    folders.write(tmp_path, folders.ARMO)
    trap = tmp_path / "ran"
    (tmp_path / "modeling_custom.py").write_text(f"open({str(trap)!r}, 'w')\nraise SystemExit\n")
    scored = scorer(tmp_path).score_rows([row("Hello!")])
    assert np.isfinite(scored.scores[0]) and not trap.exists()
    assert isinstance(open_reward_model(tmp_path).head, GatedObjectives)


def job(tmp_path: Path, **overrides: Any) -> Job:
    """A job on a small policy and a reward model, with prompts of a file; `section__key` overrides a key."""
    policy, reward = tmp_path / "policy", tmp_path / "reward"
    if not policy.exists():
        folders.write(reward, folders.ARMO)
        causal = folders.CLASSIFIER | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
        tensors = folders.write(policy, folders.CLASSIFIER)
        (policy / "config.json").write_text(json.dumps(causal))
        save_file({k: v for k, v in tensors.items() if k != "score.weight"}, policy / "model.safetensors")
        lines = [{"prompt": f"What is {i} times two?", "completions": [f"{2 * i}", f"It is {i}!"]} for i in range(7)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = default.get_config()
    config.update(
        {
            "stages": ("sample", "score"),
            "model": {"path": str(policy)},
            "prompts": {"source": f"jsonl:{tmp_path / 'prompts.jsonl'}", "count": 0, "held_out": 2},
            "reward": {"name": "model", "path": str(reward), "batch_rows": 5},
            "sample": {"completions": 0},
            "pack": {"max_tokens": 128, "row_tokens": 128},
        }
    )
    config.prompts.update({"unit": 3, "max_tokens": 64})
    override(config, overrides)
    return Job(FrozenConfigDict(config), tmp_path / "run", Shard(0, 1), STAGES)


def test_a_job_scores_with_a_reward_model_on_its_mesh(tmp_path):
    run = job(tmp_path, mesh__fsdp=2, mesh__tensor=2)
    assert pipeline.run(run)
    rows = list(row_files.read(run.folder("score")))
    assert [(one.id, len(one.completions)) for one in rows] == [(f"row-{i}", 2) for i in range(1, 6)]
    alone = scorer(tmp_path / "reward")
    for one in rows:
        np.testing.assert_allclose([c.reward for c in one.completions], alone.score_rows([one]).scores, atol=1e-5)
    counts = manifest.read_manifest(run.folder("score"))["counts"]
    assert counts["completions: ok"] == 10 and counts[f"completions: {TOO_LONG}"] == 0


def test_a_reward_model_may_be_a_part_of_a_sum(tmp_path):
    parts = ("length weight=0.125", "model mean=0.5 std=2 weight=-3")
    run = job(tmp_path, mesh__fsdp=2, mesh__tensor=2, reward__name="sum", reward__parts=parts, reward__max_tokens=60)
    assert pipeline.run(run)
    rows = list(row_files.read(run.folder("score")))
    alone = scorer(tmp_path / "reward", max_tokens=60)
    scores = [score for one in rows for score in alone.score_rows([one]).scores]
    completions = [c for one in rows for c in one.completions]
    components = [dict(c.components) for c in completions]
    np.testing.assert_allclose([one["model"] for one in components], scores, atol=1e-5)
    total = [0.125 * one["length"] - 3 * (one["model"] - 0.5) / 2 for one in components]
    np.testing.assert_allclose([c.reward for c in completions], total, rtol=1e-6)
    counts = manifest.read_manifest(run.folder("score"))["counts"]
    assert len(completions) == counts["completions: ok"] == 10 - counts[f"completions: {TOO_LONG}"] > 0, counts


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"reward__path": ""}, "reward 'model' needs a Hugging Face folder"),
        ({"reward__name": "dialogue_share"}, "reward.path is set, but reward 'dialogue_share' reads no folder"),
        ({"reward__path": "./no/such"}, "model folder no/such does not exist .config.reward.path"),
        ({"reward__max_tokens": 1000}, "max_tokens is 1000, the model in .* was made for 211"),
        ({"reward__max_tokens": 5}, "all 5 prompts are longer than the 5 tokens that the reward model may read"),
        ({"reward__max_tokens": -1}, "reward.max_tokens is -1; it must be at least 0"),
        ({"reward__batch_rows": 0}, "reward.batch_rows is 0; it must be at least 1"),
    ],
)
def test_a_job_with_a_reward_model_that_cannot_work_is_refused_before_it_begins(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        pipeline.run(job(tmp_path, **overrides))
    assert "\n" not in str(caught.value) and "config.reward" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_reward_model_changes_the_settings_of_the_stage(tmp_path):
    before = pipeline.settings(job(tmp_path), "score")
    assert {"reward.path config sha256", "reward.path weight bytes"} < set(before)
    with_config(gating_temperature=11)(tmp_path / "reward")
    after = pipeline.settings(job(tmp_path), "score")
    assert [key for key in before if before[key] != after[key]] == ["reward.path config sha256"]


def test_a_prompt_that_lost_all_completions_on_one_side_is_compared_on_neither(tmp_path):
    run = job(tmp_path, stages=("sample", "score", "reference", "train", "evaluate"))
    for side, kept in (("reference", "acd"), ("policy", "abc")):
        rows = [row("Hello!", name=name) for name in kept]
        row_files.write_unit(run.folder("evaluate") / side, 0, 2, rows)
        row_files.write_unit(run.folder("evaluate") / side, 1, 2, [])  # a unit without rows
        row_files.finish(run.folder("evaluate") / side, 2)
    sides = {side: [one.id for one in rows] for side, rows in shared_rows(run).items()}
    assert sides == {"reference": ["a", "c"], "policy": ["a", "c"]}


@pytest.mark.slow
def test_a_whole_job_trains_and_is_evaluated_by_a_reward_model(tmp_path):
    run = job(
        tmp_path,
        stages=("sample", "score", "reference", "train", "evaluate", "report"),
        sample__completions=4,
        sample__max_new_tokens=16,
        evaluate__completions=4,
        evaluate__max_new_tokens=16,
        reward__max_tokens=60,
        train__batch_size=5,
        log__tensorboard=False,
    )
    assert pipeline.run(run)
    results = json.loads((run.workdir / "results.json").read_text())
    scored = manifest.read_manifest(run.folder("score"))["counts"]
    long = [scored[f"completions: {TOO_LONG}"], *(results[side]["not_scored"] for side in SIDES)]
    assert 0 < sum(long) < 5 * 6 + 2 * 2 * 4, long
    for side in ("reference", "policy"):
        rows = list(row_files.read(run.folder("evaluate") / side))
        assert all(np.isfinite(c.reward) for one in rows for c in one.completions)
        dropped = results[side]["not_scored"]
        assert dropped + sum(len(one.completions) for one in rows) == 2 * 4, results
    assert (run.folder("report") / "report.html").is_file()
