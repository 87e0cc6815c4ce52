"""Parts of on-policy training: order of prompts, numbers of tokens, groups, and settings that are refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.per_completion import NEUTRAL
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.intervals import mean_with_interval
from qrpo_jax.model.layout import Layout
from qrpo_jax.on_policy.background import Background
from qrpo_jax.on_policy.batches import rank
from qrpo_jax.on_policy.prompt_order import PromptOrder, bare
from qrpo_jax.on_policy.rollout import Rollout, aligned, is_whole, read_rollout, write_rollout
from qrpo_jax.on_policy.rollout_figures import figures_of, has_signal
from qrpo_jax.on_policy.token_numbers import from_positions, in_positions
from tests.helpers.jobs import job
from tests.helpers.on_policy_jobs import ON_POLICY


def row(name: str, rewards: list[float], lengths: list[int], source: str = "policy") -> Row:
    completions = tuple(
        Completion("7" * n, np.arange(n, dtype=np.int32), True, source, reward, token_log_probs=np.zeros(n, np.float32))
        for reward, n in zip(rewards, lengths, strict=True)
    )
    return Row(name, (Message("user", "?"),), completions=completions)


@pytest.mark.parametrize("seed", [None, 3])
def test_every_round_has_every_prompt_once_under_a_name_of_its_own(seed: int | None) -> None:
    rows = [row(f"p{i}", [], []) for i in range(7)]
    order = PromptOrder(rows, seed)
    names = [one.id for one in order.rows(range(21))]
    assert len(set(names)) == 21
    rounds = [[name.partition("@")[0] for name in names[i : i + 7]] for i in (0, 7, 14)]
    assert all(sorted(of) == [f"p{i}" for i in range(7)] for of in rounds), rounds
    if seed is None:
        assert rounds == [[f"p{i}" for i in range(7)]] * 3
    else:
        assert len(set(map(tuple, rounds))) == 3, rounds
    assert [one.id for one in order.rows([20, 4])] == [names[20], names[4]]


def test_reference_rewards_are_those_of_the_reference_policy_and_of_the_row() -> None:
    own = dataclasses.replace(
        row("a", [0.5, 0.25], [2, 3], "reference"), reference_rewards=np.asarray([0.75], np.float32)
    )
    assert bare(own, True).reference_rewards.tolist() == [0.5, 0.25, 0.75]
    assert bare(own, False).reference_rewards.tolist() == [0.75] and not bare(own, True).completions
    with pytest.raises(UserError, match="reward is nan"):
        bare(row("a", [float("nan")], [2], "reference"), True)


def test_numbers_of_tokens_stand_where_a_batch_predicts_them() -> None:
    lengths_K = np.asarray([2, 5, 3], np.int32)
    entries_C = np.asarray([2, 0])  # completion 1 is no example
    segments_BxL = np.asarray([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]], np.int32)
    example_BxS = np.asarray([[0, -1], [1, -1]], np.int32)
    layout = Layout(segments_BxL, segments_BxL, segments_BxL)
    numbers = type(NEUTRAL)(*(np.zeros((2, 2)) for _ in NEUTRAL))
    batch = Batch(segments_BxL, layout, segments_BxL, example_BxS >= 0, example_BxS, numbers)
    values = np.arange(10, dtype=np.float32) + 1
    placed_BxL = in_positions(values, batch, entries_C, lengths_K)
    assert placed_BxL.tolist() == [[0, 8, 9, 10, 0, 0], [0, 0, 1, 2, 0, 0]]
    out = np.zeros(10, np.float32)
    from_positions(placed_BxL, segments_BxL, example_BxS, entries_C, lengths_K, out)
    assert out.tolist() == [1, 2, 0, 0, 0, 0, 0, 8, 9, 10]


def test_numbers_follow_the_completions_that_scoring_left() -> None:
    rows = [row("a", [1, 2, 3], [2, 1, 3]), row("b", [4], [2])]
    kept = [dataclasses.replace(rows[0], completions=(rows[0].completions[0], rows[0].completions[2]))]
    kept = [dataclasses.replace(one, completions=tuple(map(dataclasses.replace, one.completions))) for one in kept]
    found = aligned(rows, {"old": np.arange(8.0)}, kept)
    assert found["old"].tolist() == [0, 1, 3, 4, 5]
    assert aligned(rows, {"old": np.arange(8.0)}, [])["old"].tolist() == []


def test_a_rollout_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    rollout = Rollout([row("a", [0.5], [3])], {"old": np.asarray([1, np.nan, 2], np.float32)}, {"step": 5})
    write_rollout(tmp_path, 1, 4, rollout)
    found = read_rollout(tmp_path, 1, 4)
    assert is_whole(tmp_path, 1, 4) and not is_whole(tmp_path, 0, 4)
    assert np.array_equal(found.tokens["old"], rollout.tokens["old"], equal_nan=True) and found.facts == {"step": 5}
    for name in ("tokens/00001.npz", "facts/00001.json", "rows-train.array_record-00001-of-00004"):
        path, content = tmp_path / name, (tmp_path / name).read_bytes()
        path.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
        assert not is_whole(tmp_path, 1, 4), name
        path.write_bytes(content)
    assert is_whole(tmp_path, 1, 4)


def test_figures_are_means_over_what_was_drawn() -> None:
    rows = [row("a", [1.0, 0.0], [2, 1]), row("b", [0.5, 0.5], [1, 1])]
    old = np.log(np.asarray([0.5, 0.25, 0.5, 0.125, np.nan]))
    tokens = {"old": old, "sampler": old + 0.25, "reference": np.log(np.asarray([0.25, 0.25, 1.0, 0.125, np.nan]))}
    found, intervals = figures_of(rows, tokens, {"completions": 6})
    log2 = np.log(2)
    wanted = {
        "reward": 0.5,
        "tokens": 1.25,
        "share_finished": 1.0,
        "groups_with_signal": 0.5,
        "completions": 4.0,
        "drawn": 6.0,
        "entropy": (1 + 2 + 1 + 3) / 4 * log2,
        "sampler_gap": 0.25,
        "largest_sampler_gap": 0.25,
        "kl_to_reference": (log2 - log2 + 0) / 3,
        "kl_to_reference_k3": ((0.5 - 1 + log2) + (2 - 1 - log2)) / 4,
    }
    assert found == pytest.approx({f"rollout_{name}": value for name, value in wanted.items()})
    mean, ends = mean_with_interval(np.asarray([0.5, 0.5]))
    assert intervals["rollout_reward"] == ends == [mean, mean]
    low, high = intervals["rollout_entropy"]
    assert low < found["rollout_entropy"] < high and "rollout_drawn" not in intervals
    assert not figures_of(rows[:1], {name: values[:3] for name, values in tokens.items()}, {})[1]  # of a single prompt
    assert figures_of([], {"old": old[:0], "sampler": old[:0]}, {}) == ({}, {})
    assert [has_signal(one) for one in rows] == [True, False] and not has_signal(row("c", [], []))


def test_a_group_is_its_own_reference(tmp_path: Path) -> None:
    """Quantiles are among the other completions of the prompt, whatever the reference policy had."""
    run = job(tmp_path / "run", **ON_POLICY | {"rollout__quantiles": "group"})
    one = dataclasses.replace(row("a", [0.1, 0.9, 0.5], [2, 3, 4]), reference_rewards=np.asarray([], np.float32))
    examples = rank(run, Rollout([one], {}, {}))
    assert examples.completions_C.quantile.tolist() == pytest.approx([0, 1, 0.5])
    assert examples.completions_C.references.tolist() == [2, 2, 2]


def test_completions_that_were_cut_have_no_weight_if_asked_for(tmp_path: Path) -> None:
    one = row("a", [0.1, 0.9, 0.5], [2, 3, 4])
    cut = dataclasses.replace(one.completions[1], finished=False)
    one = dataclasses.replace(one, completions=(one.completions[0], cut, one.completions[2]))
    for mask, wanted in ((False, [1, 1, 1]), (True, [1, 0, 1])):
        run = job(tmp_path / "run", **ON_POLICY | {"rollout__quantiles": "group", "train__mask_cut": mask})
        assert rank(run, Rollout([one], {}, {})).completions_C.weight.tolist() == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rollout__temperature": 0.7}, "rollout.temperature is 0.7, but log-probs are taken at 1"),
        ({"train__reference_log_probs": "on_the_fly", "lora__rank": 2}, "stores log π_ref with its rollouts"),
        ({"train__evaluate_every": 2}, "train.evaluate_every is 2"),
        ({"stages": ("sft", "train")}, "rollout.quantiles is 'reference'"),
        ({"select__units": "offpolicy2best"}, "takes stored completions"),
        ({"train__objective": "dpo"}, "compares two completions"),
        ({"train__objective": "grpo", "select__units": "best_worst"}, "'grpo' takes singles"),
        ({"train__objective": "rloo", "rollout__completions": 1}, "rollout.completions is 1"),
        ({"train__objective": "ppo", "train__data": "stored"}, "set config.train.data='on_policy'"),
        ({"select__units": "best_worst", "rollout__completions": 1}, "pairs need two completions"),
        ({"rollout__quantiles": "group", "rollout__completions": 1}, "rollout.completions"),
        ({"rollout__ahead": True, "rollout__refill": 1}, "rollout.refill is 1"),
        ({"rollout__max_new_tokens": 5000}, "rollout.max_new_tokens"),
        ({"pack__row_tokens": 20}, "pack.row_tokens is 20"),
        ({"reward__name": "nobody"}, "reward.name"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_runs(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    run = job(tmp_path / "run", **ON_POLICY | options)
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        pipeline.check(run)


def test_stored_runs_do_not_depend_on_rollouts_and_on_policy_ones_on_their_reward(tmp_path: Path) -> None:
    def differ(data: str, **changed: Any) -> set[str]:
        runs = [job(tmp_path / "run", **ON_POLICY | {"train__data": data} | one) for one in ({}, changed)]
        one, other = (pipeline.settings(run, "train") for run in runs)
        return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}

    assert differ("stored", rollout__prompts=5) == set()
    assert differ("on_policy", rollout__prompts=5) == {"rollout.prompts"}
    assert differ("on_policy", rollout__slots=5) == set()
    # Without a stage that scores before, the reward is one of training alone.
    alone = {"stages": ("sft", "train"), "train__objective": "grpo"}
    runs = [job(tmp_path / "run", **ON_POLICY | alone | {"reward__name": f"length(1, {n})"}) for n in (7, 9)]
    names = [pipeline.settings(run, "train")["reward.name"] for run in runs]
    assert names == ["length(1, 7)", "length(1, 9)"]


def test_a_call_in_the_background_gives_its_result_or_its_error() -> None:
    assert Background(lambda: 7).result() == 7

    def fail() -> int:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        Background(fail).result()
