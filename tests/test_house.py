"""The house's own rules: who may import whom, no circles, no long files, no catch-alls."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSES = ("model", "etl", "pipeline")
MOST_LINES = 400

MAY_IMPORT = {
    "model": ("model",),
    "etl": ("etl",),
    "pipeline": (
        "pipeline",
        "model",
        "etl.schema",
        "etl.shards",
        "etl.command",
        "etl.atomic",
    ),
}
"""House → the modules of ours it may import, with what lies below them; docs/design.md says why."""

MAY_ALSO_IMPORT = {"pipeline/features/fill.py": ("etl.cluster", "etl.crew")}
"""File → what it alone of its house may import, too: the one Ray job that needs a model."""

HEAVY = ("torch", "transformers", "deepspeed", "ray", "peft")


def files():
    return sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in files()}


def ours(name):
    """Return the module of ours that an imported name lies in, if any: `a.b.Class` → `a.b`."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def imports(path):
    """Return every name that a file imports, anywhere in it, as (name, line)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def below(name, allowed):
    return name == allowed or name.startswith(allowed + ".")


def relative(path):
    return str(path.relative_to(ROOT))


PATHS = pytest.mark.parametrize("path", files(), ids=relative)


def test_there_is_something_to_look_at():
    assert {name.partition(".")[0] for name in MODULES} == set(HOUSES)
    assert ours("model.spec.Stage") == "model.spec"
    assert ours("torch.nn") is None


@PATHS
def test_imports_run_one_way(path):
    house = relative(path).partition("/")[0]
    allowed = (*MAY_IMPORT[house], *MAY_ALSO_IMPORT.get(relative(path), ()))
    for name, line in imports(path):
        if name.partition(".")[0] in (*HOUSES, "tests", "benchmarks"):
            assert any(below(name, module) for module in allowed), (
                f"{relative(path)}:{line} imports {name}; {house} may import {allowed}"
            )


def test_no_module_imports_itself_through_others():
    graph = {
        name: {target for found, _ in imports(path) if (target := ours(found)) not in (None, name)}
        for name, path in MODULES.items()
    }
    # `from package import module` runs the package's __init__ too, but a module needs not wait
    # for its own package: that is how Python imports.
    for name, targets in graph.items():
        targets -= {package for package in targets if below(name, package)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" ← ".join(circle.args[1]))


@PATHS
def test_no_file_is_too_long(path):
    lines = path.read_text().count("\n")
    assert lines <= MOST_LINES, f"{relative(path)} has {lines} lines"


@PATHS
def test_nothing_is_caught_or_imported_wholesale(path):
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: a bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{where}: a star import"


@PATHS
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text())), relative(path)


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("model.spec", HEAVY),
        ("model.presets", HEAVY),
        ("etl.schema", HEAVY),
        ("etl.command", HEAVY),
        ("etl.shards", HEAVY),
    ],
)
def test_light_modules_load_nothing_heavy(module, without):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & set(without)


@pytest.mark.parametrize("folder", ["model/presets", "model/spec"])
def test_specs_and_presets_import_no_torch(folder):
    for path in (ROOT / folder).rglob("*.py"):
        roots = {name.partition(".")[0] for name, _ in imports(path)}
        assert not roots & set(HEAVY), relative(path)
