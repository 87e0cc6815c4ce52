"""Tasks of a harness as a config names them: what is wrong is said in one line."""

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.harnesses.tasks import read_task, read_tasks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("humanevil", r"'humanevil' is no task; allowed: alpaca_eval, .*; did you mean 'humaneval'"),
        ("lm_eval", r"'lm_eval' is no task; allowed: .*lm_eval\(TASK, \.\.\.\)"),
        ("humaneval completion=3", r"has the option 'completion'; allowed: .*did you mean 'completions'"),
        ("humaneval shots=8", r"has the option 'shots'; allowed"),
        ("humaneval completions=0", r"completions='0'; it must be at least 1"),
        ("humaneval temperature=warm", r"temperature='warm'; it must be"),
        ("gsm8k shots=5", r"shots='5'; allowed: 0, 8"),
        ("gsm8k shots=8 shots=0", r"has the option 'shots' twice"),
        ("gsm8k name=../up", r"needs a name of letters, digits"),
        ("gsm8k name=manifest.json", r"needs a name of letters, digits"),
    ],
)
def test_a_text_that_is_no_task_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_task(text)
    assert "\n" not in str(error.value) and error.value.about == ("tasks",)


def test_two_tasks_of_one_name_are_refused_and_names_tell_them_apart() -> None:
    with pytest.raises(UserError, match="two tasks are called 'gsm8k'; add name="):
        read_tasks(["gsm8k", "gsm8k shots=8"])
    with pytest.raises(UserError, match="harness.tasks is empty"):
        read_tasks([])
    assert [task.name for task in read_tasks(["gsm8k", "gsm8k shots=8 name=gsm8k_8"])] == ["gsm8k", "gsm8k_8"]
