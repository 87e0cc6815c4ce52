"""Stage `compile`: whether the job's programs fit on a slice of TPUs, and how fast they would be, without the slice.

It compiles the step of training, the log-probs of the reference and the sampler for the devices of a topology, reads
the compiled programs and writes what it finds into compile.json and a page. Of an on-policy run these are the programs
of an iteration, and it says what a whole one takes. Shapes come from the config and from the
config.json of the model's folder; nothing is allocated, and neither weights nor a tokenizer are needed.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from qrpo_jax.config.keys import refuse
from qrpo_jax.devices.chips import Chip, chip_of
from qrpo_jax.devices.mesh import AXES, make_mesh, round_up
from qrpo_jax.devices.processes import is_first
from qrpo_jax.devices.topologies import open_topology
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.errors import located
from qrpo_jax.files import write_json, write_text
from qrpo_jax.job import estimates
from qrpo_jax.job.bounds import check_least
from qrpo_jax.job.job import Job
from qrpo_jax.job.memory import prompts_at_once, unit_room
from qrpo_jax.job.programs import PROGRAMS, row_multiple
from qrpo_jax.job.source_check import is_on_policy
from qrpo_jax.job.training_options import check_data, check_objective
from qrpo_jax.job.training_room import training_room
from qrpo_jax.job.unit_size import MOST
from qrpo_jax.model.decoder import parameter_count
from qrpo_jax.on_policy import iteration_estimate
from qrpo_jax.on_policy import programs as iteration_programs
from qrpo_jax.report import compile_page
from qrpo_jax.report.page import PAGE
from qrpo_jax.training.state import parameter_layout

RESULTS = "compile.json"


def run(job: Job) -> dict[str, Any]:
    meshes = open_meshes(job)
    chip = chip_of(meshes["train"].devices.flat[0])
    results: dict[str, Any] = {"machine": machine(job, meshes, chip)}
    for line in compile_page.machine_lines(results["machine"]):
        job.say(f"compile: {line}")
    circle, found = is_on_policy(job.config), {}
    programs = iteration_programs.PROGRAMS if circle else PROGRAMS
    for name in job.config.compile.programs:
        rows = rows_of(job, meshes, name, results)
        search = estimates.largest(job, meshes[name], name, rows, programs)
        results[name] = estimates.record(search, chip)
        if search.estimate is not None:
            found[name] = search.estimate
        if search.error is not None:
            job.say(f"compile: {name} does not fit: it {search.error}")
    results["assumptions"] = estimates.ASSUMPTIONS
    if circle and found.keys() == programs.keys():
        results["iteration"] = iteration_estimate.record(job, meshes["train"], found)
        results["assumptions"] += iteration_estimate.ASSUMPTIONS
    if is_first():
        write_json(job.folder("compile") / RESULTS, results)
        write_text(job.folder("compile") / PAGE, compile_page.build(results))
    for line in compile_page.terminal_lines(results):
        job.say(line)
    job.say(f"compile: {job.folder('compile') / PAGE}")
    return {
        "page": PAGE,
        "results": RESULTS,
        "fits": {name: results[name]["fits"] for name in job.config.compile.programs},
    }


def open_meshes(job: Job) -> dict[str, Mesh]:
    """The mesh of each program, over devices of the topology or those at hand: training has all of them.

    So have the others of an on-policy iteration.
    """
    with located("compile.topology"):
        devices: Sequence[jax.Device] = jax.devices()
        if job.config.compile.topology:
            devices = open_topology(job.config.compile.topology)
        chip_of(devices[0])
    with located("mesh"):
        whole = make_mesh(**{axis: job.config.mesh[axis] for axis in AXES}, devices=devices)
    unit = whole if is_on_policy(job.config) else job.unit_mesh_of(whole).mesh
    return {"train": whole, "reference": unit, "sample": unit}


def rows_of(job: Job, meshes: dict[str, Mesh], name: str, results: dict[str, Any]) -> int:
    """Rows or prompts of a program; 0 to search for the largest batch.

    Args:
      results: of the programs before it.

    Raises:
      UserError: not as many for each device.
    """
    config, mesh = job.config, meshes[name]
    multiple = row_multiple(job, mesh, name)
    if name == "sample" and is_on_policy(config):
        return prompts_at_once(job, config.rollout, training_room(job, mesh), config.rollout.prompts)
    if name == "sample":
        return prompts_at_once(job, config.sample, unit_room(job, mesh), config.prompts.unit or MOST)
    if name == "reference":
        of_training = results.get("train", {}).get("rows", 0) * mesh.size // meshes["train"].size
        return round_up(config.log_probs.batch_rows or of_training or multiple, multiple)
    if config.compile.rows % multiple:
        message = f"{config.compile.rows}; on this mesh and with these microbatches it must be a multiple of {multiple}"
        raise refuse("compile.rows", message)
    return config.compile.rows


def machine(job: Job, meshes: dict[str, Mesh], chip: Chip) -> dict[str, Any]:
    """What the programs are compiled for."""
    settings, mesh, unit = job.shape.settings, meshes["train"], meshes["sample"]
    return {
        "topology": job.config.compile.topology or "devices at hand",
        "devices": mesh.devices.size,
        "mesh": dict(mesh.shape),
        "on_policy": is_on_policy(job.config),
        "unit_devices": unit.devices.size,
        "unit_mesh": dict(unit.shape),
        "chip": chip._asdict(),
        "compiler_options": compiler_options(mesh, backward=True),
        "model": job.config.model.path or "new",
        "parameters": parameter_count(settings),
        "adapter_parameters": parameter_count(settings, job.shape.lora) if job.shape.lora else 0,
        "compute_dtype": job.config.model.compute_dtype,
        "parameter_dtype": job.config.model.parameter_dtype,
        "remat": job.config.model.remat,
        "jax": jax.__version__,
    }


def check(job: Job) -> None:
    config = job.config
    if not is_on_policy(config):
        check_least(config, {"sample.completions": 1})
    check_objective(job)
    if not is_on_policy(config):
        check_data(job)
    meshes = open_meshes(job)
    job.compute(meshes["train"])
    with located("mesh"):
        parameter_layout(meshes["train"], job.shape.settings)
    for name in config.compile.programs:
        rows_of(job, meshes, name, {})
