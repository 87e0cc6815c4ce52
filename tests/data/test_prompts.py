"""Prompts: programs by index, JSON lines as they stand, and one clear line for what is wrong with them."""

import json
import math

import numpy as np
import pytest

from qrpo_jax.data import programs
from qrpo_jax.data.prompts import program_row, program_solution_row, read_jsonl, split_rows


def write(tmp_path, *records):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records))
    return path


def test_a_program_row_is_its_problem():
    row, problem = program_row(3, "train", 5), programs.problem(3, "train", 5)
    assert row.id == "train-5" and row.messages[0].content == problem.prompt and row.completions == ()
    assert [(tuple(a), v) for a, v in json.loads(row.payload)["tests"]] == list(problem.tests)
    solved = program_solution_row(3, "train", 5)
    assert (solved.id, solved.messages, solved.payload) == (row.id, row.messages, row.payload)
    assert [c.text for c in solved.completions] == [problem.demonstration] and solved.completions[0].finished


def test_every_key_of_a_line_arrives(tmp_path):
    rows = read_jsonl(
        write(
            tmp_path,
            {"prompt": "hi", "completions": ["a", "b"], "rewards": [1, 0.5], "reference_rewards": [0.1, 2]},
            "",
            {"id": "x", "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            {"prompt": "p", "payload": {"tests": [[[1, 2], 3]]}},
            {"prompt": "p", "chosen": "w", "rejected": "l", "chosen_reward": 2, "rejected_reward": -1},
            {"prompt": "p", "chosen": "w", "rejected": "l"},
        )
    )
    assert [row.id for row in rows] == ["line-1", "x", "line-4", "line-5", "line-6"]
    assert [(c.text, c.reward, c.source) for c in rows[0].completions] == [("a", 1, "dataset"), ("b", 0.5, "dataset")]
    np.testing.assert_array_equal(rows[0].reference_rewards, np.asarray([0.1, 2], np.float32))
    assert [(m.role, m.content) for m in rows[1].messages] == [("system", "s"), ("user", "u")]
    assert json.loads(rows[2].payload) == {"tests": [[[1, 2], 3]]}
    assert [(c.text, c.reward) for c in rows[3].completions] == [("w", 2), ("l", -1)]
    assert all(math.isnan(c.reward) for c in rows[4].completions)


def test_separators_inside_a_text_do_not_cut_its_line(tmp_path):
    odd = "a\u2028b\u0085c\x0bd"
    (row,) = read_jsonl(write(tmp_path, {"prompt": odd}))
    assert row.messages[0].content == odd


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: needs an object with a 'prompt'"),
        ({"text": "a"}, "line 2: needs an object with a 'prompt'"),
        ({"prompt": "a", "promt": 1}, "line 2: unknown key 'promt'; allowed: "),
        ({"prompt": " \n"}, "line 2: the prompt is empty"),
        ({"prompt": []}, "line 2: the prompt is empty"),
        ({"prompt": 5}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": [{"role": "user"}]}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": [{"role": "user", "content": None}]}, "line 2: 'prompt' must be text or a list"),
        ({"prompt": "a", "completions": "abc"}, "line 2: 'completions' is 'abc'; it must be a list"),
        ({"prompt": "a", "completions": [""]}, "line 2: a completion is ''"),
        ({"prompt": "a", "completions": [None]}, "line 2: a completion is None"),
        ({"prompt": "a", "chosen": 5, "rejected": "b"}, "line 2: a completion is 5"),
        ({"prompt": "a", "chosen_reward": 5}, "line 2: 'chosen_reward' without 'chosen'"),
        ({"prompt": "a", "completions": ["b"], "rewards": [1, 2]}, "line 2: 1 completions but 2 rewards"),
        ({"prompt": "a", "completions": ["b"], "rewards": 1}, "line 2: 'rewards' is 1; it must be a list"),
        ({"prompt": "a", "completions": ["b"], "rewards": ["1"]}, "line 2: a reward is '1'"),
        ({"prompt": "a", "completions": ["b"], "rewards": [True]}, "line 2: a reward is True"),
        ({"prompt": "a", "completions": ["b"], "rewards": [None]}, "line 2: a reward is None"),
        ('{"prompt": "a", "completions": ["b"], "rewards": [NaN]}', "line 2: a reward is nan"),
        ('{"prompt": "a", "completions": ["b"], "rewards": [1e999]}', "line 2: a reward is inf"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_reward": 1}, "line 2: a reward is None"),
        ({"prompt": "a", "reference_rewards": ["x"]}, "line 2: a reward is 'x'"),
        ({"prompt": "a", "reference_rewards": 5}, "line 2: 'reference_rewards' is 5; it must be a list"),
        ({"prompt": "a", "id": "line-1"}, "line 2: id 'line-1' is also that of line 1"),
    ],
)
def test_a_bad_line_is_refused_in_one_line_that_names_it(tmp_path, line, message):
    path = write(tmp_path, {"prompt": "good"}, line)
    with pytest.raises(ValueError) as caught:
        read_jsonl(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there_empty_or_not_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*config\.prompts\.path"):
        read_jsonl(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="holds no row"):
        read_jsonl(write(tmp_path, "", ""))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_jsonl(path)


def test_the_last_prompts_are_held_out():
    rows = [program_row(0, "train", i) for i in range(5)]
    assert split_rows(rows, 2) == (rows[:3], rows[3:]) and split_rows(rows, 0) == (rows, [])
    with pytest.raises(ValueError, match="held_out is 5 of 5"):
        split_rows(rows, 5)
