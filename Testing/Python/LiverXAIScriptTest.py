# SPDX-License-Identifier: Apache-2.0
"""Analyze one CT in Slicer without a window; also a template for your own scripts.

Slicer --no-main-window --python-script LiverXAIScriptTest.py --input ct.nrrd --output folder

Exit codes: 0 done, 1 failed, 2 wrong usage. Slicer keeps running after a script that does not end it.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import slicer
import slicer.util


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False)  # Slicer takes --help for itself
    parser.add_argument("--input", required=True, help="a volume that Slicer can load, or 'phantom'")
    parser.add_argument("--output", type=Path, required=True, help="where the scene and the segmentation go")
    parser.add_argument("--model", default="default")
    options = parser.parse_args(arguments)

    from LiverXAI import LiverXAILogic
    from LiverXAILib.panel.sample_data import make_phantom

    if options.input == "phantom":
        volumeNode, _ = make_phantom(spacing_mm=(3.0, 3.0, 5.0))
    else:
        volumeNode = slicer.util.loadVolume(options.input, {})
    logic = LiverXAILogic()
    nodes = logic.analyze(volumeNode, model=options.model, device="cpu")
    if nodes.heatmaps:
        logic.showExplanation(list(nodes.heatmaps.values())[-1])
    options.output.mkdir(parents=True, exist_ok=True)
    saved = slicer.util.saveNode(nodes.segmentation, str(options.output / "segmentation.seg.nrrd"), {})
    saved = slicer.util.saveScene(str(options.output / "scene.mrb"), {}) and saved
    return 0 if saved else 1


try:
    status = main(sys.argv[1:])
except SystemExit as usage:
    status = usage.code if isinstance(usage.code, int) else 2
except Exception:
    traceback.print_exc()
    status = 1
slicer.util.exit(status)
