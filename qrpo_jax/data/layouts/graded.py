"""Grade-school mathematics: questions with a worked solution, or with several that were graded."""

from qrpo_jax.data.layouts.layout import At, Values
from qrpo_jax.errors import shown

FINAL = ("####", "\nA:")  # what stands before the final answer: in GSM8K, and in its example solutions
# Columns of graded solutions in GSM8K's example_model_solutions.
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
GRADE, SOLUTION = "is_correct", "solution"


def derive(values: Values, at: At) -> Values:
    """Keys of a row from a question and its solutions.

    A solution that is not graded is a completion without a reward. Graded ones, `{"is_correct": ..., "solution": ...}`,
    have reward 1 or 0. The payload has the final answer, {"answer": "18"}, for a reward function.
    """
    solution = values.get("completion")
    if not isinstance(solution, str) or not solution:
        raise at.unusable(f"{at.column('completion')} is missing")
    graded = [values[model] for model in MODELS if model in values]
    for one in graded:
        if not isinstance(one, dict) or not isinstance(one.get(GRADE), bool) or not isinstance(one.get(SOLUTION), str):
            raise at.fault(f"a graded solution is {shown(one)}; {GRADE} must be true or false, {SOLUTION} text")
    graded = [one for one in graded if one[SOLUTION]]
    derived: Values = {key: values[key] for key in ("prompt",) if key in values}
    derived |= {"payload": {"answer": final_answer(solution)}}
    if graded:
        return derived | {
            "completions": [one[SOLUTION] for one in graded],
            "rewards": [float(one[GRADE]) for one in graded],
        }
    return derived | {"completions": [solution]}


def final_answer(solution: str) -> str:
    """What stands behind the last mark of a final answer; all without one.

    >>> final_answer("She makes 9 * 2 = $18.\\n#### 18")
    '18'
    """
    for mark in FINAL:
        if mark in solution:
            return solution.rpartition(mark)[2].strip().replace(",", "")
    return solution.strip()
