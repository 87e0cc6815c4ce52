"""A weighted sum: what training sees is the sum of what the rows hold; a part that fails leaves out its completions."""

import math

import numpy as np
import pytest

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import UserError
from qrpo_jax.job.scoring import PAIRS_DROPPED, ROWS_DROPPED, score_rows
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.parts import read_part, read_parts, reward_names
from qrpo_jax.rewards.rewards import make_reward
from qrpo_jax.rewards.scores import NO_NUMBER
from qrpo_jax.rewards.weighted import WeightedReward

THIS = __name__
SEEN = []


def odd(prompt, completion, payload):
    if "bad" in completion:
        raise ValueError("bad")
    return len(completion) * 0.1


def seen(prompt, completion, payload):
    SEEN.append(completion)
    return float(len(completion)) ** 2


def vast(prompt, completion, payload):
    return 3e38


def rows(texts=("a", "bb", "bad", "dddd", "ee eee")):
    completions = tuple(Completion(text, NO_TOKENS, True, "dataset") for text in texts)
    return [Row(f"r{i}", (Message("user", "q"),), '{"answer": 7}', completions) for i in range(3)]


def weighted(*texts, share=1.0, alone=lambda: True):
    failures = Failures(share)
    failures.begin(1000)
    parts = [(part, make_reward(part.reward, failures=failures)) for part in read_parts(texts)]
    return WeightedReward(parts, failures, alone)


PARTS = (
    f"{THIS}:odd weight=-0.3",
    "length(words) mean=1 std=0.7 clip=-1:1.2 name=words",
    f"{THIS}:seen weight=1e-3 name=square",
)


def test_the_reward_is_the_weighted_sum_of_the_components_that_the_row_holds():
    with weighted(*PARTS) as reward:
        scored, counts = score_rows(reward, rows())
    assert counts == {"completions: ok": 12, "completions: failed: ValueError": 3} | {
        name: number for name, number in counts.items() if name.startswith("first line")
    }
    for row in scored:
        assert [c.text for c in row.completions] == ["a", "bb", "dddd", "ee eee"]
        for completion in row.completions:
            odd_part, words, square = (number for _, number in completion.components)
            assert [name for name, _ in completion.components] == [f"{THIS}:odd", "words", "square"]
            assert odd_part == np.float32(len(completion.text) * 0.1) and square == len(completion.text) ** 2
            assert words == len(completion.text.split())
            total = -0.3 * odd_part + min(max((words - 1) / 0.7, -1), 1.2) + 1e-3 * square
            assert completion.reward == pytest.approx(total, rel=1e-12), completion


def test_parts_after_one_that_failed_do_not_see_the_completion():
    SEEN.clear()
    with weighted(*PARTS) as reward:
        reward.score(rows())
    assert len(SEEN) == 12 and "bad" not in SEEN


def test_a_process_that_is_not_alone_leaves_the_parts_that_need_no_others_to_the_first_one():
    SEEN.clear()
    with weighted(f"{THIS}:seen", alone=lambda: False) as reward:
        reward.score(rows())
    assert SEEN == [] and not reward.collective


def test_a_sum_beyond_float32_fails_on_its_completion():
    with weighted(f"{THIS}:vast weight=2", "length(words)") as reward:
        found = reward.score(rows(("a",)))
    assert found.rewards == [[None]] * 3 and found.outcomes == {NO_NUMBER: 3}
    ((line, number),) = found.messages[NO_NUMBER].items()
    assert number == 3 and line.startswith("returned ") and "at most 3.4e+38 in size" in line, found.messages


def test_verdicts_are_those_of_the_part_that_has_them():
    with weighted("length(words) weight=0.01", "answer") as reward:
        found = reward.score(rows(("#### 7", "#### 8", "none")))
    assert found.verdicts == [["passed", "wrong", "no answer"]] * 3 and reward.gives_verdicts
    assert found.rewards[0] == pytest.approx([1.02, 0.02, 0.01])


def test_a_pair_and_a_row_that_lose_their_completions_are_dropped_and_counted():
    with weighted(f"{THIS}:odd") as reward:
        pairs, counts = score_rows(reward, rows(("fine", "bad")))
        assert pairs == [] and counts[PAIRS_DROPPED] == 3 and ROWS_DROPPED not in counts
        none, counts = score_rows(reward, rows(("bad",)))
        assert none == [] and counts[ROWS_DROPPED] == 3


def test_rewards_that_are_there_stay_and_have_no_components():
    (row, *_) = rows(("a", "bb"))
    kept = Completion("kept", NO_TOKENS, True, "dataset", 0.25)
    with weighted("length(words) weight=2") as reward:
        ((scored,), _) = score_rows(reward, [Row("r", row.messages, "", (kept, *row.completions))])
    assert [c.reward for c in scored.completions] == [0.25, 2.0, 2.0]
    assert [c.components for c in scored.completions] == [(), (("length(words)", 1.0),), (("length(words)", 1.0),)]


@pytest.mark.parametrize(
    "texts, message",
    [
        ((), "without parts; name at least one"),
        (("tests", "tests weight=2"), "has the reward 'tests' twice"),
        (("tests name=a", "answer name=a"), "has the name 'a' twice"),
        (("tests", "sum weight=2"), "'sum weight=2' is a sum itself"),
        (("tests wieght=2",), "has the option 'wieght'; allowed: weight, mean, std, clip, name"),
        (("tests weight=x",), "has weight='x'; it must be a finite number"),
        (("tests weight=nan",), "it must be a finite number"),
        (("tests weight=0",), "has the weight 0; leave it out"),
        (("tests std=0",), "has std=0; it must be above 0"),
        (("tests clip=1",), "has clip=1; it must be LOW:HIGH"),
        (("tests clip=2:1",), "has clip=2:1; it must be LOW:HIGH"),
        (("tests weight=1 weight=2",), "has the option 'weight' twice"),
        (("tests name=",), "has an empty name"),
    ],
)
def test_parts_with_a_mistake_are_refused_in_one_line(texts, message):
    with pytest.raises(UserError, match=message) as caught:
        reward_names("sum", texts)
    assert "\n" not in str(caught.value) and caught.value.about == ("parts",)


def test_parts_beside_another_reward_are_refused():
    assert reward_names("tests", ()) == ["tests"]
    with pytest.raises(UserError, match="reward.parts is set, but reward 'tests' is one alone"):
        reward_names("tests", ("answer",))


def test_an_expression_may_hold_what_looks_like_an_option():
    part = read_part(r"format(a weight=3 \(b\)) weight=0.5")
    assert part.reward == r"format(a weight=3 \(b\))" and part.weight == 0.5 and part.low == -math.inf
