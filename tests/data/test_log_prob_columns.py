"""log π_ref of a data set's completions, under the names that published sets have for it."""

import json
import math
from typing import Any

import pytest

from qrpo_jax.errors import UserError
from tests.helpers.tables import opened, rows_of, write_json_lines, write_parquet

USER = {"role": "user", "content": "q"}
CHOSEN, REJECTED = ([USER, {"role": "assistant", "content": text}] for text in ("good", "bad"))
PAIR = {"chosen": CHOSEN, "rejected": REJECTED}
PUBLISHED = PAIR | {"chosen_rewards": 0.75, "rejected_rewards": 0.25, "ref_rewards": [0.5, 0.125]}
ROWS = {"prompt": "q", "completions": ["a", "b", "c"], "rewards": [0.5, 1.0, 0.0]}
# A record, its layout, and log π_ref of its completions.
READ: dict[str, tuple[dict[str, Any], str, list[float]]] = {
    "qrpo": (PUBLISHED | {"ref_chosen_logps": -12.5, "ref_rejected_logps": -7.25}, "qrpo", [-12.5, -7.25]),
    "apertus": (
        PAIR
        | {"chosen_reward": 0.75, "rejected_reward": 0.25, "ref_rewards": [0.5, 0.125]}
        | {"ref_chosen_logprob": -12.5, "ref_rejected_logprob": -7.25, "chosen_quantile_reward": 1.0},
        "qrpo",
        [-12.5, -7.25],
    ),
    "trl": (PAIR | {"ref_chosen_logps": -12.5, "ref_rejected_logps": 0.0}, "preference", [-12.5, 0.0]),
    "old trl": (PAIR | {"reference_chosen_logps": -1, "reference_rejected_logps": -2}, "preference", [-1.0, -2.0]),
    "ultrafeedback": (
        PAIR | {"score_chosen": 8.5, "score_rejected": 3.0, "ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5},
        "ultrafeedback",
        [-1.5, -2.5],
    ),
    "rows": (ROWS | {"reference_log_probs": [-3.0, -4.5, -0.25]}, "", [-3.0, -4.5, -0.25]),
    "rows with a pair": (
        {"prompt": "q", "completions": ["a"], "chosen": "b", "rejected": "c"}
        | {"chosen_reference_log_prob": -4.5, "rejected_reference_log_prob": -0.25},
        "",
        [math.nan, -4.5, -0.25],
    ),
    "scored": (
        {"prompt": "q", "responses": ["a", "b"], "scores": [0.5, 1.0], "ref_logps": [-3.0, -4.5]},
        "scored",
        [-3.0, -4.5],
    ),
    "one side": (PUBLISHED | {"ref_chosen_logps": -12.5}, "qrpo", [-12.5, math.nan]),
    "none": (PUBLISHED, "qrpo", [math.nan, math.nan]),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", READ)
def test_log_probs_belong_to_their_completions(tmp_path, name, kind):
    record, layout, expected = READ[name]
    source = f"{kind}:{(write_parquet if kind == 'parquet' else write_json_lines)(tmp_path / 'data', [record])}"
    (row,) = rows_of(source)
    got = [completion.reference_log_prob for completion in row.completions]
    assert got == pytest.approx(expected, nan_ok=True), got
    said = opened(source).layout
    assert (f"layout {layout!r}" in said) if layout else said == "", said
    named = [column for column in record if "log" in column]
    assert not layout or all(repr(column) in said.partition("not read")[0] for column in named), said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ref_chosen_logps": 3.25}, "line 2: 'ref_chosen_logps' has 3.25; it must be a finite number or null, and"),
        ({"ref_rejected_logps": math.nan}, "line 2: 'ref_rejected_logps' has nan; it must be a finite"),
        ({"ref_rejected_logps": -math.inf}, "line 2: 'ref_rejected_logps' has -inf; it must be a finite"),
        ({"ref_chosen_logps": "-1"}, "line 2: 'ref_chosen_logps' has '-1'; it must be a finite"),
        ({"ref_chosen_logps": True}, "line 2: 'ref_chosen_logps' has True; it must be a finite"),
        ({"ref_chosen_logps": [-1.0, -2.0]}, r"line 2: 'ref_chosen_logps' has \[-1.0, -2.0\]; it must be a finite"),
    ],
)
def test_what_no_log_prob_can_be_is_refused_with_its_place(tmp_path, changes, message):
    good = PUBLISHED | {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in (good, good | changes)))
    with pytest.raises(UserError, match=message) as caught:
        rows_of(f"jsonl:{path}")
    assert caught.value.about == ("path",) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ROWS | {"reference_log_probs": [-1.0, -2.0]}, "3 completions but 'reference_log_probs' has 2; give one"),
        (ROWS | {"reference_log_probs": -1.0}, "3 completions but 'reference_log_probs' has -1.0; give"),
        (ROWS | {"reference_log_probs": [-1.0, 0.5, -2.0]}, "'reference_log_probs' has 0.5; it must be"),
        (ROWS | {"chosen_reference_log_prob": -1.0}, "'chosen_reference_log_prob' without 'chosen'; give the completi"),
    ],
)
def test_another_number_of_log_probs_than_of_completions_is_refused(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        rows_of(f"jsonl:{write_json_lines(tmp_path / 'data.jsonl', [record])}")
