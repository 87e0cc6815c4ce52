"""Completions with their scores in one column: objects of text and score, as UltraFeedback has them before pairs."""

from qrpo_jax.data.layouts.layout import At, Values

TEXTS = ("response", "text", "completion", "answer")
SCORES = ("overall_score", "score", "reward", "rating")


def derive(values: Values, at: At) -> Values:
    """The keys of a row: texts as completions, and their scores as rewards if each has one and no column has them."""
    given = values.get("completions")
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        return values
    texts = [next((one[name] for name in TEXTS if name in one), None) for one in given]
    if None in texts:  # messages, or something else that the reader refuses
        return values
    scores = [next((one[name] for name in SCORES if one.get(name) is not None), None) for one in given]
    scored = {"rewards": scores} if "rewards" not in values and None not in scores else {}
    return values | {"completions": texts} | scored
