"""Reward models: a decoder with a head, a tokenizer and a chat template, from a Hugging Face folder.

A row's messages and a completion's text, as the assistant's turn, are one conversation, laid out by the reward model's
own chat template from its first token to its last, as the published models' cards do it; nothing adds a second
beginning of sequence, which Skywork's card takes off again. A completion that was cut off is closed as any other.
Conversations of more than `max_tokens` tokens get no score; nothing is ever cut.

A score does not depend on what it is computed with: each conversation is a row of its own, padded behind its end.
Batches of another shape are summed in another order, which in float32 is below 1e-5 of the scores' size.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from qrpo_jax.data.rows import Message, Row
from qrpo_jax.data.text import Text, open_text
from qrpo_jax.devices.mesh import axis_size, parameter_shardings, place, replicated, row_sharding
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.weights import load_weights, read_headers, read_tensors
from qrpo_jax.model import decoder
from qrpo_jax.model.compute import DEFAULT, Compute
from qrpo_jax.model.settings import DecoderSettings
from qrpo_jax.rewards.heads import GATE_TEXT, Head, Tensors, read_reward_config

SHORTEST = 32  # tokens of the narrowest batch
TRIED = Message("user", "A question?")  # what a folder's template is tried with
ANSWER = "An answer."
LEADS = ("", "\n", "\n\n", " \n")  # that could merge with what is before an answer


class RewardModel(NamedTuple):
    """What a folder says about a reward model, without its weights."""

    folder: Path
    settings: DecoderSettings
    head: Head
    text: Text
    gate_tokens: tuple[int, ...]  # by which the head finds the end of the prompt; empty if it does not ask
    max_tokens: int


class Conversation(NamedTuple):
    """A prompt and an answer as a reward model reads them."""

    tokens: np.ndarray  # int32 [L]
    last: int  # which hidden state is scored
    gate: int  # which one the gate reads


class RewardParameters(NamedTuple):
    decoder: decoder.Parameters
    head: Tensors


class Scored(NamedTuple):
    """Scores of conversations, None where one is too long, and how many strings that look special were plain text."""

    scores: list[float | None]
    special_strings: int


def open_reward_model(folder: Path, max_tokens: int = 0) -> RewardModel:
    """A reward model's settings and tokenizer; of its weights only headers are read.

    Args:
      max_tokens: longest conversation; 0 for as many as the model was made for.

    Raises:
      ValueError: not a reward model that is known here, weights that are not those of its config.json, no chat
        template, one that does not end prompts as the head needs it, or more tokens than it was made for.
    """
    with named_as_reward():
        settings, head = read_reward_config(folder)
        model_folder.check_weights(folder, settings, head.tensors(settings.d_model))
        text = open_text(folder, "chat")
        gate_tokens = head.gate_tokens(functools.partial(text.tokenizer.encode, add_special_tokens=False))
        if max_tokens > settings.max_positions:
            raise ValueError(
                f"reward.max_tokens is {max_tokens}, the model in {folder} was made for {settings.max_positions} "
                "positions; lower config.reward.max_tokens, or 0 for as many"
            )
        model = RewardModel(folder, settings, head, text, gate_tokens, max_tokens or settings.max_positions)
        where = f"the chat template in {folder} (config.model.path)"
        # Whatever an answer begins with or spells, the head must find its places, or one answer could stop a run.
        spelled = text.tokenizer.decode([*gate_tokens, *[head.pad_token] * (head.pad_token is not None)])
        answers = [*(lead + ANSWER for lead in LEADS), spelled]
        tried = [conversation(model, [TRIED], answer, where) for answer in answers]
        end = len(text.prompt([TRIED], where)) - len(gate_tokens)
        if gate_tokens and any(one.gate != end for one in tried):
            raise ValueError(f"{where} does not end a prompt as ArmoRM's does, with {json.dumps(GATE_TEXT)}")
    return model


@contextmanager
def named_as_reward() -> Iterator[None]:
    """Folders are read by code that names the policy's keys in its errors; here they are the reward's."""
    try:
        yield
    except ValueError as error:
        told = str(error).replace("config.model.path", "config.reward.path")
        told = told.replace("; change them, or the layout (config.model.template)", " (config.reward.path)")
        told = told.replace("set config.model.template='plain'", "a reward model needs one (config.reward.path)")
        raise ValueError(told) from error


def conversation(model: RewardModel, messages: Sequence[Message], answer: str, where: str) -> Conversation:
    """A conversation in the reward model's layout, however long.

    Raises:
      ValueError: the chat template refuses the messages, the head does not find its places, or a token that the
        model has no embedding for.
    """
    tokens_L = model.text.whole(messages, answer, where)
    if int(tokens_L.max()) >= model.settings.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer gives token {int(tokens_L.max())}, the reward model knows "
            f"{model.settings.vocab_size} (config.model.path)"
        )
    try:
        return Conversation(tokens_L, *model.head.positions(tokens_L, model.gate_tokens))
    except ValueError as error:
        raise ValueError(f"{where}: {error} (config.model.path)") from None


def batch_scores(
    graph: nnx.GraphDef,
    head: Head,
    parameters: RewardParameters,
    tokens_BxL: Array,
    lengths_B: Array,
    last_B: Array,
    gate_B: Array,
    compute: Compute = DEFAULT,
) -> Array:
    """Scores [B] float32 of conversations with padding behind them.

    Args:
      lengths_B: tokens of each; what stands behind them does not matter.
      last_B, gate_B: which hidden states the head reads.
      compute: how the decoder is computed.
    """
    model = nnx.merge(graph, parameters.decoder)
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    segments_BxL = (positions_BxL < lengths_B[:, None]).astype(jnp.int32)
    hidden_BxLxD, _ = model(tokens_BxL, segments_BxL, positions_BxL, compute=compute)
    rows_B = jnp.arange(len(tokens_BxL))
    return head.scores(parameters.head, hidden_BxLxD[rows_B, last_B], hidden_BxLxD[rows_B, gate_B])


class ModelScorer:
    """A reward model on a mesh.

    Args:
      batch_rows: conversations a forward pass; more where the mesh splits rows further.
      compute: how the decoder is computed; its parameters have the same type.

    Raises:
      ValueError: a dimension that the mesh cannot split.
    """

    def __init__(self, model: RewardModel, mesh: Mesh, *, batch_rows: int, compute: Compute = DEFAULT) -> None:
        self.model, self._mesh = model, mesh
        ways = axis_size(mesh, "rows")
        self._batch_rows = -(-batch_rows // ways) * ways
        with named_as_reward():
            headers = read_headers(model.folder)
        head = read_tensors(headers, model.head.tensors(model.settings.d_model))
        body = load_weights(headers, model.settings, mesh, compute.dtype)
        self._parameters = RewardParameters(body, place(head, replicated(mesh)))
        graph = decoder.graph(model.settings)
        self._scores = jax.jit(functools.partial(batch_scores, graph, model.head, compute=compute))

    def score(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Scores of conversations, float32 in their order.

        Those of like lengths share a batch, so little is padded, and widths are few, so little is compiled.
        """
        scores = np.zeros(len(conversations), np.float32)
        order = sorted(range(len(conversations)), key=lambda i: (len(conversations[i].tokens), i))
        for start in range(0, len(order), self._batch_rows):
            chosen = order[start : start + self._batch_rows]
            picked = [conversations[i] for i in chosen]
            tokens_BxL = np.zeros((self._batch_rows, width(len(picked[-1].tokens), self.model.max_tokens)), np.int32)
            numbers_3xB = np.zeros((3, self._batch_rows), np.int32)
            for row, one in enumerate(picked):
                tokens_BxL[row, : len(one.tokens)] = one.tokens
                numbers_3xB[:, row] = len(one.tokens), one.last, one.gate
            batch = place((tokens_BxL, *numbers_3xB), row_sharding(self._mesh))
            scores[chosen] = np.asarray(self._scores(self._parameters, *batch))[: len(chosen)]
        return scores

    def score_rows(self, rows: Sequence[Row]) -> Scored:
        """Scores of all completions of `rows`, one after the other.

        Raises:
          ValueError: see `conversation`.
        """
        model, special, found = self.model, 0, []
        with named_as_reward():
            for row in rows:
                if row.completions:
                    special += sum(model.text.special_strings(m.content, m.role) for m in row.messages)
                for i, completion in enumerate(row.completions):
                    special += model.text.special_strings(completion.text, "assistant")
                    where = f"row {row.id!r}, completion {i}"
                    found.append(conversation(model, row.messages, completion.text, where))
        fits = [i for i, one in enumerate(found) if len(one.tokens) <= model.max_tokens]
        scores: list[float | None] = [None] * len(found)
        for i, value in zip(fits, self.score([found[i] for i in fits]).tolist(), strict=True):
            scores[i] = value
        return Scored(scores, special)


def check_prompts(model: RewardModel, rows: Sequence[Row]) -> None:
    """Refuses rows whose messages the reward model's chat template refuses, and prompts that are all too long for it.

    Raises:
      ValueError: see `conversation`.
    """
    with named_as_reward():
        lengths = [len(conversation(model, row.messages, ANSWER, f"row {row.id!r}").tokens) for row in rows]
    if lengths and min(lengths) > model.max_tokens:
        raise ValueError(
            f"all {len(lengths)} prompts are longer than the {model.max_tokens} tokens that the reward model may read; "
            "raise config.reward.max_tokens"
        )


def check_mesh(model: RewardModel, mesh: Mesh) -> None:
    """Refuses a mesh that cannot split the model.

    Raises:
      ValueError: a dimension that is no multiple of its mesh axis.
    """
    shapes = decoder.abstract_parameters(model.settings)
    try:
        parameter_shardings(mesh, decoder.logical_axes(model.settings), shapes)
    except ValueError as error:
        raise UserError(f"the reward model's {error}", about="mesh") from None


def width(length: int, most: int) -> int:
    """Tokens of a batch whose longest conversation has `length`: SHORTEST doubled, with one step between, to `most`.

    >>> [width(length, 300) for length in (1, 33, 49, 250)]
    [32, 48, 64, 256]
    >>> width(257, 300)
    300
    """
    size = SHORTEST
    while size < length and size * 3 // 2 < length:
        size *= 2
    return min(size if size >= length else size * 3 // 2, most)
