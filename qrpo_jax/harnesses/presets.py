"""The benchmarks that are sampled here: where their problems come from, what grades them, and how they are asked."""

from collections.abc import Callable
from typing import NamedTuple

from qrpo_jax.data.rows import Row
from qrpo_jax.harnesses import questions


class Preset(NamedTuple):
    """One benchmark.

    Attributes:
      source: of its problems, unless the task names another; "hf:ORG/NAME/FILE" is a file of the hub.
      split: of that source.
      layout: of their records.
      reward: that grades an answer.
      ask: from a row, whether the model reads messages, and the examples to show, to the row as it is asked.
      columns: other names of columns, see `prompts.columns`.
    """

    source: str
    split: str
    layout: str
    reward: str
    ask: Callable[[Row, bool, int], Row]
    columns: tuple[str, ...] = ()


TESTS, UNGRADED = "tests", "length"
# Sources are those that the authors of the data sets publish; their sizes are in docs/harnesses.md.
PRESETS = {
    "alpaca_eval": Preset(
        "hf:tatsu-lab/alpaca_eval/alpaca_eval.json", "", "prompts", UNGRADED, questions.as_it_is, ("payload=dataset",)
    ),
    "humaneval": Preset("hf:openai/openai_humaneval", "test", "code", TESTS, questions.function),
    "humaneval_plus": Preset("hf:evalplus/humanevalplus", "test", "code", TESTS, questions.function),
    "mbpp": Preset("hf:google-research-datasets/mbpp:full", "test", "code", TESTS, questions.function),
    "mbpp_plus": Preset("hf:evalplus/mbppplus", "test", "code", TESTS, questions.function),
    "leetcode": Preset("hf:newfacade/LeetCodeDataset", "test", "code", TESTS, questions.as_it_is),
    "gsm8k": Preset("hf:openai/gsm8k:main", "test", "gsm8k", "answer", questions.arithmetic),
}
