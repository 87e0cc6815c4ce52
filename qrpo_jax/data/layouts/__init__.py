"""Layouts of published data sets, by name: the table of their columns, and how a table's own is recognised."""

from collections.abc import Sequence

from qrpo_jax.data.layouts import answers, code, contests, graded, instructions, offpolicy
from qrpo_jax.data.layouts.layout import KEYS, PAIR_LOG_PROBS, PAIR_REWARDS, PAIR_SIDES, Layout
from qrpo_jax.errors import UserError

ROWS = "rows"
PROMPT = ("prompt", "instruction", "question", "query", "problem", "input")
SIDES: dict[str, tuple[str, ...]] = {side: (side,) for side in PAIR_SIDES}
SCORED_SIDES = (*PAIR_SIDES, *PAIR_REWARDS.values())
SCORES = {
    reward: (reward, f"{side}_rewards", f"{side}_score", f"score_{side}", f"{side}-rating")
    for side, reward in PAIR_REWARDS.items()
}
# log π_ref under the names of TRL's trainers and that of the QRPO paper, of Apertus, and of older versions of TRL.
LOG_PROBS = {
    key: (key, f"ref_{side}_logps", f"ref_{side}_logprob", f"reference_{side}_logps")
    for side, key in PAIR_LOG_PROBS.items()
}

# A table's layout is looked for in this order. The names of columns are those that the data sets have on the hub.
LAYOUTS: dict[str, Layout] = {
    ROWS: Layout({key: (key,) for key in KEYS}, needs=("prompt",), strict=True),
    "qrpo": Layout(
        {"id": ("id",), "payload_json": ("payload_json",), "reference_rewards": ("ref_rewards",)}
        | SIDES
        | {reward: (f"{reward}s", reward) for reward in PAIR_REWARDS.values()}
        | LOG_PROBS,
        needs=(*PAIR_SIDES, "reference_rewards"),
    ),
    "qrpo_offpolicy": Layout(
        {
            "conversation": ("ref_completions",),
            "rewards": ("ref_rewards",),
            "tests": ("test",),
            "entry_point": ("entry_point",),
            "stem": ("prompt",),
        },
        needs=("conversation", "rewards"),
        derive=offpolicy.derive,
        written_by="reference",
    ),
    "ultrafeedback": Layout(
        {"prompt": ("prompt",), **SIDES, **LOG_PROBS}
        | {reward: (f"score_{side}",) for side, reward in PAIR_REWARDS.items()},
        needs=SCORED_SIDES,
    ),
    "preference": Layout(
        {"prompt": PROMPT, "conversation": ("conversations",), "system": ("system",), **SIDES, **SCORES, **LOG_PROBS},
        needs=PAIR_SIDES,
    ),
    "kto": Layout({key: (key,) for key in ("prompt", "completion", "label")}, needs=("prompt", "completion", "label")),
    "code": Layout(
        {
            "id": ("task_id",),
            "prompt": ("query", "prompt", "text"),
            "completion": ("completion", "canonical_solution", "code"),
            "tests": ("test", "test_list"),
            "entry_point": ("entry_point",),
            "prelude": ("test_imports",),
            "setup": ("test_setup_code",),
            "examples": ("test_list",),
            "stem": ("prompt",),
        },
        needs=("prompt", "tests"),
        derive=code.derive,
    ),
    "apps": Layout(
        {
            "id": ("problem_id",),
            "prompt": ("question",),
            "tests": ("input_output",),
            "solutions": ("solutions",),
            "starter": ("starter_code",),
        },
        needs=("prompt", "tests"),
        derive=contests.derive_apps,
    ),
    "code_contests": Layout(
        {
            "prompt": ("description",),
            "tests": ("public_tests",),
            "private_tests": ("private_tests",),
            "generated_tests": ("generated_tests",),
            "solutions": ("solutions",),
        },
        needs=("prompt", "tests"),
        derive=contests.derive_contest,
    ),
    "gsm8k": Layout(
        {"prompt": ("question",), "completion": ("answer", "ground_truth")} | {key: (key,) for key in graded.MODELS},
        needs=("prompt", "completion"),
        derive=graded.derive,
    ),
    "scored": Layout(
        {
            "prompt": PROMPT,
            "system": ("system",),
            "completions": ("completions", "responses"),
            "rewards": ("rewards", "scores"),
            "reference_log_probs": ("reference_log_probs", "ref_log_probs", "ref_logps"),
            "reference_rewards": ("reference_rewards",),
            "payload": ("payload",),
        },
        needs=("prompt", "completions"),
        derive=answers.derive,
    ),
    "tulu": Layout({"conversation": ("messages",)}, needs=("conversation",)),
    "magpie": Layout({"conversation": ("conversations",), "system": ("system",)}, needs=("conversation",)),
    "alpaca": Layout(
        {
            "prompt": ("instruction", "prompt"),
            "input": ("input",),
            "completion": ("output", "response", "completion"),
            "system": ("system",),
        },
        needs=("prompt", "completion"),
        derive=instructions.derive,
    ),
    "prompts": Layout({"prompt": PROMPT, "system": ("system",), "payload": ("payload",)}, needs=("prompt",)),
}


def recognise(columns: Sequence[str], leading: Sequence[str], where: str) -> str:
    """The name of the first layout that columns fit; `rows` if the first record has no other columns than that.

    Args:
      leading: columns of the first record.
      where: the data set, for messages.

    Raises:
      UserError: about `layout`: they fit none.
    """
    if "prompt" in columns and set(leading) <= set(KEYS):
        return ROWS
    for name, layout in LAYOUTS.items():
        if name != ROWS and _fits(layout, columns):
            return name
    named = ", ".join(map(repr, columns[:12]))
    raise UserError(
        f"{where} has the columns {named}, which no layout has; choose one of {', '.join(LAYOUTS)}, and say which "
        "columns are its own, such as columns=prompt=title,completions=answers",
        about="layout",
    )


def check_layout(name: str, columns: Sequence[str], where: str) -> Layout:
    """The layout of that name.

    Raises:
      UserError: about `layout`: a column that it needs is not there.
    """
    layout = LAYOUTS[name]
    found = layout.found(columns)
    missing = [key for key in layout.needs if key not in found]
    if missing:
        wanted = " or ".join(map(repr, layout.columns[missing[0]]))
        raise UserError(
            f"{where} has no column {wanted}, which layout {name!r} needs; it has {', '.join(map(repr, columns[:12]))}",
            about="layout",
        )
    return layout


def _fits(layout: Layout, columns: Sequence[str]) -> bool:
    return set(layout.needs) <= layout.found(columns).keys()
