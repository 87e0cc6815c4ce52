"""A program is compiled once for each set of shapes, and refused before it runs if a device cannot hold it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.program import checked
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.errors import UserError
from tests.helpers.exports import one_device


def test_it_computes_what_the_function_computes_and_compiles_each_shape_once() -> None:
    traced = []

    def double(tree: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return tree["a"] * 2 + x

    program = CheckedProgram(jax.jit(double, donate_argnums=0), one_device(), "a step", ("rows",))
    for size in (5, 7, 5):
        a = jnp.arange(float(size))
        np.testing.assert_array_equal(program({"a": a}, jnp.ones(size)), np.arange(size) * 2.0 + 1)
        assert a.is_deleted(), "the argument was donated"
    assert traced == [(5,), (7,)]


def test_a_program_that_a_device_cannot_hold_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "device_bytes", lambda mesh: 3e6)
    ran = []

    def square(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return jnp.tanh(x @ x.T) @ x

    program = CheckedProgram(jax.jit(square), one_device(), "a training step", ("rows", "split"))
    with pytest.raises(UserError, match=r"a training step needs 0\.0 GB .* of 0\.0 GB that a device has") as caught:
        program(jnp.ones((1009, 13)))
    assert caught.value.about == ("rows", "split") and not ran
    program(jnp.ones((13, 13))).block_until_ready()


def test_what_the_compiler_refuses_is_refused_alike_and_other_errors_pass() -> None:
    class Lowered:
        def __init__(self, message: str) -> None:
            self.message = message

        def lower(self, *_: object) -> "Lowered":
            return self

        def compile(self) -> None:
            raise jax.errors.JaxRuntimeError(self.message)

    def run(message: str) -> None:
        CheckedProgram(Lowered(message), one_device(), "sampling", ("unit",))(jnp.ones(3))

    with pytest.raises(UserError, match="sampling needs more of"):
        run("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run("INTERNAL: a bug")


def test_a_program_that_keeps_more_on_the_host_than_it_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is offloaded; here as the compiler would say it, because a CPU's memory is the host's."""
    needs = checked.memory(jax.jit(jnp.tanh).lower(jnp.ones(3)).compile())._replace(host=7_000_000_000)
    monkeypatch.setattr(checked, "memory", lambda compiled: needs)
    monkeypatch.setattr(checked, "machine_bytes", lambda: 5e9)
    program = CheckedProgram(jax.jit(jnp.tanh), one_device(), "a training step", ("remat",))
    with pytest.raises(UserError, match=r"keeps 7\.0 GB in the memory of the host, which has 5\.0 GB") as caught:
        program(jnp.ones(3))
    assert caught.value.about == ("remat",)
