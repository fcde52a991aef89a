# SPDX-License-Identifier: Apache-2.0
"""Installation: dependencies that resolve with the constraints, and a wheel with all files the library reads."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Installers exist before the packages, and are not pinned.
INSTALLERS = {"pip", "setuptools"}
#: Slicer has these itself, and Jinja2 brings MarkupSafe.
BROUGHT = {"PyTorchUtils", "SampleData", "ctk", "qt", "vtk", "vtkmodules", "markupsafe"}
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def pinned(name: str) -> dict[str, str]:
    """Versions by package in a constraints file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(package): version for package, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_asks_for_allows_the_version_of_the_constraints(extra):
    versions = pinned("constraints.txt")
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if canonical(requirement.name) == "liverxai":
            assert requirement.extras <= set(EXTRAS)
            continue
        version = versions[canonical(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} does not allow {version}"


def required(extra: str) -> Iterator[tuple[str, Requirement]]:
    """All requirements, with the package they come from, if `extra` is installed here: direct and transitive ones.

    The requirements of a package's pinned version are known only where that version is installed.
    """
    versions = pinned("constraints.txt")
    waiting = [("liverxai", Requirement(text)) for name in ("", extra) for text in EXTRAS[name]]
    seen = set()
    while waiting:
        asking, requirement = waiting.pop()
        name = canonical(requirement.name)
        if (name, *sorted(requirement.extras), str(requirement.specifier)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras), str(requirement.specifier)))
        if name == "liverxai":
            waiting += [(name, Requirement(text)) for one in requirement.extras for text in EXTRAS[one]]
            continue
        if name in INSTALLERS:
            continue
        yield asking, requirement
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if there.version.split("+")[0] == versions.get(name):
            asked = ["", *requirement.extras]
            for inner in map(Requirement, there.requires or ()):
                if inner.marker is None or any(inner.marker.evaluate({"extra": one}) for one in asked):
                    waiting.append((name, inner))


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves_with_the_constraints(extra):
    """Each package that an extra installs, directly or not, is pinned to a version that satisfies all requirements."""
    versions = pinned("constraints.txt")
    problems = []
    for asking, requirement in required(extra):
        version = versions.get(canonical(requirement.name))
        if version is None:
            problems.append(f"{asking} asks for {requirement}, which constraints.txt does not pin")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{asking} asks for {requirement}, and constraints.txt has {version}")
    assert not problems, "\n".join(problems)


def test_the_workflow_installs_every_extra_with_the_constraints():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]["extras"]
    assert set(job["strategy"]["matrix"]["extra"]) == EXTRAS.keys() - {""}
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert "python -m pip install '.[${{ matrix.extra }}]' --constraint constraints.txt" in commands


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt", "Testing/requirements-nnunet.txt"])
def test_a_package_is_pinned_once(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    names = [canonical(line.partition("==")[0]) for line in lines if line and not line.startswith("#")]
    assert len(names) == len(set(names)) == len(pinned(name))


def test_no_pin_contradicts_another():
    """Whoever installs any of the packages with the constraints gets them; what only tests need is pinned elsewhere."""
    versions = pinned("constraints.txt")
    assert not versions.keys() & (pinned("Testing/requirements-nnunet.txt").keys() - {"dynamic-network-architectures"})
    problems = []
    for name, version in versions.items():
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if there.version.split("+")[0] != version:
            continue
        for inner in map(Requirement, there.requires or ()):
            asked = inner.marker is None or inner.marker.evaluate({"extra": ""})
            pin = versions.get(canonical(inner.name))
            if asked and pin is not None and not inner.specifier.contains(pin, prereleases=True):
                problems.append(f"{name} asks for {inner}, and constraints.txt has {pin}")
    assert not problems, "\n".join(problems)


#: How extras are written: "the extra ``dicom``", ".[dicom]", how_to_install('dicom').
NAMED = (r"\bextras? [`'\"]+([a-z]+)[`'\"]", r"\"\.\[([a-z,]+)\]\"", r"how_to_install\(['\"]([a-z]+)")


def test_every_extra_that_is_named_exists():
    files = [*(ROOT / "LiverXAILib").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    named = {
        extra: path.relative_to(ROOT)
        for path in files
        if path.name != "CHANGELOG.md"
        for pattern in NAMED
        for found in re.findall(pattern, path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert {"dicom", "evaluate", "train"} <= named.keys()
    assert {extra: path for extra, path in named.items() if extra not in EXTRAS} == {}


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = pinned("constraints-oldest.txt")
    asked = {canonical(r.name): r for texts in EXTRAS.values() for r in map(Requirement, texts)}
    assert {canonical(Requirement(text).name) for text in EXTRAS[""]} <= set(oldest)
    for name, version in oldest.items():
        (bound,) = (one.version for one in asked[name].specifier if one.operator == ">=")
        assert version == bound or version.startswith(f"{bound}."), name


def test_an_analysis_needs_no_extra():
    """All imports of the core and the default outputs are among the dependencies."""
    names = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert {"matplotlib", "jinja2"} <= names


def imported() -> set[str]:
    """The packages that the library imports, at the top of a file or later.

    Its benchmarks compare it with others that only the tests install.
    """
    found = set()
    library = ROOT / "LiverXAILib"
    for path in set(library.rglob("*.py")) - set((library / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - BROUGHT


def test_whatever_the_library_imports_comes_with_it_or_with_an_extra_for_users():
    users = [name for name in EXTRAS if name not in ("test", "dev", "docs")]
    declared = {canonical(Requirement(text).name) for name in users for text in EXTRAS[name]}
    packages = metadata.packages_distributions()
    missing = {name for name in imported() if not {canonical(one) for one in packages.get(name, [name])} & declared}
    assert missing == set()


def test_the_wheel_holds_every_file_of_the_library(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "LiverXAILib", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if not tracked:
        pytest.skip("not a clone of the repository")
    for name in tracked:
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "src" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(tmp_path / "src")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    wanted = {name for name in tracked if name.startswith("LiverXAILib/") and not name.endswith("CMakeLists.txt")}
    assert not wanted - packed
    assert "LiverXAILib/py.typed" in packed
