# SPDX-License-Identifier: Apache-2.0
"""Packages whose public names are imported when they are first used (PEP 562), and packages that can be called.

Slicer's main process, which shows results, thus never loads torch; it may not even be installed there yet.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for `package`; `homes` maps each public name to the module that defines it.

    A name defined in a module of the same name resolves to that module: see :func:`make_callable`.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{homes[name]}", package)
        value = module if homes[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get


class _CallablePackage(ModuleType):
    """A package that can be called like its function of the same name, so one name serves for both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self, self.__name__.rpartition(".")[2])
        return function


def make_callable(package: str) -> None:
    """Make `package` callable as its function of the same name: ``lx.explain(...)`` is ``lx.explain.explain(...)``.

    ``import LiverXAILib.explain as x`` still binds the package, as usual, and ``x(...)`` works too.
    """
    sys.modules[package].__class__ = _CallablePackage
