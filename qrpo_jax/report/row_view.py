"""One row in a terminal: its messages, each completion with what is known of it, and the payload."""

import json
import math
from collections.abc import Iterator

import numpy as np

from qrpo_jax.data.row_references import references_of
from qrpo_jax.data.rows import Completion, Row
from qrpo_jax.evaluation.ranks import mid_rank_quantile
from qrpo_jax.report.terminal import number, one_line, wrapped

MARGIN = "  "


def lines(row: Row, place: str, width: int) -> Iterator[str]:
    """The lines of a row.

    Args:
      place: where it stands.
      width: columns of the terminal.
    """
    yield from wrapped(f"{place}: {one_line(row.id)}", width)
    for message in row.messages:
        yield ""
        yield from wrapped(one_line(message.role), width)
        yield from wrapped(message.content, width, MARGIN)
    quantiles = quantiles_of(row)
    for i, completion in enumerate(row.completions):
        yield ""
        yield from wrapped(f"completion {i}: {facts(completion, quantiles[i])}", width)
        yield from wrapped(completion.text, width, MARGIN)
    if not row.completions:
        yield from ("", "no completion")
    for better, worse in row.preferences:
        yield from ("", f"completion {better} is preferred to completion {worse}")
    if len(row.reference_rewards):
        yield ""
        rewards = ", ".join(number(float(reward)) for reward in row.reference_rewards)
        yield from wrapped(f"rewards of {len(row.reference_rewards)} references without a text: {rewards}", width)
    if row.payload:
        yield from ("", "payload")
        yield from wrapped(payload_text(row.payload), width, MARGIN)


def facts(completion: Completion, quantile: float) -> str:
    """What is known of a completion, in one line."""
    known = [completion.source, "ended" if completion.finished else "cut by the length limit"]
    if len(completion.tokens):
        known.append(f"{len(completion.tokens):,} tokens")
    if not math.isnan(completion.reward):
        parts = ", ".join(f"{one_line(name)} {number(part)}" for name, part in completion.components)
        known.append(f"reward {number(completion.reward)}" + (f" ({parts})" if parts else ""))
    if not math.isnan(quantile):
        known.append(f"quantile {quantile:.3f}")
    if not math.isnan(completion.log_prob):
        known.append(f"log-prob {completion.log_prob:.2f} as sampled")
    if not math.isnan(completion.reference_log_prob):
        known.append(f"log π_ref {completion.reference_log_prob:.2f}")
    return ", ".join(known)


def quantiles_of(row: Row) -> list[float]:
    """The quantile of each completion among the row's references, without itself, a tie as half; NaN if unknown."""
    references, quantiles = references_of(row), []
    for i, completion in enumerate(row.completions):
        others = references.others(i)
        known = len(others) and math.isfinite(completion.reward) and np.isfinite(others).all()
        quantile = mid_rank_quantile(np.asarray([completion.reward], np.float32), others)[0] if known else math.nan
        quantiles.append(float(quantile))
    return quantiles


def payload_text(payload: str) -> str:
    """A payload with a line for each of its entries, where that is JSON of an object."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return payload
    if not isinstance(value, dict):
        return payload
    return "\n".join(f"{key}: {one if isinstance(one, str) else json.dumps(one)}" for key, one in value.items())
