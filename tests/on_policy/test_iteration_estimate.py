"""Stage `compile` of an on-policy run: the programs of an iteration, and what a whole one takes and holds."""

import json

import pytest

from qrpo_jax import pipeline
from qrpo_jax.errors import UserError
from qrpo_jax.job.memory import between_steps
from qrpo_jax.on_policy.iteration_estimate import FLOORS, SMALL, Part, iteration_rows
from qrpo_jax.report import compile_page
from qrpo_jax.stages.compile import open_meshes, rows_of
from tests.helpers.compile_jobs import check_program, compiling

ITERATION = {
    "train__data": "on_policy",
    "train__objective": "grpo",
    "train__epochs": 2,
    "rollout__prompts": 8,
    "rollout__completions": 6,
    "rollout__max_new_tokens": 48,
    "compile__rows": 8,
    "log_probs__batch_rows": 4,
}


def test_an_iteration_has_the_rows_of_its_completions(tmp_path):
    """Of 256 tokens: prompts of 32 once a group, or once a completion, and 48 new tokens of each."""
    assert iteration_rows(compiling(tmp_path, **ITERATION)) == 8 * (32 + 6 * 48) / 256
    apart = compiling(tmp_path, **ITERATION, pack__share_prompts=False)
    assert iteration_rows(apart) == 8 * 6 * (32 + 48) / 256


@pytest.mark.parametrize(
    ("floors", "limit"),
    [((5, 2, 1), "products"), ((2, 9, 1), "hbm"), ((1, 2, 6), "ici"), ((4.9, 4.8, 4.7), None)],
)
def test_a_part_is_limited_by_what_takes_most_of_it(floors, limit):
    part = Part(3, 10.0, dict(zip(FLOORS, floors, strict=True)))
    assert part.limit == (SMALL if limit is None else FLOORS[limit])


def test_all_programs_of_an_iteration_have_the_mesh_of_training(tmp_path):
    job = compiling(tmp_path, **ITERATION)
    meshes = open_meshes(job)
    assert meshes["train"] is meshes["sample"] is meshes["reference"] and meshes["train"].shape["fsdp"] == 4
    assert [rows_of(job, meshes, name, {}) for name in ("train", "reference", "sample")] == [8, 4, 8]


def test_a_copy_that_the_mesh_cannot_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"3 devices a copy; .* are 4 \(config.mesh.decoding\)"):
        pipeline.check(compiling(tmp_path, **ITERATION, mesh__decoding=3))


def test_the_page_says_what_bounds_an_iteration_and_what_its_weights_cost():
    decoding = {"devices_of_a_copy": 2, "copy_gb": 8.0, "layout_gb": 7.7, "layout_seconds": 0.03}
    decoding |= {"steps": 2048, "step_bytes": 20480.0, "step_seconds_on_links": 2e-5}
    iteration = {
        "fits": False,
        "seconds": {"sampling": 30.0, "log-probs": 3.0, "steps": 7.0, "total": 40.0},
        "limits": {"sampling": SMALL, "log-probs": FLOORS["products"], "steps": FLOORS["products"]},
        "bottleneck": "sampling, 75% of an iteration, by small operations",
        "tokens_per_second": 51200.0,
        "prompts": 128,
        "completions": 16,
        "memory_gb": {"between": 4.0, "sampling": 120.0, "log-probs": 9.0, "steps": 30.0, "hbm": 102.0},
        "decoding": decoding,
    }
    took, bottleneck, memory, weights = compile_page.iteration_lines(iteration)
    assert (
        "128 prompts x 16 completions takes 40.000 s: sampling 30.000 (small operations), " in took
        and "51,200 " in took
    )
    assert bottleneck == "Its bottleneck: sampling, 75% of an iteration, by small operations"
    assert "120.0 with sampling" in memory and memory.endswith("of 102.0: it does not fit")
    assert "a copy for 2 devices: once a call a device receives 7.7 GB in 0.030 s; each of 2,048" in weights
    (*_, without) = compile_page.iteration_lines(iteration | {"decoding": decoding | {"devices_of_a_copy": 0}})
    assert without.startswith("Decoding has no copy of the weights: each of 2,048 decode steps receives 20,480 bytes")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_a_whole_iteration_compiles_for_absent_chips(tmp_path, capsys, objective):
    job = compiling(tmp_path, **ITERATION | {"train__objective": objective})
    assert pipeline.run(job)
    results = json.loads((job.folder("compile") / "compile.json").read_text())
    for name in ("train", "reference", "sample"):
        check_program(results[name])
    iteration, memory = results["iteration"], results["iteration"]["memory_gb"]
    rows, seconds = iteration_rows(job), {name: results[name]["step_seconds"] for name in ("train", "reference")}
    assert iteration["seconds"]["steps"] == pytest.approx(2 * rows / 8 * seconds["train"], rel=1e-3)
    assert iteration["seconds"]["log-probs"] == pytest.approx(2 * rows / 4 * seconds["reference"], rel=1e-3)
    assert iteration["seconds"]["sampling"] == pytest.approx(results["sample"]["step_seconds"], rel=1e-3)
    assert iteration["sampled_tokens"] == 8 * 6 * 48
    held = between_steps(job, "train", open_meshes(job)["train"]) / 1e9
    assert iteration["fits"] and memory["between"] == pytest.approx(held, abs=1e-3), memory
    assert all(held < memory[name] < memory["hbm"] for name in ("sampling", "log-probs", "steps")), memory
    decoding = iteration["decoding"]
    # A copy in bfloat16 for each chip, of which a quarter is there.
    assert decoding["devices_of_a_copy"] == 1
    assert decoding["layout_gb"] == pytest.approx(0.75 * decoding["copy_gb"], rel=0.1), decoding
    assert decoding["step_bytes"] < 0.01 * 1e9 * decoding["copy_gb"], decoding
    assert "bottleneck" in capsys.readouterr().err
    assert "bottleneck" in (job.folder("compile") / "report.html").read_text()
