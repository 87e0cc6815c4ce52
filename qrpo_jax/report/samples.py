"""Held-out prompts with completions of both sides: the first ones, and those whose mean reward changed most."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Completion, Message, Row

SHOWN_COMPLETIONS = 4  # of each side
KINDS = ("improved most", "worsened most", "first prompts, not selected")
ALONE = ("highest rewards", "lowest rewards", "first prompts, not selected")  # kinds of a policy alone
TITLE_CHARACTERS = 90


class Sample(NamedTuple):
    """A prompt with completions.

    Attributes:
      title: the beginning of its last message. Untrusted, as all texts.
      means: mean reward of each side, over all of its completions.
      change: of the policy to the reference; None for a policy alone.
      counts: completions of each side, of which some are shown.
    """

    title: str
    messages: Sequence[Message]
    means: dict[str, float]
    change: float | None
    counts: dict[str, int]
    completions: Mapping[str, Sequence[Completion]]


def chosen(means: Mapping[str, Sequence[float]], count: int) -> dict[str, list[int]]:
    """For each kind the places of its prompts among all; a prompt is in one kind only.

    Prompts that did not change are neither improved nor worsened.

    Args:
      means: mean reward of each prompt, for both sides or for the policy alone.
      count: prompts of each kind, at most.
    """
    alone = "reference" not in means
    value = np.asarray(means["policy"]) - (0 if alone else np.asarray(means["reference"]))
    order = np.argsort(-value, kind="stable")
    best = [int(i) for i in order if alone or value[i] > 0][:count]
    worst = [int(i) for i in order[::-1] if (alone or value[i] < 0) and i not in best][:count]
    first = [i for i in range(len(value)) if i not in best and i not in worst][:count]
    return dict(zip(ALONE if alone else KINDS, (best, worst, first), strict=True))


def samples(
    places: dict[str, list[int]], means: Mapping[str, Sequence[float]], rows: dict[str, dict[int, Row]]
) -> dict[str, list[Sample]]:
    """The samples by kind; kinds without any are left out.

    Args:
      places: from `chosen`.
      rows: of each side, by place.
    """
    found: dict[str, list[Sample]] = {}
    for kind, several in places.items():
        for i in several:
            of_prompt = {side: of_side[i] for side, of_side in rows.items()}
            mean: dict[str, Any] = {side: float(of_side[i]) for side, of_side in means.items()}
            messages = of_prompt["policy"].messages
            completions = {side: row.completions[:SHOWN_COMPLETIONS] for side, row in of_prompt.items()}
            counts = {side: len(row.completions) for side, row in of_prompt.items()}
            change = mean["policy"] - mean["reference"] if "reference" in mean else None
            found.setdefault(kind, []).append(Sample(title(messages), messages, mean, change, counts, completions))
    return found


def title(messages: Sequence[Message]) -> str:
    """The beginning of the last message, on one line."""
    text = " ".join(messages[-1].content.split()) if messages else ""
    return text if len(text) <= TITLE_CHARACTERS else f"{text[:TITLE_CHARACTERS]} …"
