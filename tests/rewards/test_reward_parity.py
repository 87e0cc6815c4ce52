"""Reward models against torch: transformers' classifiers, and ArmoRM written here from its published description."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.hugging_face.reward_config import CLASSIFIERS, UNCLASSIFIED, read_reward_config
from qrpo_jax.model.heads import GATE_TEXT
from qrpo_jax.rewards import models
from qrpo_jax.rewards.models import Conversation, ModelScorer, RewardModel, open_reward_model
from tests.helpers import chats
from tests.helpers import family_cases as cases
from tests.helpers import reward_folders as folders

pytestmark = pytest.mark.parity

SIZES = cases.Sizes(vocab=41, d_model=50, d_ff=37, layers=3, heads=10, kv_heads=5, head_dim=14)
LENGTHS = (23, 5, 1, 17, 22)
CONVERSATIONS = (
    ([("user", "How are you?")], "The answer is 42."),
    ([("user", "hello"), ("assistant", "Hello!"), ("user", "Once upon a time")], "That is because 6 x 7 = 42.\nYes."),
    ([("system", "You are a helpful assistant."), ("user", "Grüße")], ""),
    ([("user", "Write a function that adds two numbers.")], "    def add(a, b):\n        return a + b\n" * 3),
)


def libraries() -> tuple[Any, Any]:
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def classifier(case: str, **more: Any) -> Any:
    """transformers' classifier of a case of `family_cases`, with one label."""
    torch, transformers = libraries()
    name = cases.CASES[case][0].replace("Gemma3", "Gemma3Text").replace("CausalLM", "SequenceClassification")
    named = getattr(transformers, name)
    config = named.config_class(**(cases.config(case, SIZES) | {"num_labels": 1} | more))
    model = named._from_config(config, attn_implementation="eager").to(torch.float32).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            tensor.copy_(torch.tensor(cases.weight(case, key, tuple(tensor.shape))))
    return model


def package_scores(folder: Path, conversations: list[np.ndarray]) -> np.ndarray:
    settings, head = read_reward_config(folder)
    model = RewardModel(folder, settings, head, None, (), settings.max_positions)
    scorer = ModelScorer(model, make_mesh(1, 1, 1, devices=jax.devices()[:1]), batch_rows=3)
    return scorer.score([Conversation(tokens, *head.positions(tokens, ())) for tokens in conversations])


SCORED = [name for name, (model, _) in cases.CASES.items() if model not in UNCLASSIFIED and name != "phi3_long"]


@pytest.mark.parametrize("case", SCORED)
def test_classifiers_score_as_transformers_does_padded(case: str, tmp_path: Path) -> None:
    torch, _ = libraries()
    model = classifier(case)
    model.save_pretrained(tmp_path)
    assert type(model).__name__ in CLASSIFIERS
    rows = cases.tokens(case, SIZES.vocab, len(LENGTHS))
    # The fourth row ends with two padding tokens, so transformers reads the token before them.
    rows[3, LENGTHS[3] - 1] = rows[3, LENGTHS[3] - 2] = 0
    within = np.arange(max(LENGTHS)) < np.asarray(LENGTHS)[:, None]
    padded = np.where(within, rows[:, : max(LENGTHS)], 0)
    with torch.no_grad():
        logits = model(torch.tensor(padded, dtype=torch.long), attention_mask=torch.tensor(within.astype(int))).logits
    expected = logits.numpy()[:, 0]
    assert np.ptp(expected) > 0.2, "scores too much alike to compare"
    scores = package_scores(tmp_path, [row[:length] for row, length in zip(rows, LENGTHS, strict=True)])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["llama3", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "phi3", "smollm3"])
def test_a_config_without_padding_token_has_the_default_of_transformers(case: str, tmp_path: Path) -> None:
    _, transformers = libraries()
    classifier(case).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["pad_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, head = read_reward_config(tmp_path)
    default = transformers.AutoConfig.for_model(config["model_type"])
    assert head.pad_token == default.pad_token_id


@pytest.mark.parametrize("layout", ["llama-3", "qwen-2.5", "gemma"])
def test_from_messages_to_score_as_with_transformers(layout: str, tmp_path: Path) -> None:
    """Folder, chat template, tokenizer and model, as a card of Skywork-Reward uses them."""
    torch, transformers = libraries()
    config = transformers.LlamaConfig(**{k: v for k, v in folders.LLAMA.items() if k != "model_type"}, num_labels=1)
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = chats.tokenizer(layout)
    tokenizer.save_pretrained(tmp_path)
    rows, expected = [], []
    for number, (messages, answer) in enumerate(CONVERSATIONS):
        if layout == "gemma" and messages[0][0] == "system":
            continue
        turns = [{"role": role, "content": content} for role, content in [*messages, ("assistant", answer)]]
        tokens = tokenizer.apply_chat_template(turns, tokenize=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            expected.append(float(model(tokens).logits[0, 0]))
        completion = Completion(answer, np.zeros(0, np.int32), True, "reference")
        named = tuple(Message(*message) for message in messages)
        rows.append(Row(str(number), named, "", (completion,), np.zeros(0, np.float32)))
    scorer = ModelScorer(open_reward_model(tmp_path), make_mesh(1, 1, 1, devices=jax.devices()[:1]), batch_rows=2)
    np.testing.assert_allclose(scorer.score_rows(rows).scores, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 1e-3


def armo_rm(config: Any, pattern: list[int]) -> Any:
    """ArmoRM from the description in its paper and the code published with it."""
    torch, transformers = libraries()

    class ArmoRM(torch.nn.Module):
        """Its parameters are named as in the folder."""

        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.LlamaModel(config)
            self.regression_layer = torch.nn.Linear(config.hidden_size, folders.OBJECTIVES, bias=False)
            self.reward_transform_matrix = torch.nn.Parameter(torch.eye(folders.OBJECTIVES), requires_grad=False)
            widths = [config.hidden_size, *[folders.UNITS] * folders.GATE_LAYERS, folders.OBJECTIVES]
            self.gating = torch.nn.Module()
            self.gating.layers = torch.nn.ModuleList(
                torch.nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False)
            )
            self.gating.logit_scale = torch.nn.Parameter(torch.ones(1))
            self.pattern, self.pad = pattern, config.pad_token_id

        def forward(self, tokens: Any, mask: Any) -> tuple[Any, Any]:
            """Scores, and the gates' shares of the objectives."""
            hidden = self.model(tokens, attention_mask=mask).last_hidden_state
            batch = torch.arange(len(tokens))
            # The last token is before the first padding token, or at the very end.
            ends = (tokens == self.pad).int().argmax(-1) - 1
            rewards = self.regression_layer(hidden[batch, ends % tokens.shape[1]])
            size = len(self.pattern)
            starts = []
            for row in tokens.tolist():
                starts.append(max(i for i in range(len(row)) if row[i : i + size] == self.pattern))
            x = hidden[batch, starts]
            *inner, outer = self.gating.layers
            for layer in inner:
                x = torch.relu(layer(x))
            shares = torch.softmax(outer(x) / 10, 1) * self.gating.logit_scale
            return (shares * (rewards @ self.reward_transform_matrix)).sum(1), shares

    return ArmoRM().eval()


def test_armorm_scores_as_its_published_description_in_torch(tmp_path: Path) -> None:
    torch, transformers = libraries()
    pad = folders.VOCAB - 1
    tensors = folders.write(tmp_path, folders.ARMO | {"pad_token_id": pad})
    config = transformers.LlamaConfig(
        **{k: v for k, v in folders.LLAMA.items() if k != "model_type"}, pad_token_id=pad, attn_implementation="eager"
    )
    tokenizer = chats.tokenizer("llama-3")
    reference = armo_rm(config, tokenizer.encode(GATE_TEXT, add_special_tokens=False))
    reference.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()}, strict=True)

    texts = []
    for messages, answer in CONVERSATIONS:
        turns = [{"role": role, "content": content} for role, content in [*messages, ("assistant", answer)]]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))
    longest = max(map(len, texts))
    padded = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        expected, shares = reference(padded, mask)
    assert np.ptp(shares.numpy(), axis=0).max() > 0.01, "the gates do not distinguish prompts"
    assert np.ptp(expected.numpy()) > 0.1

    scorer = ModelScorer(open_reward_model(tmp_path), make_mesh(1, 1, 1, devices=jax.devices()[:1]), batch_rows=2)
    conversations = []
    for messages, answer in CONVERSATIONS:
        named = [Message(*message) for message in messages]
        conversations.append(models.conversation(scorer.model, named, answer, "here"))
    assert [one.tokens.tolist() for one in conversations] == texts
    np.testing.assert_allclose(scorer.score(conversations), expected.numpy(), rtol=0, atol=1e-5)
