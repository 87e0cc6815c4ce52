"""The reward "sum": a weighted sum of others, whose numbers stay with the completion as its components."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from qrpo_jax.data.rows import LARGEST_REWARD, Row
from qrpo_jax.rewards.failures import Failure, Failures, messages_of
from qrpo_jax.rewards.functions import Found, no_number, where
from qrpo_jax.rewards.parts import Part
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.scores import OK, Components, Scores


class WeightedReward(Reward):
    """Adds up the numbers of its parts, each as its `Part` says.

    A completion that one part cannot score has no reward, and the parts after it do not see it. The verdict of a scored
    completion is that of the first part that gives verdicts; those of further ones are counted by their names.

    Args:
      parts: with the reward of each.
      alone: whether this process, of several that compute units together, scores with the parts that need no others.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, Reward]], failures: Failures, alone: Callable[[], bool] = lambda: True
    ) -> None:
        self._parts, self._failures, self._alone = list(parts), failures, alone
        self._exits = ExitStack()
        self.collective = any(reward.collective for _, reward in parts)
        self.gives_verdicts = any(reward.gives_verdicts for _, reward in parts)

    @property
    def protections(self) -> dict[str, bool]:
        """Of all parts together: what holds in each sandbox."""
        found = [reward.protections for _, reward in self._parts if reward.protections]
        return {name: all(each.get(name, False) for each in found) for name in (found[0] if found else ())}

    @property
    def isolation(self) -> str:
        return ", ".join(dict.fromkeys(reward.isolation for _, reward in self._parts if reward.isolation))

    def describe(self) -> list[str]:
        weights = " ".join(f"{part.weight:+g} {part.name}" for part, _ in self._parts)
        further = [clause for _, reward in self._parts for clause in reward.describe()]
        return [f"the sum {weights}", *dict.fromkeys(further)]

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            for _, reward in self._parts:
                exits.enter_context(reward)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.close()

    def score(self, rows: Sequence[Row]) -> Scores:
        found: list[list[dict[str, float]]] = [[{} for _ in row.completions] for row in rows]
        verdicts = [[""] * len(row.completions) for row in rows]
        left = [list(range(len(row.completions))) for row in rows]  # completions that no part has failed on
        counts, messages, leading = Counter[str](), dict[str, dict[str, int]](), False
        for part, reward in sorted(self._parts, key=lambda pair: not pair[1].collective):
            if not reward.collective and not self._alone():
                continue
            asked = [
                dataclasses.replace(row, completions=tuple(row.completions[i] for i in kept))
                for row, kept in zip(rows, left, strict=True)
            ]
            scores = reward.score(asked)
            counts.update(scores.counts)
            _add(messages, scores.messages)
            counted = Counter[str]()
            for r, kept in enumerate(left):
                for i, number, verdict in zip(kept, scores.rewards[r], scores.verdicts[r], strict=True):
                    if number is None:
                        verdicts[r][i] = verdict
                        continue
                    found[r][i][part.name] = float(np.float32(number))
                    if reward.gives_verdicts and not leading:
                        verdicts[r][i] = verdict
                    elif reward.gives_verdicts:
                        counted[f"{part.name}: {verdict}"] += 1
                left[r] = [i for i, number in zip(kept, scores.rewards[r], strict=True) if number is not None]
            counts.update(counted)
            leading = leading or reward.gives_verdicts
        rewards: list[list[float | None]] = [[None] * len(row.completions) for row in rows]
        failed = []
        for r, kept in enumerate(left):
            for i in kept:
                total = self._sum(found[r][i], where(rows[r], i))
                if isinstance(total, Failure):
                    failed.append(total)
                    verdicts[r][i] = total.verdict
                else:
                    rewards[r][i] = total
        _add(messages, messages_of(failed))
        return Scores(
            rewards,
            [[verdict or OK for verdict in row] for row in verdicts],
            dict(counts),
            messages,
            [[self._components(one) for one in row] for row in found],
        )

    def _sum(self, components: dict[str, float], of: str) -> Found:
        total = sum(part.value(components[part.name]) for part, _ in self._parts if part.name in components)
        if abs(total) <= LARGEST_REWARD:
            return total
        return self._failures.mark(no_number("sum", total, of, f"must be at most {LARGEST_REWARD:.2g} in size"))

    def _components(self, components: dict[str, float]) -> Components:
        """In the order of the config."""
        return tuple((part.name, components[part.name]) for part, _ in self._parts if part.name in components)


def _add(messages: dict[str, dict[str, int]], more: Mapping[str, Mapping[str, int]]) -> None:
    """Adds numbers of messages, by verdict and line."""
    for verdict, lines in more.items():
        messages[verdict] = dict(Counter(messages.get(verdict, {})) + Counter(lines))
