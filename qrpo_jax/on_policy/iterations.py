"""What a run's iterations were: a file for the report, with the figures of each rollout."""

from pathlib import Path
from typing import Any

from qrpo_jax.files import write_json
from qrpo_jax.on_policy.rollout import read_facts
from qrpo_jax.on_policy.rollout_figures import PREFIX

NAME = "iterations.json"  # in the stage's folder


def write_iterations(path: Path, rollouts: Path, count: int, steps_each: int) -> None:
    """Writes the file, from the facts of all rollouts, which are complete."""
    write_json(path, [about(read_facts(rollouts, i), i, steps_each) for i in range(count)])


def about(facts: dict[str, Any], iteration: int, steps_each: int) -> dict[str, Any]:
    """A rollout in the file.

    Returns:
      iteration, from 1; step, the first one that learns from it; staleness, updates since the policy that sampled;
      samples, completions drawn so far; beta; figures and intervals, see `figures_of`.
    """
    made = iteration * steps_each
    named = {part: {k.removeprefix(PREFIX): v for k, v in facts[part].items()} for part in ("figures", "intervals")}
    own = {"iteration": iteration + 1, "step": made + 1, "staleness": made - facts["step"]}
    return own | {"samples": facts["samples"], "beta": facts["beta"]} | named
