# SPDX-License-Identifier: Apache-2.0
"""Measure the outlines from clicks on lesions painted into real scans that the network was never trained on.

``python -m recipes.outlines.measure --data FOLDER``. The methods, clicks and table are those of ``liverxai benchmark
clicks``, but the images are real: with the scan's own noise, vessels and neighboring organs, and with a lesion whose
border is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from LiverXAILib.benchmarks.clicks import Row, click_rows, gain, table
from LiverXAILib.context import RunContext
from LiverXAILib.training.random_fields import Rng

from .samples import HELD_OUT_SCANS, painted, real_scans

#: First seed of the lesions, which nothing else uses.
_FIRST_SEED = 5_000_000
#: Diameters of the lesions in mm.
_DIAMETERS_MM = (5.0, 60.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.outlines.measure", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct/")
    parser.add_argument("--lesions", type=int, default=60)
    options = parser.parse_args(arguments)
    RunContext(threads=1).limit_threads()
    rows = measure(options.data, options.lesions)
    sys.stdout.write(f"{table(rows)}\n\nA corrective click changes the mean Dice by {gain(rows):+.3f}.\n")


def measure(data: Path, lesions: int) -> list[Row]:
    """Measure one row for each click and method; see :func:`LiverXAILib.benchmarks.clicks.click_rows`."""
    scans = real_scans(data, HELD_OUT_SCANS)
    rows: list[Row] = []
    for number in range(lesions):
        scan, rng = scans[number % len(scans)], Rng(_FIRST_SEED + number)
        free = np.argwhere(scan.liver & (scan.lesions == 0))
        place = scan.ct.grid.to_lps(free[rng.integer(len(free))][::-1])
        diameter = rng.log_uniform(*_DIAMETERS_MM)
        array, lesion, box = painted(scan, rng, place, diameter, max(1.0, diameter / 16))
        if np.count_nonzero(lesion) > 1:
            rows += click_rows(scan.ct.cropped(box).with_array(array), scan.liver[box], lesion, number)
            sys.stderr.write(f"{number + 1} of {lesions}\n")
    return rows


if __name__ == "__main__":
    main()
