# SPDX-License-Identifier: Apache-2.0
"""Loading a scripted module's file as Slicer does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .host import Host

_TOP_LEVEL = Path(__file__).parent / "standins" / "toplevel"


def load_module(host: Host, path: str | Path) -> Any:
    """Load ``<Name>.py``, instantiate its class ``<Name>``, and return the Python module.

    Only the folder of the file is added to Python's path, as in Slicer.
    """
    path = Path(path)
    for folder in (str(path.parent), str(_TOP_LEVEL)):
        if folder not in sys.path:
            sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    parent = SimpleNamespace(name=path.stem, path=str(path), title="", categories=[], dependencies=[], contributors=[])
    instance = getattr(module, path.stem)(parent)
    setattr(host.modules, path.stem.lower(), parent)
    setattr(host.modules, f"{path.stem}Instance", instance)
    return module
