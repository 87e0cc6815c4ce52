"""What the stages of a run put on record besides results.json, as its page shows it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.training.host_skew import Summary
from qrpo_jax.training.time_sheet import Goodput


class HeldOut(NamedTuple):
    """Held-out completions of both sides; prompts are in the same order on both.

    Attributes:
      rewards: for each side the rewards [S] of each prompt.
      places: for each kind of sample the places among all prompts of those that are shown.
      examples: for each side the rows of these, by place.
      lengths: for each side length and log-ratio of completions, see `length_bias.points`; {} if unknown.
    """

    rewards: dict[str, list[np.ndarray]]
    places: dict[str, list[int]]
    examples: dict[str, dict[int, Row]]
    lengths: Mapping[str, Mapping[str, Any]]


class TrainingData(NamedTuple):
    """Rewards of the first rows that were trained on, for a check of the data.

    Attributes:
      references: of each prompt the rewards [N] of completions of the reference policy, those of the data set included.
      brought: of each prompt the rewards [S] of completions that the data set brought.
    """

    references: list[np.ndarray]
    brought: list[np.ndarray]


class OnPolicy(NamedTuple):
    """What the iterations of an on-policy run were.

    Attributes:
      iterations: content of iterations.json.
      references: rewards of the stored reference completions of some prompts, [N] each; none if the policy was not
        ranked among them.
      by_group: the policy was ranked within each group, and log-ratios are those to the policy that sampled.
    """

    iterations: Sequence[Mapping[str, Any]]
    references: Sequence[np.ndarray]
    by_group: bool


class Verdicts(NamedTuple):
    """What a stage, or one of its sides, found about completions.

    Attributes:
      title: the stage, and the side if it has two.
      completions: their number by verdict.
      first_lines: for some failing verdicts the most frequent first lines, and their numbers. Untrusted text.
    """

    title: str
    completions: dict[str, int]
    first_lines: dict[str, dict[str, int]]


class StageRows(NamedTuple):
    """Rows of a stage, or of one of its sides.

    Attributes:
      rows_in, rows_out: read and written.
      cut: completions that the length limit cut, and `cut_share` their share; None where none were sampled.
    """

    title: str
    rows_in: int
    rows_out: int
    cut: int | None
    cut_share: float | None


class StagePace(NamedTuple):
    """Work of a stage, or of one of its sides.

    Attributes:
      amount: of `what` it got done.
      seconds: of work on all units; those of processes side by side add up.
      rate: of one process, in words.
      warm: the rate leaves out the first unit of each start.
    """

    title: str
    amount: int
    what: str
    seconds: float
    rate: str
    warm: bool


class Protections(NamedTuple):
    """How model-written code was kept apart.

    Attributes:
      level: of isolation.
      prevented, not_prevented: actions.
    """

    level: str
    prevented: list[str]
    not_prevented: list[str]


class RunRecord(NamedTuple):
    """Everything else that a page lists.

    Attributes:
      counts: for each stage its counts by name.
      rows: of the stages that write rows.
      verdicts: of the stages that scored completions with verdicts.
      padding: share of padding in each training stage's batches.
      comparisons: ties among the training rewards: compared, tied, prompts, flat; empty if unknown.
      protections: what model-written code was prevented from doing, and what not; None if no such code ran.
      settings: all settings of the run by name.
      metrics: of each training stage the lines of its metrics file.
      paces: of the stages that write rows.
      times: where the time of each training stage went.
      skews: between the processes in each training stage; empty for a job of one process.
      starts: of each finished stage, see `provenance`.
      benchmark: content of benchmark.json; None for a run without this stage.
      compiled: content of compile.json, if stage `compile` ran in the same folder.
      on_policy: None for a run that trained on stored data.
    """

    counts: list[tuple[str, list[tuple[str, int]]]]
    rows: list[StageRows]
    verdicts: list[Verdicts]
    padding: dict[str, float]
    comparisons: dict[str, float]
    protections: Protections | None
    settings: dict[str, Any]
    metrics: dict[str, list[dict[str, float]]]
    paces: list[StagePace]
    times: dict[str, Goodput]
    skews: dict[str, Summary]
    starts: Mapping[str, Sequence[Mapping[str, Any]]]
    benchmark: dict[str, Any] | None = None
    compiled: dict[str, Any] | None = None
    on_policy: OnPolicy | None = None
