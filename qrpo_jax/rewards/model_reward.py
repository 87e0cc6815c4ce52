"""The reward "model": a reward model with the interface of a `Reward`."""

from collections.abc import Sequence

from qrpo_jax.data.rows import Row
from qrpo_jax.rewards.models import ModelScorer
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.scores import OK, TOO_LONG, Scores


class ModelReward(Reward):
    """Asks a reward model. A completion that is too long for it has no reward."""

    collective = True

    def __init__(self, scorer: ModelScorer) -> None:
        self._scorer = scorer

    def describe(self) -> list[str]:
        model = self._scorer.model
        return [f"by the reward model in {model.folder}, conversations of up to {model.max_tokens} tokens"]

    def score(self, rows: Sequence[Row]) -> Scores:
        scored = self._scorer.score_rows(rows)
        scores = iter(scored.scores)
        rewards = [[next(scores) for _ in row.completions] for row in rows]
        verdicts = [[TOO_LONG if reward is None else OK for reward in row] for row in rewards]
        return Scores(rewards, verdicts, {"special strings taken as text": scored.special_strings})
