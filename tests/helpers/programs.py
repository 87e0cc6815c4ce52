"""What a traced program consists of."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all matrix products of a program."""
    return (eqn.outvars[0].aval.shape for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general")
