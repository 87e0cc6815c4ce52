"""Where a policy is sampled while it trains: a copy for decoding that as few devices share as have room for it."""

from pathlib import Path
from typing import Any

import jax
import pytest

from qrpo_jax.data.rows import Message, Row
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import UserError
from qrpo_jax.job import memory
from qrpo_jax.job.completions import make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.training_room import training_room
from qrpo_jax.model import lora
from qrpo_jax.model.decoder import parameter_count
from tests.helpers.jobs import job

SHAPE = {"model__d_model": 16, "model__heads": 4, "model__kv_heads": 4, "model__d_ff": 12, "model__layers": 2}


def split_job(tmp_path: Path, *sizes: int, **keys: Any) -> Job:
    one = job(tmp_path, **SHAPE | keys)
    one.__dict__["mesh"] = make_mesh(*sizes)
    return one


@pytest.mark.parametrize(("copies", "tensor"), [(1.3, 1), (0.9, 2), (0.4, None)])
def test_as_few_devices_share_a_copy_as_have_room_for_it(tmp_path, monkeypatch, copies, tensor) -> None:
    """`copies`: whole ones that half of the free memory takes. A vocabulary of 250 cannot be split four ways."""
    one = split_job(tmp_path, 1, 8, 1)
    held, copy = memory.between_steps(one, "train", one.mesh), 4 * parameter_count(one.shape.settings)
    size = (held + 2 * copies * copy) / memory.SHARE["cpu"]
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: size)
    room = training_room(one)
    assert room.stored is (None if tensor is None else one.mesh)
    if tensor is None:
        assert (room.mesh, room.held) == (one.mesh, held)
    else:
        assert (room.mesh.shape["fsdp"], room.mesh.shape["tensor"]) == (8 // tensor, tensor)
        assert copy / tensor <= room.held - held < 1.2 * copy / tensor, (room.held, held, copy)
        assert list(room.mesh.devices.flat) == list(one.mesh.devices.flat)


def test_a_copy_is_made_where_it_saves_something(tmp_path) -> None:
    assert training_room(split_job(tmp_path, 8, 1, 1)).stored is None
    assert training_room(split_job(tmp_path, 8, 1, 1, model__compute_dtype="bfloat16")).stored is not None
    assert training_room(split_job(tmp_path, 4, 1, 2)).stored is None
    assert training_room(split_job(tmp_path, 2, 2, 2)).mesh.shape["tensor"] == 2
    assert training_room(split_job(tmp_path, 1, 8, 1, mesh__decoding="training")).stored is None
    assert training_room(split_job(tmp_path, 1, 8, 1, mesh__decoding=2)).mesh.shape["tensor"] == 2


@pytest.mark.parametrize(
    ("decoding", "message"), [(3, "3 devices a copy; .* are 8 "), (8, "vocab of size 250 cannot be split 8 ways .*")]
)
def test_groups_that_cannot_be_are_refused(tmp_path, decoding, message) -> None:
    with pytest.raises(UserError, match=message + r"\(config.mesh.decoding\)"):
        training_room(split_job(tmp_path, 1, 8, 1, mesh__decoding=decoding))


@pytest.mark.parametrize(("decoding", "rank"), [pytest.param(1, 0, marks=pytest.mark.slow), (2, 3)])
def test_the_policy_draws_the_same_from_a_copy(tmp_path, decoding, rank) -> None:
    """Of all parameters, or of adapters on their base."""
    rows = [Row(f"row-{i}", (Message("user", text),)) for i, text in enumerate(["x", "1+1", "x*x", "-x", "2"])]

    def drawn(asked: int | str) -> list[list[int]]:
        sampled = {"watch__completions": 3, "watch__max_new_tokens": 7, "lora__rank": rank}
        one = split_job(tmp_path, 1, 8, 1, mesh__decoding=asked, **sampled)
        parameters = one.random_parameters(one.mesh)
        if rank:  # adapters that change something, unlike fresh ones
            adapters = jax.tree.map(lambda x: x + 0.1, one.fresh_adapters(one.mesh))
            parameters = lora.join(parameters, adapters)
        complete = make_completer(
            one,
            one.config.watch,
            parameters,
            side="policy",
            purpose="watch",
            most=8,
            room=training_room(one),
        )
        done, _ = complete(rows, range(5))
        return [c.tokens.tolist() for each in done for c in each.completions]

    assert drawn(decoding) == drawn("training")
