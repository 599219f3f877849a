"""The package's layout: imports point one way, names mean one thing, files and functions are short."""

import ast
import pkgutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tracenas

SOURCES = Path(tracenas.__file__).parent
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
BY_NAME = {"registry.py", "commands/__init__.py", "worker_pool.py"}
"""Files that import what they are told: the registries, the table of commands, and workers of a process pool."""


def module_name(path: Path) -> str:
    parts = ("tracenas", *path.relative_to(SOURCES).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.rglob("*.py"))}
MODULES = {module_name(path): path for path in TREES}


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports: at the top, in functions and under TYPE_CHECKING."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in MODULES:
                    yield full
                elif node.module in MODULES:
                    yield node.module


def test_imports_point_one_way() -> None:
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"an import circle: {' → '.join(reversed(error.args[1]))}")


def test_no_import_is_hidden_in_a_text() -> None:
    hidden = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                hidden.add(path.relative_to(SOURCES).as_posix())
    assert hidden <= BY_NAME


def test_no_function_has_the_name_of_a_subpackage() -> None:
    subpackages = {module.name for module in pkgutil.iter_modules([str(SOURCES)])}
    assert not subpackages.intersection(tracenas.__all__)


@pytest.mark.parametrize("name", ["tracenas.strategies.guided", "tracenas.reporting.pages.run", "tracenas.studies"])
def test_a_module_is_imported_by_its_path_before_and_after_the_package(name: str) -> None:
    code = f"import {name}; import tracenas; import {name} as module; assert module is {name}; tracenas.search"
    subprocess.run([sys.executable, "-c", code], check=True)


def bound_names(tree: ast.Module) -> Iterator[str]:
    """What a module's own statements bind: functions, classes, values and what is imported from elsewhere."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            source = getattr(node, "module", None)
            for alias in node.names:
                if f"{source}.{alias.name}" not in MODULES:
                    yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_no_name_of_a_package_hides_a_module_of_it() -> None:
    hidden = [
        f"{package}.{name}"
        for package, path in MODULES.items()
        if path.name == "__init__.py"
        for name in bound_names(TREES[path])
        if f"{package}.{name}" in MODULES
    ]
    assert not hidden


def test_files_and_functions_are_short() -> None:
    long = []
    for path, tree in TREES.items():
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE:
            long.append(str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    long.append(f"{path}: {node.name}")
    assert not long


def test_classes_have_names_of_their_own() -> None:
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(SOURCES)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their names alone: of two with one name it collects the first and fails at the second."""
    names = [path.name for path in Path(__file__).parents[1].rglob("*.py")]
    assert not {name for name in names if names.count(name) > 1}
