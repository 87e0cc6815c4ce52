"""Memory before anything runs: stages that cannot fit are refused, and prompts are sampled from in parts that fit."""

from pathlib import Path

import jax
import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data.rows import Message, Row
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import UserError
from qrpo_jax.job import completions, memory
from qrpo_jax.model.decoder import parameter_count
from tests.helpers.exports import one_device
from tests.helpers.jobs import job, refused


@pytest.mark.parametrize(
    ("stages", "overrides", "message"),
    [
        (("sft", "sample"), {}, "stage 'sft' holds 0.0 GB on each of 8 devices, before it computes anything; .*dtype"),
        (("sft", "sample", "score", "reference", "train"), {}, "stage 'sft' holds"),
    ],
)
def test_a_stage_that_no_device_can_hold_is_refused_at_the_start(
    tmp_path, monkeypatch, stages, overrides, message
) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: 1e4)
    refused(tmp_path, message, stages=stages, **overrides)


def test_a_row_that_no_device_can_hold_is_refused_at_the_start(tmp_path, monkeypatch) -> None:
    one = job(tmp_path, model__remat="full")
    held, row = memory.held_bytes(one, "sft"), memory.row_bytes(one, "sft")
    assert row > memory.row_bytes(one, "reference") > 0 == memory.row_bytes(one, "sample")
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: held + 0.9 * row)
    refused(tmp_path, "one row needs at least .* config.pack.max_tokens or config.model.remat", model__remat="full")
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: held + 1.1 * row)
    memory.check(one)


def test_what_a_stage_holds_is_its_arrays_on_one_device(tmp_path: Path) -> None:
    """In float32 a value, a gradient and two moments; with LoRA the base once, and four of the adapters."""
    one = job(tmp_path, mesh__data=1)
    one.__dict__["mesh"] = one_device()
    count = parameter_count(one.shape.settings)
    assert memory.held_bytes(one, "sft") == pytest.approx(16 * count, abs=64)
    assert memory.held_bytes(one, "sample") == 4 * count
    assert memory.held_bytes(one, "report") == 0
    adapted = job(tmp_path, lora__rank=2)
    adapted.__dict__["mesh"] = one_device()
    small = parameter_count(adapted.shape.settings, adapted.shape.lora)
    assert memory.held_bytes(adapted, "train") == pytest.approx(4 * count + 16 * small, abs=64)
    split = job(tmp_path)
    split.__dict__["mesh"] = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    assert memory.held_bytes(split, "sft") == pytest.approx(8 * count, rel=0.02)


def test_as_many_prompts_as_fit_are_sampled_from_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path)
    mesh, section = make_mesh(2, 1, 1, devices=jax.devices()[:2]), one.config.sample
    each, held = memory.prompt_bytes(one, section), 4 * parameter_count(one.shape.settings)
    monkeypatch.setattr(memory, "slots_at_once", lambda *_: 7)
    held += 7 * memory.slot_bytes(one, section) + memory.prefill_bytes(one)

    def at_once(prompts_a_device: float) -> int:
        size = (prompts_a_device * each + held) / memory.SHARE["cpu"]
        monkeypatch.setattr(memory, "device_bytes", lambda mesh: size)
        return memory.prompts_at_once(one, section, memory.unit_room(one, mesh), 128)

    assert [at_once(x) for x in (1000, 64.01, 63.9, 17, 16.01, 3, 0.5, 0)] == [128, 128, 64, 32, 32, 4, 2, 2]


def test_slots_share_weights_and_leave_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger the weights beside a slot's cache, the more slots; half of the free memory at most."""
    one, mesh = job(tmp_path), make_mesh(1, 1, 1, devices=jax.devices()[:1])
    weights = 4 * parameter_count(one.shape.settings)

    def slots(tokens: int, memory_bytes: float = 1e12, **keys: int) -> int:
        monkeypatch.setattr(memory, "device_bytes", lambda mesh: memory_bytes)
        section = job(tmp_path, sample__max_new_tokens=tokens, **keys).config.sample
        return memory.slots_at_once(one, section, memory.unit_room(one, mesh))

    assert slots(1) == min(memory.MOST_SLOTS, int(4 * weights / memory.kept_bytes(one, 1)))
    assert slots(100_000) == memory.LEAST_SLOTS and slots(64, sample__slots=3) == 3
    section = job(tmp_path, sample__max_new_tokens=64).config.sample
    room = (weights + 2 * 5.5 * memory.slot_bytes(one, section)) / memory.SHARE["cpu"]
    assert slots(64, room) == 5 and slots(64, 0.0) == 1


def test_sampling_in_parts_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path, sample__max_new_tokens=7, sample__completions=3)
    one.__dict__["mesh"] = one_device()
    rows = [Row(f"row-{i}", (Message("user", text),)) for i, text in enumerate(["x", "1+1", "x*x", "-x", "2"])]
    parameters = one.random_parameters(one.mesh)

    def drawn(at_once: int) -> list[list[int]]:
        monkeypatch.setattr(completions, "prompts_at_once", lambda *_: at_once)
        complete = completions.make_completer(
            one, one.config.sample, parameters, side="reference", purpose="sample", most=8
        )
        done, counts = complete(rows, range(5))
        assert counts["completions"] == 15, counts
        return [np.asarray(c.tokens).tolist() for row in done for c in row.completions]

    assert drawn(2) == drawn(8)


def test_a_program_that_does_not_fit_names_the_keys_that_make_it_smaller(tmp_path, monkeypatch) -> None:
    one = job(tmp_path, stages=("sft",), sft__examples=11, sft__batch_size=5)
    one.__dict__["mesh"] = one_device()
    monkeypatch.setattr("qrpo_jax.devices.program.checked.device_bytes", lambda mesh: 1e4)
    keys = r"\(config.sft.microbatches, config.model.remat, config.mesh.fsdp\)"
    with pytest.raises(UserError, match="a training step needs .*" + keys):
        pipeline.run(one)
