"""A program that says how much memory it needs before it runs."""

from typing import Any

import jax
from jax.sharding import Mesh

from qrpo_jax.devices.capacity import device_bytes, machine_bytes
from qrpo_jax.devices.program.memory import memory
from qrpo_jax.errors import UserError


class CheckedProgram:
    """A jitted function that is compiled for each new set of shapes, and refused if a device cannot hold it.

    Args:
      jitted: the function; its arguments are arrays on the mesh.
      name: in the message, such as "a training step".
      about: arguments of the caller that change how much memory it needs.
    """

    def __init__(self, jitted: Any, mesh: Mesh, name: str, about: tuple[str, ...]) -> None:
        self._jitted, self._mesh, self._name, self._about = jitted, mesh, name, about
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program.

        Raises:
          UserError: before it runs for the first time: it needs more memory than a device has.
        """
        return self.compiled(*arguments)(*arguments)

    def compiled(self, *arguments: Any) -> Any:
        """The program for arguments of these shapes.

        Raises:
          UserError: see `__call__`.
        """
        leaves, tree = jax.tree.flatten(arguments)
        shapes = (tree, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(arguments)
        return self._compiled[shapes]

    def lower(self, *arguments: Any) -> Any:
        """As of a jitted function."""
        return self._jitted.lower(*arguments)

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        capacity = device_bytes(self._mesh)
        try:
            compiled = self.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:  # the TPU's compiler checks by itself
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise self._error("more", capacity) from None
        needed = memory(compiled)
        if needed.total > capacity:
            raise self._error(f"{needed.total / 1e9:.1f} GB ({needed.arguments / 1e9:.1f} of arguments)", capacity)
        host, has = needed.host * len(self._mesh.local_devices), machine_bytes()
        if host > has:
            raise UserError(
                f"{self._name} keeps {host / 1e9:.1f} GB in the memory of the host, which has {has / 1e9:.1f} GB",
                about=self._about,
            )
        return compiled

    def _error(self, needed: str, capacity: float) -> UserError:
        has = f"of {capacity / 1e9:.1f} GB that a device has"
        return UserError(f"{self._name} needs {needed} {has}; lower or split what it computes", about=self._about)
