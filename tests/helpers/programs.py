"""What a program consists of: matrix products of a traced one, arrays of a compiled one."""

import re
from collections.abc import Iterator
from math import prod
from typing import Any

import jax

ARRAY = re.compile(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]")


def products(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all matrix products of a program, inner programs included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.outvars[0].aval.shape
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def array_shapes(compiled: Any) -> set[tuple[int, ...]]:
    """Shapes of all arrays in a compiled program; on a mesh those of one device."""
    return {tuple(int(size) for size in found.split(",") if size) for found in ARRAY.findall(compiled.as_text())}


def largest_array(compiled: Any) -> tuple[int, tuple[int, ...]]:
    """Elements and shape of the largest array of a compiled program."""
    return max((prod(shape), shape) for shape in array_shapes(compiled))
