"""Instructions with an input apart, as Alpaca has them."""

from qrpo_jax.data.layouts.layout import At, Values


def derive(values: Values, at: At) -> Values:
    """The keys of a row: the prompt is the instruction, and the input after it if there is one."""
    added, instruction = values.get("input"), values.get("prompt")
    kept = {key: value for key, value in values.items() if key != "input"}
    if isinstance(added, str) and added.strip() and isinstance(instruction, str):
        kept["prompt"] = f"{instruction}\n\n{added}"
    return kept
