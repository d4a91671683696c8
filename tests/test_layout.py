"""The layout: which folder may import which, no import cycles, no long files, no catch-alls."""

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = {
    "model": [
        "convert",
        "compose",
        "pretraining",
        "exported",
        "build",
        "preference_lm",
        "reward_lm",
        "signal_decoding",
        "sampling",
        "multimodal_lm",
        "generators",
        "protocols",
        "output_branch",
        "output_projectors",
        "encoders",
        "input_projectors",
        "backbones",
        "fusion",
        "peft",
        "features",
        "segments",
        "packing",
        "batch",
        "text",
        "freeze",
        "batch_invariance",
        "byte_tokenizers",
        "weights",
        "positions",
        "compat",
        "presets",
        "spec",
    ],
    "etl": [
        "JOBS",
        "runtime",
        "sources",
        "media",
        "download",
        "dedup",
        "filters",
        "digits",
        "report",
        "storage",
        "cli",
    ],
    "pipeline": [
        "__main__",
        "cli",
        "contest",
        "quickstart",
        "compose",
        "train",
        "serve",
        "generate",
        "lineage",
        "evaluate",
        "convert",
        "feature_cache",
        "checkpoint",
        "run_folder",
        "data",
        "forecast",
        "signals",
        "distributed",
        "compat",
        "config",
    ],
}
"""Package → its folders and top-level modules, highest first: each imports only from those below.

`JOBS` stands for the corpus jobs in `etl/`, one short script each.
"""

OTHER_PACKAGES = {
    "model": (),
    "etl": (),
    "pipeline": ("model", "etl.storage", "etl.report", "etl.cli"),
}
"""Package → what it may import of the other packages; docs/design.md says why."""

EXECUTOR = ("etl.runtime.executor", "etl.runtime.worker_pool")
ALSO = {
    "pipeline/feature_cache/precompute.py": EXECUTOR,
    "pipeline/generate/batches.py": EXECUTOR,
    "pipeline/generate/generate.py": EXECUTOR,
    "pipeline/serve/urls.py": ("etl.download.base", "etl.download.native"),
}
"""File → what it alone may import, too: the Ray jobs that need a model, and the door to URLs."""

MOST_LINES = 600
HEAVY = ("torch", "transformers", "deepspeed", "ray", "peft")


def files():
    return sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))


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


def test_the_modules_are_found():
    assert {name.partition(".")[0] for name in MODULES} == set(LAYERS)
    assert ours("model.spec.Stage") == "model.spec"
    assert ours("torch.nn") is None


def layer(module):
    """Return the place of a module's folder in its package's order."""
    package, _, rest = module.partition(".")
    order, folder = LAYERS[package], rest.partition(".")[0]
    return order.index(folder if folder in order else "JOBS")


@PATHS
def test_packages_import_only_what_they_may(path):
    package = relative(path).partition("/")[0]
    allowed = (package, *OTHER_PACKAGES[package], *ALSO.get(relative(path), ()))
    for name, line in imports(path):
        if name.partition(".")[0] in (*LAYERS, "tests", "benchmarks"):
            assert any(below(name, module) for module in allowed), (
                f"{relative(path)}:{line} imports {name}; {package} may import {allowed}"
            )


@PATHS
def test_folders_import_downwards(path):
    module = name_of(path)
    package, _, rest = module.partition(".")
    if not rest:
        return
    for name, line in imports(path):
        target = ours(name)
        if target is None or "." not in target or not below(target, package):
            continue
        same_folder = target.split(".")[1] == module.split(".")[1]
        assert same_folder or layer(target) > layer(module), (
            f"{relative(path)}:{line} imports {name}, which lies above it in tests/test_layout.py"
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
    except CycleError as cycle:
        pytest.fail(" ← ".join(cycle.args[1]))


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


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def defined_names():
    """Return every name that our files define or assign, so that its other uses are ours."""
    names = {"_exit", "_replace"}  # public in spite of their names: os._exit, a named tuple's
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            stored = isinstance(getattr(node, "ctx", None), ast.Store)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and stored:
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and stored and ast.unparse(node.value) == "self":
                names.add(node.attr)
    return names


OWN_NAMES = defined_names()


@PATHS
def test_private_names_of_libraries_are_used_in_compat_only(path):
    if "compat" in path.parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert not is_private(node.attr) or node.attr in OWN_NAMES, (
                f"{relative(path)}:{node.lineno} uses .{node.attr}; want a function of compat/"
            )
    for name, line in imports(path):
        assert not any(map(is_private, name.split("."))), f"{relative(path)}:{line} imports {name}"


@PATHS
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text())), relative(path)


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("model.spec", HEAVY),
        ("model.presets", HEAVY),
        ("etl.storage.schema", HEAVY),
        ("etl.cli", HEAVY),
        ("etl.storage.shards", HEAVY),
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


def test_files_beside_the_code_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["tool"]["setuptools"]["package-data"]
    for package in LAYERS:
        folder = ROOT / package
        installed = {path for each in declared.get(package, ()) for path in folder.glob(each)}
        files = {path for path in folder.rglob("*.*") if path.is_file()}
        data = {path for path in files if path.suffix not in (".py", ".pyc")}
        assert data <= installed
