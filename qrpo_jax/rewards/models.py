"""Reward models: a decoder with a head, a tokenizer and a chat template, from a Hugging Face folder.

A row's messages and a completion's text, as the assistant's answer, are one conversation. The reward model's own chat
template lays it out from its first token to its last, as the cards of the published models do. It has one beginning of
sequence: Skywork's card removes the second, which its tokenizer adds. A completion that was cut off is closed like any
other.
Conversations of more than `max_tokens` tokens get no score; nothing is ever cut.

A score does not depend on the rest of its batch: each conversation has a separate row, padded at its end. The order of
summation depends on the shape of a batch, which in float32 changes scores by less than 1e-5 of their size.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from qrpo_jax.data.chat import ChatText, chat_text
from qrpo_jax.data.rows import Message, Row
from qrpo_jax.devices.mesh import axis_size, fetch, parameter_shardings, place, replicated, round_up, row_sharding
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.reward_config import read_reward_config
from qrpo_jax.hugging_face.tokenizer import open_tokenizer
from qrpo_jax.hugging_face.weights import load_weights, read_headers, read_tensors
from qrpo_jax.model import decoder
from qrpo_jax.model.compute import DEFAULT, Compute
from qrpo_jax.model.heads import GATE_TEXT, Head, Tensors
from qrpo_jax.model.layout import one_sequence
from qrpo_jax.model.settings import DecoderSettings

SHORTEST = 32  # tokens of the narrowest batch
QUESTION = Message("user", "A question?")  # prompt for a trial of a folder's template
ANSWER = "An answer."
LEADS = ("", "\n", "\n\n", " \n")  # an answer that begins with these could merge with the text before it


class RewardModel(NamedTuple):
    """A reward model without its weights.

    Attributes:
      gate_tokens: tokens that mark the end of the prompt for the head; empty if it has no gate.
      max_tokens: longest conversation that gets a score.
    """

    folder: Path
    settings: DecoderSettings
    head: Head
    text: ChatText
    gate_tokens: tuple[int, ...]
    max_tokens: int


class Conversation(NamedTuple):
    """A prompt and an answer as a reward model reads them."""

    tokens: np.ndarray  # int32 [L]
    last: int  # position of the hidden state that is scored
    gate: int  # position of the hidden state that the gate reads


class RewardParameters(NamedTuple):
    """The weights of a reward model on a mesh."""

    decoder: decoder.Parameters
    head: Tensors


class Scored(NamedTuple):
    """Scores of conversations, None where one is too long, and the number of special strings taken as plain text."""

    scores: list[float | None]
    special_strings: int


def open_reward_model(folder: Path, max_tokens: int = 0) -> RewardModel:
    """A reward model's settings and tokenizer; of its weights only headers are read.

    Args:
      max_tokens: longest conversation; 0 for as many as the model has positions.

    Raises:
      UserError: not a supported reward model, weights that do not fit its config.json, no chat template or one that
        does not end prompts as the head requires, or `max_tokens` above the model's positions.
    """
    settings, head = read_reward_config(folder)
    model_folder.check_weights(folder, settings, head.tensors(settings.d_model))
    tokenizer, end_tokens = open_tokenizer(folder)
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; a reward model needs one", about="path")
    text = chat_text(tokenizer, end_tokens)
    gate_tokens = head.gate_tokens(functools.partial(tokenizer.encode, add_special_tokens=False))
    if max_tokens > settings.max_positions:
        raise UserError(
            f"max_tokens is {max_tokens}, the model in {folder} was made for {settings.max_positions} "
            "positions; lower it, or set it to 0 for as many",
            about="max_tokens",
        )
    model = RewardModel(folder, settings, head, text, gate_tokens, max_tokens or settings.max_positions)
    _check_template(model)
    return model


def _check_template(model: RewardModel) -> None:
    """Refuses a template in which the head cannot find its positions for every answer, which would stop a run later."""
    where, pad_token = f"the chat template in {model.folder}", model.head.pad_token
    spelled = model.text.tokenizer.decode([*model.gate_tokens, *[pad_token] * (pad_token is not None)])
    answers = [*(lead + ANSWER for lead in LEADS), spelled]
    trials = [conversation(model, [QUESTION], answer, where) for answer in answers]
    gate = len(model.text.prompt([QUESTION], where)) - len(model.gate_tokens)
    if model.gate_tokens and any(trial.gate != gate for trial in trials):
        raise UserError(f"{where} does not end a prompt as ArmoRM's does, with {json.dumps(GATE_TEXT)}", about="path")


def conversation(model: RewardModel, messages: Sequence[Message], answer: str, where: str) -> Conversation:
    """A conversation in the reward model's layout, of any length.

    Args:
      where: what an error names, such as "row 'ID'".

    Raises:
      UserError: the chat template refuses the messages, the head does not find its positions, or a token has no
        embedding in the model.
    """
    tokens_L = model.text.whole(messages, answer, where)
    if int(tokens_L.max()) >= model.settings.vocab_size:
        raise UserError(
            f"{where}: the tokenizer gives token {int(tokens_L.max())}, the reward model knows "
            f"{model.settings.vocab_size}",
            about="path",
        )
    try:
        return Conversation(tokens_L, *model.head.positions(tokens_L, model.gate_tokens))
    except UserError as error:
        raise UserError(f"{where}: {error.message}", about="path") from None


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
      lengths_B: tokens of each; tokens after them have no effect.
      last_B, gate_B: positions of the hidden states that the head reads.
      compute: how the decoder is computed.
    """
    model = nnx.merge(graph, parameters.decoder)
    positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
    hidden_BxLxD, _ = model(tokens_BxL, one_sequence(lengths_B, positions_BxL), compute=compute)
    rows_B = jnp.arange(len(tokens_BxL))
    return head.scores(parameters.head, hidden_BxLxD[rows_B, last_B], hidden_BxLxD[rows_B, gate_B])


class ModelScorer:
    """A reward model on a mesh.

    Args:
      batch_rows: conversations a forward pass; more where the mesh splits rows further.
      compute: how the decoder is computed; its parameters have the same type.

    Raises:
      UserError: a dimension that the mesh cannot split.
    """

    def __init__(self, model: RewardModel, mesh: Mesh, *, batch_rows: int, compute: Compute = DEFAULT) -> None:
        self.model, self._mesh = model, mesh
        self._batch_rows = round_up(batch_rows, axis_size(mesh, "rows"))
        headers = read_headers(model.folder)
        head = read_tensors(headers, model.head.tensors(model.settings.d_model))
        body = load_weights(headers, model.settings, mesh, compute.dtype)
        self._parameters = RewardParameters(body, place(head, replicated(mesh)))
        graph = decoder.graph(model.settings)
        jitted = jax.jit(functools.partial(batch_scores, graph, model.head, compute=compute))
        self._scores = CheckedProgram(jitted, mesh, "the reward model", ("batch_rows", "max_tokens"))

    def score(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Scores of conversations, float32 in their order.

        Conversations of similar length share a batch, which saves padding. Batches have few widths, which saves
        compilations.
        """
        scores = np.zeros(len(conversations), np.float32)
        order = sorted(range(len(conversations)), key=lambda i: (len(conversations[i].tokens), i))
        for start in range(0, len(order), self._batch_rows):
            indices = order[start : start + self._batch_rows]
            scores[indices] = self._score_batch([conversations[i] for i in indices])
        return scores

    def _score_batch(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Scores of one batch, whose last conversation is the longest."""
        columns = width(len(conversations[-1].tokens), self.model.max_tokens)
        tokens_BxL = np.zeros((self._batch_rows, columns), np.int32)
        lengths_B, last_B, gate_B = np.zeros((3, self._batch_rows), np.int32)
        for i, one in enumerate(conversations):
            tokens_BxL[i, : len(one.tokens)] = one.tokens
            lengths_B[i], last_B[i], gate_B[i] = len(one.tokens), one.last, one.gate
        batch = place((tokens_BxL, lengths_B, last_B, gate_B), row_sharding(self._mesh))
        return np.asarray(fetch(self._scores(self._parameters, *batch)))[: len(conversations)]

    def score_rows(self, rows: Sequence[Row]) -> Scored:
        """Scores of all completions of `rows`, one after the other.

        Raises:
          UserError: see `conversation`.
        """
        special = sum(_special_strings(self.model.text, row) for row in rows)
        conversations = [
            conversation(self.model, row.messages, completion.text, f"row {row.id!r}, completion {i}")
            for row in rows
            for i, completion in enumerate(row.completions)
        ]
        fits = [i for i, one in enumerate(conversations) if len(one.tokens) <= self.model.max_tokens]
        scores: list[float | None] = [None] * len(conversations)
        for i, value in zip(fits, self.score([conversations[i] for i in fits]).tolist(), strict=True):
            scores[i] = value
        return Scored(scores, special)


def check_conversations(model: RewardModel, rows: Sequence[Row], place: Callable[[Row], str]) -> np.ndarray:
    """Whether each row's prompt is too long for the reward model with a short answer, bool [P].

    Args:
      place: where a row stands, for messages.

    Raises:
      UserError: the chat template refuses a row, see `conversation`; or all prompts are too long.
    """
    lengths_P = np.asarray([len(conversation(model, row.messages, ANSWER, place(row)).tokens) for row in rows])
    if len(rows) and int(np.min(lengths_P)) > model.max_tokens:
        raise UserError(
            f"all {len(rows)} prompts are longer than the {model.max_tokens} tokens that the reward model may read; "
            "raise max_tokens",
            about="max_tokens",
        )
    return lengths_P > model.max_tokens


def check_mesh(model: RewardModel, mesh: Mesh) -> None:
    """Refuses a mesh that cannot split the model.

    Raises:
      UserError: a dimension that is no multiple of its mesh axis.
    """
    shapes = decoder.abstract_parameters(model.settings)
    try:
        parameter_shardings(mesh, decoder.logical_axes(model.settings), shapes)
    except UserError as error:
        raise UserError(f"the reward model's {error.message}", about=error.about) from None


def _special_strings(text: ChatText, row: Row) -> int:
    """Number of strings in a row that look like special tokens; 0 for a row without completions."""
    if not row.completions:
        return 0
    prompt = sum(text.special_strings(message.content, message.role) for message in row.messages)
    return prompt + sum(text.special_strings(completion.text, "assistant") for completion in row.completions)


def width(length: int, largest: int) -> int:
    """Columns of a batch whose longest conversation has `length` tokens.

    Widths are SHORTEST times 1, 1.5, 2, 3, 4, 6, 8, ..., up to `largest`.

    >>> [width(length, 300) for length in (1, 33, 49, 250)]
    [32, 48, 64, 256]
    >>> width(257, 300)
    300
    """
    size = SHORTEST
    while size < length and size * 3 // 2 < length:
        size *= 2
    return min(size if size >= length else size * 3 // 2, largest)
