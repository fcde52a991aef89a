# SPDX-License-Identifier: Apache-2.0
"""Run a batch inside Slicer: the same as ``liverxai batch``, with Slicer's own Python.

::

    Slicer --no-splash --no-main-window --python-script .../batch_slicer.py --input IMAGES --output RESULTS

Slicer always exits at the end, with the exit codes of ``liverxai batch``: 0 all done (now or earlier), 1 some failed
or the batch had to stop, 2 incorrect usage. On Windows Slicer prints nothing: the messages are also in RESULTS/logs,
and errors in Slicer's own log.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

import slicer.util

if importlib.util.find_spec("LiverXAILib") is None:
    # The library is one folder up in an installed extension, two folders up in a source checkout.
    folders = Path(__file__).resolve().parents
    sys.path.append(str(next(folder for folder in folders if (folder / "LiverXAILib").is_dir())))


def main(arguments: list[str]) -> int:
    """Run a batch; returns the exit code."""
    from LiverXAILib.batch import command
    from LiverXAILib.errors import LiverXAIError, UsageError
    from LiverXAILib.subprocesses import slicer_python

    # Slicer handles --help itself, and an abbreviated option might be one of Slicer's.
    parser = argparse.ArgumentParser(prog="batch_slicer.py", add_help=False, allow_abbrev=False)
    command.add_arguments(parser)
    parser.add_argument("--usage", action="store_true", help="show this text")
    if not arguments or "--usage" in arguments:
        parser.print_help()
        return 0 if arguments else 2
    try:
        return command.run(parser.parse_args(arguments), python=slicer_python())
    except LiverXAIError as error:
        logging.error("batch_slicer: %s", error)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    status = 1
    try:
        status = main(sys.argv[1:])
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else 1
    except BaseException:
        logging.exception("batch_slicer stopped")
    finally:
        # Without this Slicer would stay open, and a job in a queue would never end.
        slicer.util.exit(status)
