# SPDX-License-Identifier: Apache-2.0
"""Running a script as ``Slicer --python-script`` does, with its argument rules and exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

#: Exit code of a script that does not end Slicer, where the window, or a job in a queue, would stay forever.
STILL_RUNNING = 99

_FLAGS = ("--no-splash", "--no-main-window", "--testing", "--exit-after-startup", "--ignore-slicerrc")
_VALUES = ("--python-script", "--python-code", "--additional-module-path")


def main(arguments: Sequence[str]) -> int:
    """Start the host, load modules, run the script, and return the exit code that Slicer would have.

    Slicer takes its own options anywhere, even after the script; everything after ``--`` belongs to the script.
    """
    flags, values, rest = _parse(arguments)
    from . import modules
    from .host import start

    host = start()
    host.app.testing = "--testing" in flags
    host.app.exit_status = None
    for folder in values["--additional-module-path"]:
        for path in sorted(Path(folder).glob("*.py")):
            modules.load_module(host, path.resolve())
    host.app.finish_startup()
    failed = False
    for script in values["--python-script"]:
        failed = not _run(Path(script).read_text(encoding="utf-8"), script, rest)
    for code in values["--python-code"]:
        failed = not _run(code, "<string>", rest)
    if host.app.exit_status is not None:
        return host.app.exit_status
    if flags & {"--testing", "--exit-after-startup"}:
        return int(failed)
    print("slicerhost: the script did not end Slicer, which keeps running; call slicer.util.exit()", file=sys.stderr)
    return STILL_RUNNING


def _parse(arguments: Sequence[str]) -> tuple[set[str], dict[str, list[str]], list[str]]:
    flags: set[str] = set()
    values: dict[str, list[str]] = {name: [] for name in _VALUES}
    rest: list[str] = []
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if word == "--":
            return flags, values, rest + pending
        if word in _FLAGS:
            flags.add(word)
        elif word in _VALUES:
            values[word].append(pending.pop(0))
        elif word in ("--help", "-h", "--version", "--home", "-c"):
            raise SystemExit(f"slicerhost: Slicer would take {word} for itself")
        else:
            rest.append(word)
    return flags, values, rest


def _run(source: str, name: str, arguments: Sequence[str]) -> bool:
    """Execute in ``__main__``; False after an exception. ``sys.exit(n)`` asks the application to end with n."""
    import slicer
    import vtk

    namespace = ModuleType("__main__")
    vars(namespace).update(slicer=slicer, vtk=vtk, __file__=name)
    previous = sys.modules["__main__"], sys.argv
    sys.modules["__main__"], sys.argv = namespace, [name, *arguments]
    folder = str(Path(name).resolve().parent)
    sys.path.insert(0, folder)
    try:
        exec(compile(source, name, "exec"), vars(namespace))
    except SystemExit as request:
        code = request.code
        slicer.app.exit(code if isinstance(code, int) else int(code is not None))
    except Exception:
        traceback.print_exc()
        return False
    finally:
        sys.path.remove(folder)
        sys.modules["__main__"], sys.argv = previous
    return True
