# SPDX-License-Identifier: Apache-2.0
"""Rules that keep the module's code working in PythonQt, checked on its source and its .ui file."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

MODULE = Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py"
UI = MODULE.parent / "Resources" / "UI" / "LiverXAI.ui"
PANEL = MODULE.parents[1] / "LiverXAILib" / "panel"
SOURCES = {path: path.read_text(encoding="utf-8") for path in [MODULE, *sorted(PANEL.glob("*.py"))]}
SOURCE = "\n".join(SOURCES.values())
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}


def nodes():
    """All nodes of the module and the parts of its panel, with the place in the source."""
    return [
        (node, f"{path.name}, line {getattr(node, 'lineno', 0)}")
        for path, tree in TREES.items()
        for node in ast.walk(tree)
    ]


def calls():
    return [(node, place) for node, place in nodes() if isinstance(node, ast.Call)]


def test_every_widget_that_the_module_uses_is_in_the_ui_file():
    names = {element.get("name") for element in ElementTree.parse(UI).iter("widget")}
    used = set(re.findall(r"\b_?ui\.(\w+)", SOURCE))
    assert used <= names, used - names
    buttons = {name for name in names if name.endswith(("Button", "Selector", "CheckBox", "Slider", "Table"))}
    assert buttons <= used | {"advancedButton"}, "a control that does nothing"


def test_every_widget_that_can_be_focused_has_a_tool_tip_and_a_place_in_the_tab_order():
    root = ElementTree.parse(UI).getroot()
    stops = [element.text for element in root.iter("tabstop")]
    passive = {"QLabel", "QProgressBar", "qMRMLWidget"}
    names = [element.get("name") for element in root.iter("widget") if element.get("class") not in passive]
    assert stops == names or set(stops) == set(names)
    for element in root.iter("widget"):
        if element.get("class") in passive | {"ctkCollapsibleButton", "qMRMLSegmentsTableView"}:
            continue
        assert element.find("property[@name='toolTip']") is not None, f"{element.get('name')} has no tool tip"


def test_slots_are_plain_methods():
    for call, place in calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "connect":
            slot = call.args[-1]
            assert isinstance(slot, (ast.Attribute, ast.Name)), f"{place}: {ast.unparse(slot)}"
            assert len(call.args) == 2


def test_nothing_is_used_that_differs_between_pythonqt_and_pyside():
    forbidden = (
        "QThread",
        "findChild",
        ".emit(",
        "getOpenFileName",
        "getSaveFileName",
        "getText(",
        ".exec(",
        "partial",
    )
    for word in forbidden:
        assert word not in SOURCE, word
    for call, place in calls():
        function = ast.unparse(call.func)
        if re.match(r"(self\._?)?qt\.", function):
            assert not call.keywords, f"{place}: keywords in {function}"
    for node, _ in nodes():
        if isinstance(node, ast.ClassDef):
            assert not any(ast.unparse(base).startswith(("qt.", "ctk.")) for base in node.bases)


def test_strings_that_the_user_reads_are_translated():
    """Every sentence of the panel is passed to _(), except for names of nodes and contents of bug reports."""
    translated = set()
    for call, _ in calls():
        name = ast.unparse(call.func)
        if name in ("_", "translate") or name.startswith("logging."):
            translated |= set(ast.walk(call))
    for node, _ in nodes():
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):  # docstring
            translated |= set(ast.walk(body[0]))
        if isinstance(node, ast.FunctionDef) and node.name in ("onCopyDetails", "copy_details"):
            translated |= set(ast.walk(node))
        if isinstance(node, ast.ClassDef) and node.name == "LiverXAITest":
            translated |= set(ast.walk(node))
        if isinstance(node, ast.Dict):
            translated |= set(node.keys)
    bare = [
        f"{place}: {node.value!r}"
        for node, place in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in translated
        if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", node.value)
    ]
    names = {"LiverXAI contributors", "LiverXAIPhantom truth"}
    assert [text for text in bare if text.split(": ", 1)[1].strip("'") not in names] == []


def test_loading_the_module_and_its_panel_imports_neither_qt_nor_torch():
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                text = ast.unparse(node)
                assert not re.search(r"\b(qt|ctk|torch|SimpleITK)\b", text), text


def test_the_module_holds_only_what_slicer_looks_for_in_it():
    classes = {node.name for node in TREES[MODULE].body if isinstance(node, ast.ClassDef)}
    roles = ("LiverXAI", "LiverXAIWidget", "LiverXAILogic", "LiverXAITest", "LiverXAIParameters")
    assert classes == set(roles)
    for path, source in SOURCES.items():
        if path != MODULE:
            assert len(source.splitlines()) <= 350, path.name


def test_a_function_of_the_library_is_not_hidden_by_a_module_of_its_name():
    """A module that is imported becomes an attribute of its package, in place of a name that is not there yet."""
    library = MODULE.parents[1] / "LiverXAILib"
    for init in library.glob("*/__init__.py"):
        tree = ast.parse(init.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        lazy = [call for call in calls if ast.unparse(call.func) == "lazy_names"]
        keys = [key for call in lazy for node in call.args for key in getattr(node, "keys", ())]
        names = {key.value for key in keys if key is not None}  # None: a mapping is unpacked there
        modules = {path.stem for path in init.parent.glob("*.py")}
        assert not names & modules, f"{init.parent.name}: {names & modules}"


def test_slicers_interpreter_is_looked_for_in_one_place(monkeypatch):
    from LiverXAILib.subprocesses import slicer_python

    there = {"python-real": "/slicer/bin/python-real", "PythonSlicer": "/slicer/bin/PythonSlicer"}
    monkeypatch.setattr("shutil.which", there.get)
    assert slicer_python() == "/slicer/bin/python-real"
    there.pop("python-real")
    assert slicer_python() == "/slicer/bin/PythonSlicer"
    there.clear()
    assert slicer_python() == sys.executable
    library = MODULE.parents[1] / "LiverXAILib"
    sources = [*library.rglob("*.py"), *MODULE.parent.rglob("*.py")]
    naming = [path.name for path in sources if "PythonSlicer" in path.read_text(encoding="utf-8")]
    assert naming == ["subprocesses.py"]
