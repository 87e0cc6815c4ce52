"""Programs that differ from a given one in one place: a mutant for each constant, comparison, condition and return."""

import ast
from collections.abc import Iterator

SWAPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def mutants(source: str) -> Iterator[str]:
    """Every mutant of a program, in the order of its nodes."""
    count = sum(1 for _ in ast.walk(ast.parse(source)))
    for place in range(count):
        module = ast.parse(source)
        node = [*ast.walk(module)][place]
        if _change(node):
            yield ast.unparse(ast.fix_missing_locations(module))


def _change(node: ast.AST) -> bool:
    """Changes a node in place, where there is something to change."""
    match node:
        case ast.Constant(bool() as value):
            node.value = not value
        case ast.Constant(int() | float() as value):
            node.value = value + 1
        case ast.Compare(ops=[operator]) if type(operator) in SWAPPED:
            node.ops = [SWAPPED[type(operator)]()]
        case ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Return(value) if value is not None:
            node.value = ast.Constant(None)
        case _:
            return False
    return True
