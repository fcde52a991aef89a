# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration of the documentation site: the pages of this folder and an API reference from the docstrings.

``make docs`` builds it; every warning (a dead link, an unknown reference, a broken docstring) is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from LiverXAILib import __version__

project = "LiverXAI"
author = "LiverXAI contributors"
copyright = "LiverXAI contributors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Pages link to files of the repository (a script, the license), which are not pages of the site.
myst_url_schemes = {"http": None, "https": None}
exclude_patterns = ["generated", "study/*"]

apidoc_modules = [
    {
        "path": "../LiverXAILib",
        "destination": "reference/",
        "separate_modules": False,
        "module_first": True,
        "include_private": False,
    }
]
# Names that a package re-exports from its modules are documented only in the modules.
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True, "ignore-module-all": True}
# Methods without a docstring that override those of another library would repeat its docstring, with its links.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# These exist only in Slicer, or only on some machines.
autodoc_mock_imports = ["slicer", "vtk", "qt", "ctk", "nnunetv2", "ray", "openvino"]
# One class is named in several packages (``LiverXAILib.Volume`` and ``LiverXAILib.volumes.Volume``).
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"LiverXAI {release}"
html_static_path: list[str] = []
html_theme_options = {
    "announcement": "For research use only. Not a medical device; not for diagnosis or treatment.",
}


def write_help_texts(app: Any) -> None:
    """Write the help texts of the command line to docs/generated, from where docs/command-line.md includes them."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    shown = (Path(app.srcdir) / "command-line.md").read_text(encoding="utf-8")
    for command in ("", *re.findall(r"generated/help-(?!liverxai)([a-z]+)\.txt", shown)):
        words = [sys.executable, "-m", "LiverXAILib", *command.split(), "--help"]
        text = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (folder / f"help-{command or 'liverxai'}.txt").write_text(text, encoding="utf-8")


def skip_modules(app: Any, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Skip a module that is an attribute of its package, because it has its own section."""
    return True if isinstance(member, ModuleType) else None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_modules)
    app.connect("builder-inited", write_help_texts)
