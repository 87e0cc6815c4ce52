"""Parameters in a folder: the result of a training run, without what only its next step would need."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from qrpo_jax.devices.array_sums import array_sums, dtype_of
from qrpo_jax.faults.records import place, sealed, unsealed
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.orbax_folders import attempt, compare, readable, written


def kept_folder(folder: Path, step: int) -> Path:
    """Where a training stage, whose folder is given, keeps the parameters after a step."""
    return folder / "kept" / str(step)


def save_parameters(directory: Path, parameters: Parameters) -> None:
    """Writes parameters and their checksums; the folder appears when it is complete and replaces an earlier one."""
    record = sealed({"arrays": array_sums(parameters)}, place(directory))
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(parameters), record=ocp.args.JsonSave(record))
    with written(directory) as folder, _checkpointer() as checkpointer:
        checkpointer.save(folder, items, force=True)


def load_parameters(directory: Path, abstract: Parameters) -> Parameters:
    """Reads parameters into the types and shardings of `abstract`.

    Raises:
      DamagedError: they are not what was saved.
    """
    folder = readable(directory)
    record = unsealed(_read(directory, folder, record=ocp.args.JsonRestore()), place(directory), directory)
    saved = _with_types(abstract, record["arrays"])
    parameters = _read(directory, folder, arrays=ocp.args.StandardRestore(saved))
    compare(directory, record["arrays"], parameters)
    if saved == abstract:
        return parameters
    cast = jax.jit(
        lambda tree: jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), tree, abstract),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )
    return cast(parameters)


def _read(directory: Path, folder: Any, **item: Any) -> Any:
    """One item of `directory`, which Orbax reads at `folder`."""
    with _checkpointer() as checkpointer:
        items = attempt(directory, lambda: checkpointer.restore(folder, ocp.args.Composite(**item)))
    return items[next(iter(item))]


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _with_types(abstract: Parameters, arrays: dict[str, str]) -> Parameters:
    """The layout with the types that were saved."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, dtype_of(arrays.get(jax.tree_util.keystr(path)), leaf.dtype), sharding=leaf.sharding
        ),
        abstract,
    )
