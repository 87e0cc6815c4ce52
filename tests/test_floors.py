"""The floors of the house: a module imports its own floor or lower ones, and never in a circle."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qrpo_jax"
FLOORS = (
    "integrals closed_forms transforms quantiles partition losses selectors optimum objectives",
    "attention rope settings layers decoder log_probs sampling mesh "
    "families stored json_values rope_config model_config weight_files hugging_face reward_heads "
    "lora peft_folder",
    "rows row_files text programs prompts examples packing batch loader rewards reward_models sandbox",
    "state step optimizer checkpoints metrics fit",
    "job manifest checks pipeline stages plots optimum_plots svg page",
    "main",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): tree
    for path, tree in SOURCES.items()
}


def floor(module):
    """Of qrpo_jax.NAME or qrpo_jax.stages.NAME; sandbox_NAME stands with sandbox; -1 for a module not in FLOORS."""
    name = module.split(".")[1]
    return FLOOR.get("sandbox" if name.startswith("sandbox_") else name, -1)


def imports(module, tree):
    """Modules of the package, and other top-level packages, that a module imports anywhere, for types alone aside."""
    own, others = set(), set()
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    never_run = {inner for block in for_types for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if node in never_run:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "qrpo_jax":
                own.add(name)
            else:
                others.add(name.split(".")[0])
    return own, others


GRAPH = {module: imports(module, tree) for module, tree in MODULES.items() if module != "qrpo_jax"}


def test_every_module_stands_on_a_floor_and_every_floor_is_lived_in():
    homeless = {module for module in GRAPH if floor(module) < 0}
    assert not homeless, f"add to FLOORS: {homeless}"
    gone = set(FLOOR) - {module.split(".")[1] for module in GRAPH}
    assert not gone, f"no longer there, remove from FLOORS: {gone}"


@pytest.mark.parametrize("module", GRAPH)
def test_imports_go_down_or_stay(module):
    above = {name for name in GRAPH[module][0] if name != "qrpo_jax" and floor(name) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports {above}"


def test_no_import_goes_in_a_circle():
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


@pytest.mark.parametrize("module", [m for m in GRAPH if floor(m) == 0])
def test_the_ground_floor_is_jax_only(module):
    """jax, what jax itself stands on, and the standard library."""
    outside = GRAPH[module][1] - {"jax", "numpy", "scipy"} - sys.stdlib_module_names
    assert not outside, outside


@pytest.mark.parametrize("module", GRAPH)
def test_config_objects_stay_on_the_upper_floors_and_have_no_defaults_of_their_own(module):
    if floor(module) < 4:
        assert "ml_collections" not in GRAPH[module][1]
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = ast.unparse(node.func.value)
            if floor(module) >= 4:
                assert "config" not in owner.split("."), f"{module} line {node.lineno}: {ast.unparse(node)}"
