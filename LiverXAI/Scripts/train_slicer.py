# SPDX-License-Identifier: Apache-2.0
"""Train inside Slicer, or with any Python: the same as ``liverxai train``, without a window.

::

    Slicer --no-splash --no-main-window --python-script .../train_slicer.py --config CONFIG.yaml
    python .../train_slicer.py --config CONFIG.yaml

Slicer always exits at the end, with the exit codes of ``liverxai train``: 0 done, 1 failed, 2 incorrect usage. A run
that was stopped continues when the same command is given again. Training on several GPUs needs plain Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

if importlib.util.find_spec("LiverXAILib") is None:
    # The library is one folder up in an installed extension, two folders up in a source checkout.
    folders = Path(__file__).resolve().parents
    sys.path.append(str(next(folder for folder in folders if (folder / "LiverXAILib").is_dir())))


def main(arguments: list[str]) -> int:
    """Train; returns the exit code."""
    from LiverXAILib.errors import LiverXAIError, UsageError
    from LiverXAILib.training import command

    # Slicer handles --help itself, and an abbreviated option might be one of Slicer's.
    parser = argparse.ArgumentParser(prog="train_slicer.py", add_help=False, allow_abbrev=False)
    command.add_arguments(parser)
    parser.add_argument("--usage", action="store_true", help="show this text")
    if not arguments or "--usage" in arguments:
        parser.print_help()
        return 0 if arguments else 2
    try:
        return command.run(parser.parse_args(arguments))
    except (LiverXAIError, OSError) as error:
        logging.error("train_slicer: %s", error)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    status = 1
    try:
        status = main(sys.argv[1:])
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else 1
    except BaseException:
        logging.exception("train_slicer stopped")
    finally:
        if "slicer" in sys.modules:
            # Without this Slicer would stay open, and a job in a queue would never end.
            sys.modules["slicer"].util.exit(status)
    sys.exit(status)
