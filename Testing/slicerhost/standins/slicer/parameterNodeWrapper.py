# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``slicer.parameterNodeWrapper``: numbers, text and nodes, stored in a parameter node as in Slicer.

It refuses every type and argument that it does not support.
"""

from __future__ import annotations

import typing
from typing import Any

import slicer

_PLAIN = {bool, int, float, str}


def parameterNodeWrapper(cls: type) -> type:
    """Make each annotated attribute of `cls` a property over a parameter node; the constructor takes that node."""
    defaults = {}
    for name, kind in typing.get_type_hints(cls).items():
        if kind in _PLAIN:
            defaults[name] = getattr(cls, name, kind())
        if kind in _PLAIN:
            setattr(cls, name, _plain(name, kind))
        elif isinstance(kind, type) and kind.__name__.startswith("vtkMRML"):
            setattr(cls, name, _node(name, kind))
        else:
            raise NotImplementedError(f"the test host keeps no parameters of type {kind}")

    def __init__(self: Any, parameterNode: Any) -> None:
        if not isinstance(parameterNode, slicer.vtkMRMLScriptedModuleNode):
            raise TypeError("a parameter node is needed")
        object.__setattr__(self, "parameterNode", parameterNode)
        for name, default in defaults.items():  # Slicer writes them immediately, too
            if not _has(parameterNode, name):
                parameterNode.SetParameter(name, str(default))

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"there is no parameter {name!r}")
        object.__setattr__(self, name, value)

    def AddObserver(self: Any, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self: Any, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def StartModify(self: Any) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self: Any, wasModified: int) -> int:
        return self.parameterNode.EndModify(wasModified)

    for function in (__init__, __setattr__, AddObserver, RemoveObserver, StartModify, EndModify):
        setattr(cls, function.__name__, function)
    return cls


def _has(parameterNode: Any, name: str) -> bool:
    return name in parameterNode.GetParameterNames()


def _plain(name: str, kind: type) -> property:
    def get(self: Any) -> Any:
        text = self.parameterNode.GetParameter(name)
        return text == "True" if kind is bool else kind(text)

    def put(self: Any, value: Any) -> None:
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise TypeError(f"parameter {name!r} is {kind.__name__}, not {type(value).__name__}")
        self.parameterNode.SetParameter(name, str(kind(value)))

    return property(get, put)


def _node(name: str, kind: type) -> property:
    def get(self: Any) -> Any:
        return self.parameterNode.GetNodeReference(name)

    def put(self: Any, value: Any) -> None:
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"parameter {name!r} is {kind.__name__}, not {type(value).__name__}")
        self.parameterNode.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    return property(get, put)
