"""The reference completions of the published QRPO data sets, as completions to train on (off-policy)."""

import json
from typing import Any

from qrpo_jax.data.layouts import code
from qrpo_jax.data.layouts.layout import At, Values
from qrpo_jax.data.layouts.messages import read_messages
from qrpo_jax.errors import shown


def derive(values: Values, at: At) -> Values:
    """Keys of a row from messages of which the last one's content is a list of completions, encoded as JSON.

    The published code problems have LeetCodeDataset's columns too, of which the tests become the payload.
    """
    messages = read_messages(values["conversation"], at, "conversation")
    texts: Any = None
    try:
        *prompt, answer = messages
        texts = json.loads(answer.content)
    except (ValueError, RecursionError):  # also of no message at all
        pass
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        content = messages[-1].content if messages else ""
        raise at.fault(
            f"{at.column('conversation')} must end with a JSON list of texts, and ends with {shown(content)}"
        )
    rewards = values.get("rewards", [])
    if not isinstance(rewards, list) or len(rewards) != len(texts):
        raise at.fault(
            f"{len(texts)} completions in {at.column('conversation')}, but {at.column('rewards')} has others"
        )
    # A model may end its text at once. An empty completion has a reward, but cannot be trained on.
    filled = [i for i, text in enumerate(texts) if text]
    problem: Values = {key: values[key] for key in ("tests", "entry_point", "stem") if key in values}
    payload = {"payload": code.derive(problem, at)["payload"]} if "tests" in values else {}
    return payload | {
        "prompt": [{"role": message.role, "content": message.content} for message in prompt],
        "completions": [texts[i] for i in filled],
        "rewards": [rewards[i] for i in filled],
        "reference_rewards": [rewards[i] for i in range(len(texts)) if not texts[i]],
    }
