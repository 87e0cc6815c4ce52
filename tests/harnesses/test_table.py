"""The table of benchmarks in terminal and model card: what is there, and nothing that is not."""

import math
from typing import Any

from qrpo_jax.report.harness_table import lines, rows, table
from qrpo_jax.report.model_card import results_tables
from qrpo_jax.report.tables import as_csv
from qrpo_jax.stages import harness


def figure(value: float, low: float = math.nan, high: float = math.nan) -> dict[str, Any]:
    return {"value": value, "ci95": [low, high]}


FOUND: dict[str, Any] = {
    "humaneval": {
        "reference": {"prompts": 164, "figures": {"pass_at_1": figure(0.25, 0.2, 0.3), "mean_tokens": figure(71.0)}},
        "policy": {"prompts": 164, "figures": {"pass_at_1": figure(0.5, 0.4, 0.6), "mean_tokens": figure(70.0)}},
        "gain": {"pass_at_1": figure(0.25, 0.15, 0.35)},
    },
    "alpaca_eval": {
        "policy": {
            "prompts": 805,
            "judged": "not judged: no key",
            "figures": {"mean_tokens": figure(99.0, 98.0, 100.0)},
        },
    },
    "lm": {
        "policy": {
            "prompts": 30,
            "prompts_of": {"a|b acc": 11},
            "figures": {"a|b acc": figure(0.5, 0.25, 0.75), "c perplexity": figure(7.5)},
        }
    },
}


def test_each_figure_is_a_line_with_its_sides_gain_and_number_of_prompts() -> None:
    assert rows(FOUND) == [
        (
            "humaneval",
            "pass@1",
            "0.250 (0.200 to 0.300)",
            "0.500 (0.400 to 0.600)",
            "+0.250 (+0.150 to +0.350)",
            "164",
        ),
        ("alpaca_eval", "tokens an answer", "–", "99.000 (98.000 to 100.000)", "–", "805; not judged"),
        ("lm", "a|b acc", "–", "0.500 (0.250 to 0.750)", "–", "11"),
        ("lm", "c perplexity", "–", "7.500", "–", ""),  # of a group
    ]
    widths = {len(line.rstrip()) for line in lines({"lm": FOUND["lm"]})}
    assert lines({"lm": FOUND["lm"]})[0].split() == ["benchmark", "figure", "policy", "prompts"] and len(widths) <= 3


def test_a_model_card_has_the_benchmarks_also_without_held_out_figures() -> None:
    text = "\n".join(results_tables({"harnesses": FOUND}, "nothing was held out"))
    assert "| humaneval | pass@1 | 0.250 (0.200 to 0.300) | 0.500" in text and "a\\|b acc" in text, text
    assert "nothing was held out" not in text and text.count("\n| --- ") == 1, text
    policy = {"mean_reward": 0.5, "ci95": [0.4, 0.6], "mean_tokens": 9.0}
    both = "\n".join(results_tables({"policy": policy, "harnesses": FOUND}, "On held-out prompts."))
    assert both.startswith("On held-out prompts.") and "policy, mean reward" in both and "humaneval" in both
    assert "Benchmarks" not in "\n".join(results_tables({"policy": policy}, "On held-out prompts."))


def test_what_was_not_asked_or_cut_is_counted_in_the_manifest():
    found = {
        "gsm8k": {"reference": {"not_asked": 2}, "policy": {"not_asked": 0}, "counts": {"records dropped: empty": 1}},
        "lm_eval": {"policy": {"contexts_cut": 3}},
    }
    assert harness.counts(found) == {
        "gsm8k, reference: prompts that were too long": 2,
        "gsm8k: records dropped: empty": 1,
        "lm_eval, policy: contexts cut on the left": 3,
    }


def test_figures_and_the_ends_of_their_intervals_are_numbers_with_all_digits_in_files() -> None:
    third = {"gsm8k": {"policy": {"prompts": 3, "figures": {"pass_at_1": figure(1 / 3, 0.0, 2 / 3)}}}}
    head, line = as_csv(table(third)).splitlines()
    assert head == "benchmark,figure,policy,policy low,policy high,prompts"
    assert line == f"gsm8k,pass@1,{1 / 3!r},0.0,{2 / 3!r},3", line
