"""The floors of the house: a folder imports folders below it, and no import goes in a circle."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qrpo_jax"
# From the ground up. A room is a folder, or a module at the top of the package. A folder imports only rooms of lower
# floors, so folders of the same floor do not import each other.
FLOORS = (
    ("errors",),
    ("stores",),
    ("files",),
    ("faults",),
    (
        "exponential_sums",
        "integrals",
        "closed_forms",
        "transform_record",
        "transform_checks",
        "transform_names",
        "affine",
        "transforms",
        "quantiles",
        "partition",
        "losses",
        "policy_gradients",
        "advantages",
        "optimum",
    ),
    ("servers",),
    ("devices",),
    ("model",),
    ("sampling",),
    ("data",),
    ("hugging_face",),
    ("rewards", "training"),
    ("evaluation",),
    ("report",),
    ("config",),
    ("job",),
    ("harnesses", "on_policy"),
    ("stages",),
    ("pipeline",),
    ("sweep",),
    ("command_line",),
    ("main",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
GROUND = sum(FLOORS[:5], ())
STORES = "fsspec"  # what reaches object stores, for the room of that name
CONFIG_FROM = FLOOR["config"]  # ConfigDict stops below this floor
TREES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module):
    return module.split(".")[1]


def imports(tree):
    """Modules of the package, and other top-level packages, that a module imports, without imports for types alone."""
    package, others = set(), set()
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    never_run = {inner for block in for_types for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if node in never_run:
            continue
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in TREES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            (package if name.split(".")[0] == "qrpo_jax" else others).add(name)
    return package, {name.split(".")[0] for name in others}


GRAPH = {module: imports(tree) for module, tree in TREES.items() if module != "qrpo_jax"}


def test_every_room_has_a_floor_and_every_listed_room_exists():
    rooms = {room(module) for module in GRAPH}
    assert rooms == set(FLOOR), f"add to FLOORS: {rooms - set(FLOOR)}; remove from FLOORS: {set(FLOOR) - rooms}"


@pytest.mark.parametrize("name", sorted(FLOOR, key=FLOOR.__getitem__))
def test_a_room_imports_itself_and_lower_floors(name):
    wrong = {
        f"{module} -> {other}"
        for module, (modules, _) in GRAPH.items()
        for other in modules
        if room(module) == name and other != "qrpo_jax" and room(other) != name
        if FLOOR[room(other)] > FLOOR[name] or (FLOOR[room(other)] == FLOOR[name] and name not in GROUND)
    }
    assert not wrong, wrong


def test_imports_have_no_cycle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path, module])
        if module in done or module not in GRAPH:
            return
        path.append(module)
        for name in sorted(GRAPH[module][0]):
            visit(name)
        path.pop()
        done.add(module)

    for module in GRAPH:
        visit(module)


@pytest.mark.parametrize("module", [m for m in GRAPH if room(m) in GROUND])
def test_the_ground_floor_is_jax_only(module):
    """jax, the libraries that jax requires, and the standard library."""
    libraries = {"jax", "numpy", "scipy"} | ({STORES} if room(module) == "stores" else set())
    outside = GRAPH[module][1] - libraries - sys.stdlib_module_names
    assert not outside, outside


@pytest.mark.parametrize("module", [m for m in GRAPH if FLOOR[room(m)] < CONFIG_FROM])
def test_configs_stay_on_the_upper_floors(module):
    assert "ml_collections" not in GRAPH[module][1]
