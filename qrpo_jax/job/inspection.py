"""What a source holds, in figures: of a bounded sample of its rows, and with a tokenizer but without a model."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.row_references import references_of
from qrpo_jax.data.row_sample import sample_rows
from qrpo_jax.data.rows import Completion, Row
from qrpo_jax.data.sources import listing
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.source import Source
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation import ties

SHARES = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}
MEASURED_COMPLETIONS = 8  # of a row, whose tokens are counted


class Measured(NamedTuple):
    """A row and what a tokenizer makes of it.

    Attributes:
      prompt: tokens.
      completions: tokens of the first `MEASURED_COMPLETIONS`.
      unknown: the prompt has characters that the tokenizer does not know.
      special: its messages hold strings like special tokens.
    """

    row: Row
    prompt: int
    completions: list[int]
    unknown: bool
    special: bool


class Sampled(NamedTuple):
    """The rows that were looked at.

    Attributes:
      rows: all of them.
      measured: those that the chat template takes.
      refused: for each of the others, where it stands and why.
    """

    rows: list[Row]
    measured: list[Measured]
    refused: list[str]


def sample(source: Source, text: Text, most: int) -> Sampled:
    """Reads and measures at most so many rows; 0 for all."""
    rows, measured, refused = list(sample_rows(source, most)), [], []
    for row in rows:
        try:
            measured.append(measure(row, text, place_of(source, row)))
        except UserError as error:
            refused.append(str(error))
    return Sampled(rows, measured, refused)


def measure(row: Row, text: Text, place: str) -> Measured:
    """Counts the tokens of a row.

    Raises:
      UserError: the chat template refuses its messages.
    """
    prompt, unknown = text.prompt(row.messages, place), text.tokenizer.unk_token_id
    lengths = [completion_tokens(one, text) for one in row.completions[:MEASURED_COMPLETIONS]]
    special = any(text.special_strings(message.content, message.role) for message in row.messages)
    return Measured(row, len(prompt), lengths, unknown is not None and unknown in prompt, special)


def completion_tokens(completion: Completion, text: Text) -> int:
    """Tokens that are trained on; those of a run are kept, and others are those of the text."""
    return len(completion.tokens) or len(text.completion(completion.text, completion.finished))


def place_of(source: Source, row: Row) -> str:
    """Where a row stands, for messages."""
    return source.place(row) if isinstance(source, ListedRows) else f"row {row.id!r}"


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Number, mean and quantiles of the values that are known; the number alone where none is."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return {"number": 0}
    quantiles = {name: float(np.quantile(known, share)) for name, share in SHARES.items()}
    return {"number": len(known), "mean": float(known.mean()), **quantiles}


def token_figures(sampled: Sampled) -> dict[str, dict[str, float]]:
    """Lengths in tokens of prompts, of completions, and of prompts with their longest completion."""
    rows = sampled.measured
    return {
        "prompt": spread([one.prompt for one in rows]),
        "completion": spread([length for one in rows for length in one.completions]),
        "prompt and longest": spread([one.prompt + max(one.completions) for one in rows if one.completions]),
    }


def completion_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """How many completions rows bring, who wrote them, and what is known of them."""
    completions = [completion for row in rows for completion in row.completions]
    return {
        "rows with completions": sum(bool(row.completions) for row in rows),
        "completions a row": spread([len(row.completions) for row in rows]),
        "written by": dict(Counter(completion.source for completion in completions)),
        "with reward": sum(math.isfinite(completion.reward) for completion in completions),
        "with log π_ref": sum(math.isfinite(completion.reference_log_prob) for completion in completions),
        "cut by a length limit": sum(not completion.finished for completion in completions),
    }


def reward_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Rewards of completions, and how many of a row are equal."""
    rewards = [completion.reward for row in rows for completion in row.completions]
    several = [r for row in rows if len(r := [c.reward for c in row.completions if math.isfinite(c.reward)]) > 1]
    return {
        **spread(rewards),
        "different": len({reward for reward in rewards if math.isfinite(reward)}),
        "rows with several": len(several),
        "rows whose rewards are all equal": sum(len(set(one)) == 1 for one in several),
        "rows with equal rewards": sum(len(set(one)) < len(one) for one in several),
    }


def reference_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The references of each row, as training ranks completions among them."""
    references = [references_of(row) for row in rows]
    rewards = [np.asarray([completion.reward for completion in row.completions], np.float32) for row in rows]
    comparisons = [
        ties.compare_with_references(reward_S, one.own_S, one.rewards_N)
        for reward_S, one in zip(rewards, references, strict=True)
        if len(reward_S) and len(one.rewards_N)
    ]
    compared = sum(int(one.compared_C.sum()) for one in comparisons)
    tied = sum(float(one.tied_C.sum()) for one in comparisons)
    return {
        "references a row": spread([len(one.rewards_N) for one in references]),
        "rows without": sum(not len(one.rewards_N) for one in references),
        "rows whose completions are each other's references": sum(
            any(one.own_S) and row.completions[0].source == "dataset" for row, one in zip(rows, references, strict=True)
        ),
        "rows whose references are all equal": sum(ties.is_flat(one.rewards_N) for one in references),
        "comparisons": compared,
        "share of ties": tied / compared if compared else 0.0,
    }


def pair_figures(rows: Sequence[Row], reversed_pairs: int) -> dict[str, int]:
    """Pairs that rows bring: of all rows with two completions or more, how the best and the worst differ.

    Args:
      reversed_pairs: rows of the whole source whose chosen completion has the lower reward.
    """
    several = [row for row in rows if len(row.completions) > 1]
    scored = [row for row in several if all(math.isfinite(c.reward) for c in row.completions)]
    return {
        "rows with two completions or more": len(several),
        "with rewards": len(scored),
        "of which only the order is known": sum(bool(row.preferences) for row in several if row not in scored),
        "best and worst are equal": sum(len({c.reward for c in row.completions}) == 1 for row in scored),
        "chosen has the lower reward": reversed_pairs,
    }


class Losses(NamedTuple):
    """Rows or completions that a run would drop or change, for one reason.

    Attributes:
      key: of the config that decides it, or "".
      number, of: how many of those that were looked at.
      first: where the first stands.
    """

    what: str
    key: str
    number: int
    of: int
    first: str


def losses(source: Source, sampled: Sampled, prompt_tokens: int, max_tokens: int, over_long: str) -> list[Losses]:
    """What would be dropped of the sampled rows, and what may surprise, most important first.

    Args:
      prompt_tokens: `prompts.max_tokens`.
      max_tokens, over_long: `pack.max_tokens`, `pack.over_long`.
    """
    rows = sampled.measured
    drops = over_long == "drop"
    fate = "are dropped" if drops else "get their prompt cut"
    kept = [one for one in rows if one.prompt <= prompt_tokens]
    long = [(one, length) for one in kept for length in one.completions if one.prompt + length > max_tokens]
    count = sum(len(one.completions) for one in kept)
    again_R = listing.list_rows(sampled.rows).repeats()
    repeated = {row.id for row, again in zip(sampled.rows, again_R, strict=True) if again}

    def found(what: str, key: str, has: Callable[[Measured], object]) -> Losses:
        those = [one.row for one in rows if has(one)]
        return Losses(what, key, len(those), len(rows), place_of(source, those[0]) if those else "")

    entries = [
        Losses("rows are refused by the chat template", "model.template", len(sampled.refused), len(sampled.rows), ""),
        found(
            f"prompts are dropped: longer than {prompt_tokens} tokens",
            "prompts.max_tokens",
            lambda one: one.prompt > prompt_tokens,
        ),
        found(
            f"prompts leave no room for a completion in {max_tokens} tokens",
            "pack.max_tokens",
            lambda one: drops and max_tokens <= one.prompt <= prompt_tokens,
        ),
        Losses(
            f"completions {fate}: longer than {max_tokens} tokens with their prompt",
            "pack.max_tokens",
            len(long),
            count,
            place_of(source, long[0][0].row) if long else "",
        ),
        found("prompts have characters that the tokenizer does not know", "", lambda one: one.unknown),
        found("prompts hold strings like special tokens, taken as plain text", "", lambda one: one.special),
        found(f"prompts have a role other than {', '.join(listing.ROLES)}", "", lambda one: listing.odd_role(one.row)),
        found("prompts repeat an earlier one", "", lambda one: one.row.id in repeated),
        found("rows have two completions of the same text", "", lambda one: listing.same_texts(one.row)),
        found("rows have rewards that are equal in float32", "", lambda one: listing.same_in_float32(one.row)),
    ]
    return [entry for entry in entries if entry.number]


def next_stages(figures: dict[str, Any], new_model: bool = False) -> dict[str, str]:
    """What `config.stages` may begin with for these rows, and why.

    Args:
      figures: content of inspect.json.
      new_model: there is none to start from, so that one is trained first.
    """
    stages, why = _stages_for_rows(figures)
    return {"stages": f"sft,{stages}" if new_model else stages, "why": why}


def _stages_for_rows(figures: dict[str, Any]) -> tuple[str, str]:
    completions, total = figures["completions"], sum(figures["completions"]["written by"].values())
    if completions["rows with completions"] < figures["sampled"]["rows"]:
        some = "not all rows bring" if total else "rows bring no"
        return "sample,score,reference,train", f"{some} completions"
    if completions["with reward"] < total:
        if figures["pairs"]["of which only the order is known"]:
            order = "pairs are in an order without rewards"
            if completions["with log π_ref"] == total:
                return "train", f"{order}, with log π_ref: for DPO and SimPO; QRPO and REBEL score first"
            return "reference,train", f"{order}: for DPO; SimPO needs train alone, QRPO and REBEL score first"
        return "score,reference,train", "not all completions have rewards"
    if figures["references"]["rows without"]:
        why = "QRPO needs references"
        if figures["pairs"]["rows with two completions or more"]:
            why += "; DPO and REBEL need reference,train alone, and SimPO train"
        return "sample,score,reference,train", why
    if completions["with log π_ref"] < total:
        return "reference,train", "completions have rewards and references, and no log π_ref"
    return "train", "completions have rewards, references and log π_ref"
