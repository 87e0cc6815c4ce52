"""The tasks of stage `harness`, as a config names them: "humaneval completions=16 temperature=0.8 name=sampled"."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qrpo_jax.config.keys import Choice, Key, NotAllowedError, Number, Text, Whole, did_you_mean
from qrpo_jax.errors import UserError, shown
from qrpo_jax.harnesses.presets import PRESETS

LM_EVAL = "lm_eval"
GSM8K = "gsm8k"
ALPACA_EVAL = "alpaca_eval"
# The options stand at the end, as those of the parts of a reward.
OPTION = re.compile(r"(.*[^\s])\s+([a-z_]+)=(\S*)", re.DOTALL)
INSIDE = re.compile(rf"{LM_EVAL}\((.+)\)", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # no full stop: the folder has files such as manifest.json
ALL: dict[str, Key] = {"name": Text(empty=False), "prompts": Whole(0, least=0)}
SAMPLED: dict[str, Key] = {
    "source": Text(empty=False),
    "split": Text(empty=False),
    "completions": Whole(1, least=1),
    "temperature": Number(0.0, least=0),
    "top_p": Number(1.0, above=0, most=1),
    "max_new_tokens": Whole(1, least=1),
}
OPTIONS: dict[str, dict[str, Key]] = {
    **{kind: ALL | SAMPLED for kind in PRESETS},
    GSM8K: ALL | SAMPLED | {"shots": Choice("0", "8")},
    ALPACA_EVAL: ALL | SAMPLED | {"reference": Text(empty=False)},
    LM_EVAL: ALL | {"shots": Whole(0, least=0), "template": Choice("plain", "chat"), "include": Text(empty=False)},
}
KINDS = (*PRESETS, f"{LM_EVAL}(TASK, ...)")


class Task(NamedTuple):
    """One task.

    Attributes:
      name: of its folder, and of its entry in results.json.
      kind: a key of `presets.PRESETS`, or "lm_eval".
      options: what the user gives, in the types of OPTIONS.
      inside: the tasks of lm-evaluation-harness.
    """

    name: str
    kind: str
    options: Mapping[str, Any]
    inside: tuple[str, ...] = ()


def read_tasks(texts: Sequence[str]) -> list[Task]:
    """The tasks that a config names.

    Raises:
      UserError: about `tasks`: there is none, a text is no task, or two have one name.
    """
    if not texts:
        raise UserError(f"harness.tasks is empty; name at least one of {', '.join(KINDS)}", about="tasks")
    tasks = [read_task(text) for text in texts]
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two tasks are called {twice!r}; add name=... to one of them", about="tasks")
    return tasks


def read_task(text: str) -> Task:
    """The task that a text means.

    >>> read_task("humaneval completions=16 temperature=0.8")
    Task(name='humaneval', kind='humaneval', options={'temperature': 0.8, 'completions': 16}, inside=())
    >>> read_task("lm_eval(arc_easy, hellaswag) name=few shots=5").inside
    ('arc_easy', 'hellaswag')

    Raises:
      UserError: about `tasks`.
    """
    what, given = text.strip(), dict[str, str]()
    while found := OPTION.fullmatch(what):
        what, option, value = found.groups()
        if option in given:
            raise _fault(text, f"has the option {option!r} twice")
        given[option] = value
    inside = INSIDE.fullmatch(what)
    kind = LM_EVAL if inside else what
    if kind not in OPTIONS or (kind == LM_EVAL) != bool(inside):
        raise _fault(text, f"is no task; allowed: {', '.join(KINDS)}{did_you_mean(what, OPTIONS)}")
    options = {option: _value(text, kind, option, value) for option, value in given.items()}
    name = options.pop("name", kind)
    if not NAME.fullmatch(name):
        raise _fault(text, "needs a name of letters, digits, _ and -, such as name=sampled")
    names = tuple(word.strip() for word in inside[1].split(",") if word.strip()) if inside else ()
    return Task(name, kind, options, names)


def _value(text: str, kind: str, option: str, value: str) -> Any:
    keys = OPTIONS[kind]
    if option not in keys:
        raise _fault(text, f"has the option {shown(option)}; allowed: {', '.join(keys)}{did_you_mean(option, keys)}")
    try:
        return keys[option].check(keys[option].parse(value))
    except NotAllowedError as error:
        raise _fault(text, f"has {option}={shown(value)}; {error}") from None


def _fault(text: str, message: str) -> UserError:
    return UserError(f"harness.tasks: {shown(text)} {message}", about="tasks")
