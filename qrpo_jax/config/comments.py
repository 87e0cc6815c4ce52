"""The comments of `configs/default.py`, key by key: the help shows what the file says."""

import ast
import io
import tokenize
from collections.abc import Iterator


def read(source: str) -> dict[str, str]:
    """The comment of every key and section: the lines above its assignment, and what follows on its own line.

    Args:
      source: a module with a function `get_config`, whose statements assign to `config.SECTION.KEY`. A section may come
        from a call of another function of the module.

    >>> read('''
    ... def get_config():
    ...     config = Config()
    ...     # How rows are packed.
    ...     config.pack = Config()
    ...     config.pack.slots = Whole(0)  # of a row
    ... ''')
    {'pack': 'How rows are packed.', 'pack.slots': 'of a row'}
    """
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    alone, trailing = comments(source)
    found = {}
    for name, node in assignments(functions["get_config"], functions):
        above = node.lineno - 1
        while above in alone:
            above -= 1
        lines = [alone[line] for line in range(above + 1, node.lineno)]
        lines += [trailing[node.lineno]] if node.lineno in trailing else []
        found[name] = " ".join(lines)
    return found


def assignments(
    function: ast.FunctionDef, functions: dict[str, ast.FunctionDef], prefix: str = ""
) -> Iterator[tuple[str, ast.Assign]]:
    """The assignments of a function to keys, with their names."""
    for node in function.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
            continue
        name = prefix + ast.unparse(node.targets[0]).partition(".")[2]
        yield name, node
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in functions:
            yield from assignments(functions[call.func.id], functions, f"{name}.")


def comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """The comments of a source by line: those that have a line of their own, and those that follow code."""
    alone: dict[int, str] = {}
    trailing: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own = not token.line[: token.start[1]].strip()
            (alone if own else trailing)[token.start[0]] = token.string.lstrip("# ")
    return alone, trailing
