"""What a traced program consists of."""

from collections.abc import Iterator
from typing import Any

import jax


def products(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all matrix products of a program, inner programs included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.outvars[0].aval.shape
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)
