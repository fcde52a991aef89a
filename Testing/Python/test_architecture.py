# SPDX-License-Identifier: Apache-2.0
"""The dependency rules of docs/architecture.md, checked on the source."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from forking import Process

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "LiverXAILib"
#: All folders with Python code.
FOLDERS = ("LiverXAI", "LiverXAILib", "recipes", "Testing", "docs", ".ci")

ORDER = [
    "text",
    "errors",
    "progress",
    "context",
    "_version",
    "_lazy",
    "colors",
    "subprocesses",
    "files",
    "tables",
    "volumes",
    "labels",
    "networks",
    "models",
    "inference",
    "explain",
    "measure",
    "analysis",
    "mrml",
    "report",
    "pipeline",
    "arguments",
    "options",
    "reading",
    "followup",
    "worker",
    "batch",
    "phantoms",
    "evaluation",
    "benchmarks",
    "training",
    "panel",
    "cli",
]
FRONT_ENDS = {"mrml", "worker", "batch", "evaluation", "benchmarks", "training", "panel"}
ALLOWED_BETWEEN_FRONT_ENDS = {
    ("batch", "mrml"),
    ("training", "evaluation"),
    ("benchmarks", "evaluation"),
    ("panel", "mrml"),
    ("panel", "worker"),
}
RESERVED = {
    "slicer": ("mrml", "panel"),
    "vtk": ("mrml", "panel"),
    "vtkmodules": ("mrml", "panel"),
    "qt": ("panel",),
    "ctk": ("panel",),
    "monai": ("training", "evaluation", "benchmarks", "models/formats/monai.py"),
    "lightning": ("training",),
    "tqdm": ("progress.py",),
    "torchvision": (),
    "shap": (),
}


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file, which several tests read."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute dotted names of all that a file imports outside ``if TYPE_CHECKING``, with line numbers."""
    tree = tree_of(path)
    package = ["LiverXAILib", *path.relative_to(LIBRARY).parent.parts]
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for statement in node.body for child in ast.walk(statement))
    found = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{name}.{alias.name}" if not node.module else name, node.lineno) for alias in node.names]
    return found


def sources() -> list[Path]:
    return [path for path in sorted(LIBRARY.rglob("*.py")) if path.name not in ("__main__.py",)]


def package_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY).parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_package_imports_only_from_packages_above_it(path):
    own = package_of(path)
    if own == "__init__":
        return
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] != "LiverXAILib" or len(parts) < 2 or parts[1] == own:
            continue
        other = parts[1]
        assert ORDER.index(other) < ORDER.index(own), f"{path}:{line}: {own} imports {other}, which is below it"
        if own in FRONT_ENDS and other in FRONT_ENDS:
            assert (own, other) in ALLOWED_BETWEEN_FRONT_ENDS, f"{path}:{line}: front end {own} imports {other}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_heavy_and_foreign_packages_stay_in_their_packages(path):
    where = str(path.relative_to(LIBRARY))
    for name, line in imports(path):
        allowed = RESERVED.get(name.split(".")[0])
        if allowed is not None:
            assert where.startswith(allowed) if allowed else False, f"{path}:{line} imports {name}"


def test_only_volumes_knows_how_lps_and_ras_differ():
    """Points and matrices are converted by its functions and its matrix, not by signs written elsewhere."""
    name = r"[A-Za-z_]\w*(\([^()]*\))?"
    signs = re.compile(rf"-{name}, -{name}, {name}|sign \* x|-1(\.0)?, -1(\.0)?, 1")
    found = [
        f"{path.relative_to(LIBRARY)}: {line.strip()}"
        for path in sources()
        if package_of(path) not in ("volumes", "phantoms")  # phantoms negate distances
        for line in path.read_text(encoding="utf-8").splitlines()
        if signs.search(line)
    ]
    assert found == []


def test_importing_the_library_loads_neither_torch_nor_simpleitk():
    code = (
        "import sys, LiverXAILib; "
        "print([m for m in ('torch', 'SimpleITK', 'numpy', 'pydicom', 'monai', 'slicer') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists():
    import LiverXAILib

    for name in LiverXAILib.__all__:
        assert getattr(LiverXAILib, name) is not None


def test_a_package_with_the_name_of_its_function_is_imported_as_a_package_and_called_as_the_function():
    code = """
import inspect, sys, types
for first in ("import LiverXAILib.{0} as package", "import LiverXAILib; LiverXAILib.{0}.__all__"):
    for name in ("explain", "measure"):
        for loaded in [module for module in sys.modules if module.startswith("LiverXAILib")]:
            del sys.modules[loaded]
        exec(first.format(name))
        import LiverXAILib as lx
        package = __import__(f"LiverXAILib.{name}", fromlist=["x"])
        function = getattr(package, name)
        assert isinstance(package, types.ModuleType) and package is getattr(lx, name) is sys.modules[package.__name__]
        assert isinstance(function, types.FunctionType)
        assert inspect.signature(getattr(lx, name)) == inspect.signature(function)
        try:
            getattr(lx, name)()
        except TypeError as error:
            print(error)
"""
    with Process([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:  # torch is loaded
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert said.count("explain() missing") == said.count("measure() missing") == 2


#: Lines of a package, and of a function without a comment that says why it is long.
MOST_LINES, LONGEST_FUNCTION = 3000, 60


def test_no_package_is_too_large_to_be_known_by_one_person():
    """A package is a folder; packages inside it count for themselves."""
    lines = Counter()
    for path in sources():
        lines[str(path.parent.relative_to(LIBRARY))] += len(path.read_text(encoding="utf-8").splitlines())
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_modules_import_each_other_in_a_circle_when_they_are_loaded():
    """Imports inside functions run later, and those for type checking never."""
    modules = {path.relative_to(LIBRARY).with_suffix("").parts: path for path in sources()}
    modules = {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in modules.items()}
    needs: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for module, path in modules.items():
        package = path.relative_to(LIBRARY).parent.parts
        needs[module] = set()
        for node in tree_of(path).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
                named = {(*base, alias.name) if (*base, alias.name) in modules else base for alias in node.names}
                needs[module] |= (named & modules.keys()) - {module}
    assert tuple(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError with the circle


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements of a file, and not the far more numerous expressions in them."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, part, ())


def test_long_functions_say_why_they_are_long():
    """The reason stands in a comment that begins with "Long:" on the line above the function or its decorators."""
    unexplained = []
    for path in [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in statements(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            long = node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
            if long and not lines[first - 2].strip().startswith("# Long:"):
                unexplained.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert unexplained == []
