"""A training run with a value head: it learns values, resumes exactly, and leaves a policy without it."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrpo_jax.data.examples import Examples
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job.job import Job
from qrpo_jax.job.trainer import Training, configured_optimizer, make_checkpoints, planned_feed, train, trainable
from qrpo_jax.model import lora, value_head
from qrpo_jax.model.token_log_probs import NO_TARGET
from qrpo_jax.stages.export import merged_parameters
from qrpo_jax.training.fit import Visitor
from qrpo_jax.training.metrics import read_metrics
from qrpo_jax.training.saved_parameters import kept_folder, load_parameters
from qrpo_jax.training.state import State, parameter_layout
from qrpo_jax.training.step import batch_log_probs
from tests.helpers import tiny
from tests.helpers.jobs import job
from tests.helpers.runs import Killed
from tests.helpers.value_heads import actor_critic, critic

REWARD = 0.7
SMALL: dict[str, Any] = {
    "stages": ("train", "export"),
    "train__batch_size": 11,
    "train__epochs": 7,
    "train__learning_rate": 0.05,
    "train__schedule": "constant",
    "train__checkpoint_every": 3,
    "train__keep_every": 7,
    "train__evaluate_every": 5,
    "log__tensorboard": False,
}
ADAPTED = {"lora__rank": 3}


def examples(run: Job, count: int = 23, seed: int = 0) -> Examples:
    """Completions that all have the same reward."""
    table = tiny.examples(count, vocab=run.shape.settings.vocab_size, seed=seed)
    return tiny.with_numbers(table, reward=np.full(count, REWARD, np.float32))


def training(run: Job, objective: Any = actor_critic, **changes: Any) -> Training:
    adapted = run.shape.lora is not None
    return Training(
        objective,
        run.log_prob_settings(run.mesh, backward=True),
        start=lambda: run.fresh_adapters(run.mesh) if adapted else run.fresh_parameters(run.mesh),
        frozen=run.fresh_parameters(run.mesh) if adapted else None,
        held_out=examples(run, 5, seed=1),
        value_head=True,
    )._replace(**changes)


def run_to_end(run: Job, what: Training) -> None:
    train(run, "train", what, planned_feed(run, "train", examples(run)))


def last_state(run: Job, what: Training) -> State:
    """What the last checkpoint holds."""
    feed = planned_feed(run, "train", examples(run))
    optimizer, _ = configured_optimizer(run.config, "train", feed.steps)
    with make_checkpoints(run, "train") as checkpoints:
        found = checkpoints.restore(trainable(run, what, optimizer).abstract(), feed.batches)
    assert found is not None
    return found.state


def exported(run: Job, folder: Path, parameters: Any) -> dict[str, bytes]:
    model_folder.save(folder, run.shape.settings, parameters, run.text)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@functools.cache
def finished(place: Path, adapted: bool) -> tuple[Job, Training, State]:
    run = job(place / f"run {adapted}", **SMALL, **(ADAPTED if adapted else {}))
    what = training(run)
    run_to_end(run, what)
    return run, what, last_state(run, what)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_the_values_of_a_constant_reward_are_learned(place: Path) -> None:
    """From 0 to the reward, for completions that no step saw."""
    run = job(place / "critic", **SMALL | {"train__epochs": 17})
    what = training(run, critic)
    run_to_end(run, what)
    unseen = tiny.batch(examples(run, 31, seed=2))
    values = batch_log_probs(run.shape.graph, last_state(run, what).parameters, unseen, what.log_prob_settings).value
    errors = np.asarray(values)[unseen.targets_BxL != NO_TARGET] - REWARD
    assert len(errors) > 100 and np.abs(errors).mean() < 0.05, errors
    lines = read_metrics(run.folder("train") / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(REWARD**2, rel=1e-6), "values are 0 before the first update"
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert held_out[-1] < 0.01 < held_out[0], held_out


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True])
def test_interrupted_and_resumed_equals_undisturbed_bit_for_bit(place: Path, adapted: bool) -> None:
    _, _, undisturbed = finished(place, adapted)
    run = job(place / f"killed {adapted}", **SMALL, **(ADAPTED if adapted else {}))

    def kill(step: int, _: Any) -> dict[str, float]:
        raise Killed

    at = Visitor(lambda step: step == 8, kill, "evaluate")
    with pytest.raises(Killed):
        run_to_end(run, training(run, watch=lambda steps, frozen: at))
    what = training(run)
    run_to_end(run, what)
    state = last_state(run, what)
    assert state.step == undisturbed.step == 15
    tiny.assert_trees_equal(jax.device_get(state), jax.device_get(undisturbed))
    assert tiny.largest(value_head.split(state.parameters)[1]) > 0.1


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_saved_and_exported_is_the_policy_whose_head_was_removed(place: Path, adapted: bool) -> None:
    run, _, state = finished(place, adapted)
    policy, head = value_head.split(state.parameters)
    assert head is not None
    tiny.assert_trees_equal(run.trained_parameters("train", run.mesh), policy)
    if run.shape.lora is not None:
        policy = lora.merge(run.fresh_parameters(run.mesh), policy, run.shape.lora)
    files = exported(run, place / f"by hand {adapted}", policy)
    assert "model.safetensors" in files, list(files)
    assert exported(run, place / f"exported {adapted}", merged_parameters(run)) == files
    layout = parameter_layout(run.mesh, run.shape.settings, lora=run.shape.lora)
    kept = load_parameters(kept_folder(run.folder("train"), 7), layout)
    assert jax.tree.structure(kept) == jax.tree.structure(layout)


@pytest.mark.parametrize("adapted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_samples_between_steps_gets_the_policy_alone(place: Path, adapted: bool) -> None:
    run = job(place / f"watched {adapted}", **SMALL | {"train__epochs": 1}, **(ADAPTED if adapted else {}))
    seen: list[Any] = []

    def look(step: int, parameters: Any) -> dict[str, float]:
        seen.append(jax.tree.structure(parameters))
        return {"seen": 1.0}

    run_to_end(run, training(run, watch=lambda steps, frozen: Visitor(lambda step: True, look, "evaluate")))
    layout = parameter_layout(run.mesh, run.shape.settings, lora=run.shape.lora)
    assert len(seen) == 3 and set(seen) == {jax.tree.structure(layout)}, seen
