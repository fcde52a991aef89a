# SPDX-License-Identifier: Apache-2.0
"""PythonQt's calling conventions on top of PySide6, as the module ``qt`` of Slicer.

Properties are attributes without parentheses, ``object.connect("signal(type)", slot)`` passes as many arguments as the
slot takes, and attributes that do not exist are refused. Errors that PythonQt would only print (a slot that raised, a
signal that does not exist) are collected in :data:`problems`, which must stay empty in tests.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.pyside6_option_python_enum = 0x2  # enums are plain integers, as in PythonQt; read when PySide6 is imported

import shiboken6  # noqa: E402
from PySide6 import QtCore, QtGui, QtWidgets  # noqa: E402

#: Everything that PythonQt would have printed to the console.
problems: list[str] = []

_MODULES = (QtCore, QtGui, QtWidgets)
#: Properties that are not made attributes: one that is also a static function, and two that Qt calls back.
_SKIPPED = {"singleShot", "sizeHint", "minimumSizeHint"}
_connections: dict[tuple[int, str, Any], Callable[..., None]] = {}
_strict = True


def install() -> ModuleType:
    """Patch PySide6 (once), publish the module ``qt``, and return it."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    classes = {
        value
        for module in _MODULES
        for value in (getattr(module, name) for name in dir(module))
        if isinstance(value, type) and issubclass(value, QtCore.QObject)
    }
    # Start with the most derived classes, so that no base class is patched before its subclasses.
    for cls in sorted(classes, key=lambda cls: len(cls.__mro__), reverse=True):
        _make_attributes(cls)
        _make_strict(cls)
    QtCore.QTimer.singleShot = _SingleShot()
    QtCore.QObject.name = property(lambda self: self.objectName, lambda self, name: self.setObjectName(name))
    QtCore.QObject.className = lambda self: self.metaObject().className()
    QtCore.QObject.delete = lambda self: shiboken6.delete(self)
    for dialog in (QtWidgets.QDialog, QtWidgets.QMessageBox, QtWidgets.QFileDialog):
        dialog.exec = dialog.exec_ = _refuse_modal
    for name in ("getExistingDirectory", "getOpenFileName", "getSaveFileName"):
        setattr(QtWidgets.QFileDialog, name, staticmethod(_refuse_modal))
    qt = ModuleType("qt")
    for module in _MODULES:
        vars(qt).update({name: getattr(module, name) for name in dir(module) if not name.startswith("_")})
    sys.modules["qt"] = qt
    return qt


class _SingleShot:
    """``QTimer.singleShot(0, f)`` is a function; ``timer.singleShot`` tells whether it fires once."""

    function = QtCore.QTimer.singleShot

    def __get__(self, timer: Any, cls: type) -> Any:
        return self.function if timer is None else timer.isSingleShot()

    def __set__(self, timer: Any, value: bool) -> None:
        timer.setSingleShot(value)


def emit(sender: Any, signal: str, *arguments: Any) -> None:
    """Emit a signal that PySide6 cannot declare because it carries MRML nodes (see `mrml_signals`)."""
    for adapter in list(sender.__dict__.get("_receivers", {}).get(signal, [])):
        adapter(*arguments)


class relaxed:
    """A context in which unknown attributes may be set, as PySide6's own loader does."""

    def __enter__(self) -> None:
        global _strict
        _strict = False

    def __exit__(self, *error: object) -> None:
        global _strict
        _strict = True


def report(problem: str) -> None:
    """Record a problem, and print it."""
    problems.append(problem)
    print(problem, file=sys.stderr)


def _make_attributes(cls: type) -> None:
    """Turn each Qt property that the class itself declares into a Python property; keep setters, remove getters."""
    meta = cls.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        capital = name[0].upper() + name[1:]
        getter = next((f for f in (getattr(cls, n, None) for n in (name, f"is{capital}", f"has{capital}")) if f), None)
        setter = getattr(cls, f"set{capital}", None)
        if name in _SKIPPED or getter is None or isinstance(getter, property) or meta.property(index).isConstant():
            continue
        if inspect.isbuiltin(getter):  # a static function
            continue
        setattr(cls, name, property(functools.partial(_get, getter), setter and functools.partial(_set, setter)))


def _get(getter: Any, self: Any) -> Any:
    return getter(self)


def _set(setter: Any, self: Any, value: Any) -> None:
    try:
        setter(self, value)
    except TypeError:
        # PythonQt converts numbers to the property's type.
        kind = int if isinstance(value, float) else bool if isinstance(value, int) else str
        setter(self, kind(value))


def _make_strict(cls: type) -> None:
    get, put = cls.__getattribute__, QtCore.QObject.__setattr__  # Python lets no other base set attributes

    def __getattribute__(self: Any, name: str) -> Any:
        if name == "connect":
            return functools.partial(_connect, self, get)
        if name == "disconnect":
            return functools.partial(_disconnect, self, get)
        return get(self, name)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        own = not type(self).__module__.startswith("PySide6") and name.startswith("_")
        if _strict and not own and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        put(self, name, value)

    if "__getattribute__" in vars(cls):
        cls.__getattribute__ = __getattribute__
    if "__setattr__" in vars(cls) and cls is not QtCore.QObject:
        cls.__setattr__ = __setattr__


def _connect(self: Any, get: Any, signal: Any, slot: Any, *rest: Any) -> bool:
    if isinstance(signal, QtCore.QObject):  # PySide6's own use
        return get(self, "connect")(signal, slot, *rest)
    name = signal.replace(" ", "")
    if rest:
        report(f"connect({signal!r}) with {len(rest) + 2} arguments: give a signal and a callable")
        return False
    adapter = _adapter(slot, f"{type(self).__name__}.{name}")
    if name in getattr(type(self), "mrml_signals", ()):
        self.__dict__.setdefault("_receivers", {}).setdefault(name, []).append(adapter)
    elif self.metaObject().indexOfSignal(name) < 0:
        report(f"{type(self).__name__} has no signal {signal!r}")
        return False
    else:
        QtCore.QObject.connect(self, QtCore.SIGNAL(name), adapter)
    _connections[id(self), name, slot] = adapter
    return True


def _disconnect(self: Any, get: Any, signal: Any = None, slot: Any = None, *rest: Any) -> bool:
    if not isinstance(signal, str) or slot is None:
        return get(self, "disconnect")(*(x for x in (signal, slot, *rest) if x is not None))
    name = signal.replace(" ", "")
    adapter = _connections.pop((id(self), name, slot), None)
    if adapter is None:
        report(f"{type(self).__name__}.{name} is not connected to {slot}")
        return False
    if name in getattr(type(self), "mrml_signals", ()):
        self.__dict__["_receivers"][name].remove(adapter)
        return True
    return bool(QtCore.QObject.disconnect(self, QtCore.SIGNAL(name), adapter))


def _adapter(slot: Callable[..., Any], where: str) -> Callable[..., None]:
    """Call `slot` as PythonQt does: a plain function or method gets only as many arguments as it has parameters."""
    code = getattr(getattr(slot, "__func__", slot), "__code__", None)
    count = None
    if code is not None and not code.co_flags & inspect.CO_VARARGS:
        count = code.co_argcount - int(inspect.ismethod(slot))

    def call(*arguments: Any) -> None:
        try:
            slot(*arguments[:count])
        except Exception:
            report(f"the slot of {where} raised:\n{traceback.format_exc()}")

    return call


def _refuse_modal(*arguments: Any, **keywords: Any) -> None:
    raise RuntimeError("a modal dialog would wait for a person")
