"""Packed rows of a job: chosen or set, kept for resumption on another machine, and refused where nothing fits."""

import json

import jax
import numpy as np
import pytest

from qrpo_jax.data import row_cost
from qrpo_jax.data.row_cost import MACHINES
from qrpo_jax.devices.mesh import axis_size
from qrpo_jax.errors import UserError
from qrpo_jax.job import packing
from tests.helpers import jobs, tiny

TABLE = tiny.examples(140, siblings=7)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(packing.Job, "say", lambda job, line: lines.append(line))
    return lines


def completions(plan):
    return [sorted(c for row in batch for group in row for c in group) for batch in tiny.batches_of(plan)]


def test_rows_are_chosen_printed_and_kept_for_another_machine(tmp_path, said, monkeypatch):
    job = jobs.job(tmp_path, train__batch_size=31)
    plan = packing.make_plan(job, "train", TABLE)
    assert plan.rows == plan.microbatches * round(plan.rows / plan.microbatches)
    assert plan.rows // plan.microbatches % axis_size(job.mesh, "rows") == 0
    assert f"x {plan.row_tokens} tokens (the cheapest of" in said[0] and "saved by sharing prompts" in said[0], said
    monkeypatch.setitem(row_cost.MACHINES, "cpu", MACHINES["cpu"]._replace(multiple=128, row_seconds=1.0))
    kept = packing.make_plan(job, "train", TABLE)
    tiny.assert_trees_equal(kept, plan)
    elsewhere = packing.make_plan(jobs.job(tmp_path / "other", train__batch_size=31), "train", TABLE)
    assert elsewhere.row_tokens % 128 == 0 and elsewhere.row_tokens != plan.row_tokens
    assert completions(elsewhere) == completions(plan), "which completions meet does not depend on the machine"


def test_rows_of_the_config_are_taken_as_they_are(tmp_path, said):
    options = dict(pack__row_tokens=67, pack__slots=6, train__microbatches=3, train__batch_size=40)
    plan = packing.make_plan(jobs.job(tmp_path, **options), "train", TABLE)
    assert (plan.row_tokens, plan.slots, plan.microbatches) == (67, 6, 3) and plan.rows % (3 * jax.device_count()) == 0
    assert "set by config.pack.row_tokens" in said[0], said
    chosen = json.loads((tmp_path / "train" / packing.CHOSEN).read_text())
    assert chosen["row_tokens"] == 67


def test_prompts_are_shared_and_siblings_meet_only_if_the_config_says_so(tmp_path, said):
    plans = {}
    for share, shuffle in [(True, "prompts"), (True, "units"), (False, "prompts")]:
        options = dict(pack__share_prompts=share, train__shuffle=shuffle, train__batch_size=28)
        plans[share, shuffle] = packing.make_plan(jobs.job(tmp_path / f"{share}{shuffle}", **options), "train", TABLE)
    apart = plans[False, "prompts"]
    assert apart.tokens == apart.separate_tokens and (np.diff(apart.groups) == 1).all()
    assert plans[True, "prompts"].tokens < plans[True, "units"].tokens < apart.tokens
    # A folder whose rows were planned for shared prompts is planned again where they cannot be shared.
    changed = jobs.job(tmp_path / "Trueprompts", pack__share_prompts=False, train__batch_size=28)
    tiny.assert_trees_equal(packing.make_plan(changed, "train", TABLE), apart)


def test_rows_for_log_probs_depend_on_the_completions_alone(tmp_path):
    job = jobs.job(tmp_path)
    units = TABLE.packing_units()
    plan = packing.plan_log_probs(job, job.unit_mesh, units)
    tiny.assert_trees_equal(plan, packing.plan_log_probs(jobs.job(tmp_path), job.unit_mesh, units))
    assert plan.slots & (plan.slots - 1) == 0 and plan.rows % axis_size(job.unit_mesh, "rows") == 0
    assert sorted(sum(completions(plan), [])) == [*range(140)]
    fixed = jobs.job(tmp_path, log_probs__batch_rows=11, pack__row_tokens=65, pack__slots=4)
    plan = packing.plan_log_probs(fixed, fixed.unit_mesh, units)
    assert (plan.row_tokens, plan.slots, plan.rows) == (65, 4, 16)


def test_memory_for_activations_is_what_parameters_and_moments_leave(tmp_path):
    job, machine = jobs.job(tmp_path), MACHINES["tpu"]
    free = [packing.free_bytes(job, job.mesh, machine, stage) for stage in (None, "train")]
    count = packing.parameter_count(job.shape.settings)
    np.testing.assert_allclose(free[0] - free[1], 12 * count)
    adapted = jobs.job(tmp_path, lora__rank=2)
    assert free[1] < packing.free_bytes(adapted, job.mesh, machine, "train") < free[0]


@pytest.mark.parametrize(
    "options, message, key",
    [
        ({"pack__row_tokens": 9}, "does not fit a row of 9", "pack.row_tokens"),
        ({}, "nothing to pack", "select"),
    ],
)
def test_what_no_row_can_hold_is_refused_by_key(tmp_path, options, message, key):
    table = TABLE if options else tiny.only(TABLE, np.zeros(len(TABLE.sizes_U), bool))
    with pytest.raises(UserError, match=message) as error:
        packing.make_plan(jobs.job(tmp_path, **options), "train", table)
    assert error.value.keys == (key,)
