"""How benchmarks are asked. The words are part of a result: their digest is in results.json."""

import dataclasses
import json

from qrpo_jax.data.rows import Message, Row
from qrpo_jax.harnesses.exemplars import EXEMPLARS

COMPLETE = "Complete this Python function. Answer with the whole function, in one block of Python code.\n\n"
IN_A_BLOCK = "\n\nAnswer with the function in one block of Python code."
NEXT = "Q:"  # begins a question behind solved ones; a base model goes on with questions of its own
STEP_BY_STEP = 'Think step by step. End with "The answer is", the final number, and a full stop.'


def as_it_is(row: Row, chat: bool, shots: int) -> Row:
    """The data set's own prompt."""
    return row


def function(row: Row, chat: bool, shots: int) -> Row:
    """A function to write: its first lines in a block (HumanEval), or a text with its tests (MBPP)."""
    (message,) = row.messages
    text, name = message.content, json.loads(row.payload)["entry_point"]
    asked = f"{COMPLETE}```python\n{text.strip()}\n```" if f"def {name}(" in text else f"{text.rstrip()}{IN_A_BLOCK}"
    return dataclasses.replace(row, messages=(Message("user", asked),))


def arithmetic(row: Row, chat: bool, shots: int) -> Row:
    """A question of GSM8K: alone, with words on how to answer; or behind solved ones, as turns or as one text."""
    (message,) = row.messages
    if not shots:
        asked = f"{message.content.strip()}\n\n{STEP_BY_STEP}"
        return dataclasses.replace(row, messages=(Message("user", asked),))
    solved = EXEMPLARS[:shots]
    if not chat:
        text = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in solved)
        return dataclasses.replace(row, messages=(Message("user", f"{text}Q: {message.content.strip()}\nA:"),))
    turns = [
        turn
        for question, answer in solved
        for turn in (Message("user", f"Q: {question}\nA:"), Message("assistant", answer))
    ]
    last = Message("user", f"Q: {message.content.strip()}\nA:")
    return dataclasses.replace(row, messages=(*turns, last))
