# SPDX-License-Identifier: Apache-2.0
"""The extension's build files, evaluated by CMake with stand-ins for Slicer's macros: all listed files
exist, and no file of the module or the library is left out."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from cmake import CMAKE_BIN_DIR

ROOT = Path(__file__).parents[2]

#: Slicer's package, with macros that only print their arguments.
SLICER = r"""
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/empty.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/report.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/empty.cmake)

function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown keywords: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  foreach(kind SCRIPTS RESOURCES)
    foreach(file ${MY_${kind}})
      if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
        message(FATAL_ERROR "${MY_NAME} lists ${file}, which does not exist")
      endif()
      message("FILE|${MY_NAME}|${MY_WITH_SUBDIR}|${kind}|${file}")
    endforeach()
  endforeach()
endfunction()

function(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  message("TEST|unittest|${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT}|${MY_SLICER_ARGS}|")
endfunction()

function(slicer_add_python_test)
  cmake_parse_arguments(MY "" "SCRIPT;TESTNAME_PREFIX;SLICER_ARGS" "SCRIPT_ARGS" ${ARGN})
  message("TEST|script|${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT}|${MY_SLICER_ARGS}|${MY_SCRIPT_ARGS}")
endfunction()
"""

REPORT = r"""
foreach(name HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  message("META|${name}|${EXTENSION_${name}}")
endforeach()
"""

#: The outer project, which needs no compiler; the extension's own project() is replaced by a message.
OUTER = """
cmake_minimum_required(VERSION 3.16)
project(outer NONE)
set(BUILD_TESTING ON)
macro(project name)
  message("PROJECT|${{name}}")
endmacro()
add_subdirectory("{root}" extension)
"""


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """CMake's output about the extension: lines of fields."""
    folder = tmp_path_factory.mktemp("cmake")
    (folder / "SlicerConfig.cmake").write_text(SLICER)
    (folder / "report.cmake").write_text(REPORT)
    (folder / "empty.cmake").write_text("")
    (folder / "CMakeLists.txt").write_text(OUTER.format(root=ROOT.as_posix()))
    command = [f"{CMAKE_BIN_DIR}/cmake", "-S", str(folder), "-B", str(folder / "build"), f"-DSlicer_DIR={folder}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.split("|") for line in (result.stdout + result.stderr).splitlines() if "|" in line]


def listed(configured, module, kind):
    return sorted(line[4] for line in configured if line[:2] == ["FILE", module] and line[3] == kind)


def tree(folder):
    """The files of a folder that belong to the project, relative to it."""
    ignored = {"CMakeLists.txt", ".DS_Store"}
    return sorted(
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name not in ignored
    )


@pytest.mark.parametrize("module", ["LiverXAI", "LiverXAILib"])
def test_all_files_of_module_and_library_are_installed(configured, module):
    both = listed(configured, module, "SCRIPTS") + listed(configured, module, "RESOURCES")
    assert sorted(both) == tree(module)


def test_the_library_is_a_package_beside_the_module_and_the_module_is_a_single_file(configured):
    assert listed(configured, "LiverXAI", "SCRIPTS") == ["LiverXAI.py"]
    assert "__init__.py" in listed(configured, "LiverXAILib", "SCRIPTS")
    assert {line[2] for line in configured if line[:2] == ["FILE", "LiverXAILib"]} == {"TRUE"}  # WITH_SUBDIR
    assert {line[2] for line in configured if line[:2] == ["FILE", "LiverXAI"]} == {"FALSE"}


def test_tests_are_registered_with_files_that_exist(configured):
    tests = [line for line in configured if line[0] == "TEST"]
    assert {Path(line[2]).name for line in tests} >= {"LiverXAI.py", "LiverXAIScriptTest.py"}
    for line in tests:
        assert Path(line[2]).is_file()


def test_project_json_and_s4ext_agree(configured):
    (name,) = [line[1] for line in configured if line[0] == "PROJECT"]
    meta = {line[1]: line[2] for line in configured if line[0] == "META"}
    entry = json.loads((ROOT / f"{name}.json").read_text(encoding="utf-8"))
    lines = (ROOT / f"{name}.s4ext").read_text(encoding="utf-8").splitlines()
    old = dict(line.partition(" ")[::2] for line in lines if line and not line.startswith("#"))
    assert meta["DEPENDS"] == old["depends"] == " ".join(entry["build_dependencies"]) == "PyTorch"
    assert entry["category"] == old["category"] == "Segmentation"
    assert entry["scm_url"] == old["scmurl"]
    assert entry["scm_url"].startswith(meta["HOMEPAGE"])
    for key, field in (("homepage", "HOMEPAGE"), ("contributors", "CONTRIBUTORS"), ("description", "DESCRIPTION")):
        assert old[key] == meta[field]
    assert old["iconurl"] == meta["ICONURL"]
    assert old["screenshoturls"] == meta["SCREENSHOTURLS"]
    assert "research use only" in meta["DESCRIPTION"]


def test_the_catalog_entry_has_the_fields_of_the_schema_and_no_others():
    text = (ROOT / "LiverXAI.json").read_bytes()
    assert b"\r" not in text
    entry = json.loads(text)
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    required = {"$schema", "category", "scm_url"}
    optional = {
        "build_dependencies",
        "build_subdirectory",
        "dicom_support_rule",
        "enabled",
        "scm_revision",
        "scm_type",
        "tier",
    }
    assert required <= set(entry) <= required | optional


def test_the_addresses_of_icon_and_screenshots_are_pictures_of_this_repository(configured):
    meta = {line[1]: line[2] for line in configured if line[0] == "META"}
    addresses = [meta["ICONURL"], *meta["SCREENSHOTURLS"].split()]
    for address in addresses:
        path = ROOT / re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/main/(.+)", address)[1]
        assert path.read_bytes().startswith(b"\x89PNG"), path


def test_the_icon_is_the_size_that_slicer_shows():
    header = (ROOT / "LiverXAI" / "Resources" / "Icons" / "LiverXAI.png").read_bytes()[16:24]
    assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (128, 128)


def test_the_license_is_where_the_index_looks_for_it():
    assert (ROOT / "LICENSE").is_file()
