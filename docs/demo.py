# SPDX-License-Identifier: Apache-2.0
"""``make demo``: the main workflow on a synthetic CT with the bundled model, compared with the ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from LiverXAILib.cli import main as liverxai

SEED = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output"))
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    image, result = folder / "phantom.nii.gz", folder / "analysis"
    steps = [
        ["phantom", "--output", str(image), "--seed", str(SEED)],
        ["analyze", str(image), "--output", str(result)],
        ["evaluate", str(result), "--reference", str(folder / "phantom-truth.nrrd")],
    ]
    for step in steps:
        print("$ liverxai " + " ".join(step), flush=True)
        if status := liverxai(step):
            return status
    print(f"\nOpen {result / 'report.html'} in a browser.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
