"""Rewards among the counts of a unit, so that those of all units make one histogram without reading rows again.

Counts of units add up by name, so a reward is a name, too: "reward, 0.25". It is rounded to four significant digits.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from qrpo_jax.data.rows import Row
from qrpo_jax.evaluation.histogram import Spread, spread
from qrpo_jax.job.verdicts import Counts

REWARD = "reward, "


def counts_of(rows: Iterable[Row]) -> Counts:
    """The rewards of a unit's completions, without those that are missing."""
    rewards = (c.reward for row in rows for c in row.completions)
    # -0.0 is the reward 0, and no other one.
    return dict(Counter(f"{REWARD}{reward + 0.0:.4g}" for reward in rewards if math.isfinite(reward)))


def parted(counts: Mapping[str, int]) -> tuple[Counts, Spread | None]:
    """Counts without rewards, and the spread of these; None if there are none."""
    others = {name: number for name, number in counts.items() if not name.startswith(REWARD)}
    found = {float(name.removeprefix(REWARD)): number for name, number in counts.items() if name not in others}
    return others, spread(found) if found else None
