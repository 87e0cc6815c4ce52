"""Thoughts: the marks that reasoning models write around them, and prompts that open or close one.

Thinking templates end a prompt inside a thought. An answer that brings no thought then needs one that is closed before
it, or the policy would learn to answer inside a thought that never ends.
"""

import json
from typing import Any

from qrpo_jax.data.chat_template import apply_template
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError

THINKING = ("template", "on", "off")
# Qwen, DeepSeek, GLM, Nemotron and SmolLM; Seed-OSS; Magistral; Command A; Kimi; Gemma 4.
MARKS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>", "<channel|>"),
)
SWITCHES = ("enable_thinking", "thinking")  # variables by which templates switch thoughts on and off
TRIAL = Message("user", "A question?")


def opening(prompt: str) -> str:
    """The mark that opens a thought and the white space behind it, if a prompt ends with these; else ""."""
    bare = prompt.rstrip()
    return next((prompt[len(bare) - len(mark) :] for mark, _ in MARKS if bare.endswith(mark)), "")


def closing(opened: str) -> str:
    """What closes an empty thought behind `opening`, in the form that most templates write."""
    return f"\n{dict(MARKS)[opened.rstrip()]}\n\n"


def closes_one(prompt: str) -> bool:
    """Whether a prompt ends behind a thought that it closed."""
    return prompt.rstrip().endswith(tuple(close for _, close in MARKS))


def has_marks(text: str) -> bool:
    return any(mark in text for pair in MARKS for mark in pair)


def without_opening(text: str, opened: str) -> str:
    """A text that may begin with a thought, behind a prompt that has opened it with `opened` already."""
    mark = opened.rstrip()
    if not mark or not text.lstrip().startswith(mark):
        return text
    return text.lstrip()[len(mark) :].removeprefix(opened[len(mark) :])


def set_thinking(tokenizer: Any, chat_template: str, thinking: str) -> str:
    """A chat template whose prompts have thoughts switched on or off.

    Args:
      thinking: "template" changes nothing. "on" and "off" set the variables that templates read (SWITCHES). Where a
        template opens a thought all the same, "off" closes it at the end of the prompt.

    Raises:
      UserError: an unknown choice, or a template without thoughts.
    """
    if thinking == "template":
        return chat_template
    if thinking not in THINKING:
        raise UserError(f"thinking is {thinking!r}; allowed: {', '.join(THINKING)}", about="thinking")
    on, off = (_switched(chat_template, value) for value in ("true", "false"))
    chosen = on if thinking == "on" else off
    with_thought, prompt = (_prompt(tokenizer, template) for template in (on, chosen))
    if opened := opening(prompt):
        if thinking == "on":
            return chosen
        # Jinja drops one line break at the end of a template, which this is no longer.
        close = "{% if add_generation_prompt %}{{ " + json.dumps(closing(opened)) + " }}{% endif %}"
        return chosen.removesuffix("\n") + close
    if with_thought == _prompt(tokenizer, off):
        raise UserError(
            f"thinking is {thinking!r}, and the tokenizer's chat template writes the same prompts with and without; "
            "set thinking to 'template'",
            about="thinking",
        )
    return chosen


def _switched(chat_template: str, value: str) -> str:
    # The line break ends with the block: transformers renders with trim_blocks.
    return "".join(f"{{%- set {name} = {value} %}}" for name in SWITCHES) + "\n" + chat_template


def _prompt(tokenizer: Any, chat_template: str) -> str:
    options = {"add_generation_prompt": True, "tokenize": False}
    return str(apply_template(tokenizer, chat_template, [TRIAL], "trial conversation", **options))
