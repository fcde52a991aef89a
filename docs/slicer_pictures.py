# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of Slicer in the documentation, the module's icon and the thumbnail of its sample data.

python docs/slicer_pictures.py                                      # docs/images/slicer-*.png and the icons
python docs/slicer_pictures.py --input ct.nrrd --output four-up.png # one picture of a CT of your own

The views are Slicer's own displayable managers, off-screen (see Testing/slicerhost); needs the extras ``test`` and a
graphics driver with EGL.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Testing"))

import slicer
import slicer.util
import slicerhost
from LiverXAILib import mrml
from LiverXAILib.mrml.heatmaps import HEAT_COLORS
from slicerhost.modules import load_module
from slicerhost.rendering import FourUp

ICONS = ROOT / "LiverXAI" / "Resources" / "Icons"
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a CT that Slicer can load; default: the phantom")
    parser.add_argument("--output", type=Path, help="a PNG file; default: the pictures of the documentation")
    parser.add_argument("--target", default="tumor", help="what to explain (default: tumor)")
    parser.add_argument("--model", default="default")
    options = parser.parse_args()

    host = slicerhost.start()
    layout = FourUp(host)
    module = load_module(host, ROOT / "LiverXAI" / "LiverXAI.py")
    logic = module.LiverXAILogic()
    if options.input:
        volumeNode = slicer.util.loadVolume(str(options.input), {})
    else:
        volumeNode, truthNode = module.makePhantom(seed=SEED)
        host.scene.RemoveNode(truthNode)
    display = volumeNode.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(-160, 240)
    nodes = logic.analyze(volumeNode, ["liver", "tumor"], model=options.model)
    mrml.show_surfaces(nodes.segmentation)
    logic.showExplanation(nodes.heatmaps[options.target], jump=False)
    picture = four_up(layout, nodes, options.target)
    if options.output:
        save(options.output, picture)
        return
    save(IMAGES / "slicer-four-up.png", picture)
    logic.showExplanation(nodes.heatmaps["liver"], jump=False)
    save(IMAGES / "slicer-why-liver.png", four_up(layout, nodes, "liver"))
    mrml.show_overlay(host.scene, volumeNode, None, nodes.segmentation)
    outlines = layout.slices["Red"].picture()
    save(ICONS / "LiverXAIPhantom.png", outlines[106:406, 116:396])
    draw_icon(ICONS / "LiverXAI.png")


#: The synthetic patient of the pictures.
SEED = 4


def four_up(layout: FourUp, nodes: mrml.AnalysisNodes, target: str) -> np.ndarray:
    """The liver in the middle, slices through the most influential place."""
    bounds = [0.0] * 6
    nodes.segmentation.GetRASBounds(bounds)
    low, high = np.array(bounds[::2]), np.array(bounds[1::2])
    return layout.show((low + high) / 2, mrml.hottest_point(nodes.heatmaps[target]), float((high - low).max()) * 1.25)


def draw_icon(path: Path) -> None:
    """A liver with a warm place in it: 128 × 128 pixels, transparent around."""
    figure = Figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    angle = np.linspace(0, 2 * np.pi, 400)
    # A big right lobe (on the left of the picture) that tapers to the left one.
    x = 0.5 + 0.45 * np.cos(angle)
    height = 0.34 - 0.2 * np.clip(np.cos(angle), -0.6, 1)
    y = 0.52 + height * np.sin(angle) + 0.1 * np.cos(angle)
    outline = axes.fill(x, y, facecolor="#dd8265", edgecolor="#8c3f2b", linewidth=3)[0]
    u, v = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256))
    heat = np.exp(-((u - 0.34) ** 2 + (v - 0.5) ** 2) / 0.028)
    colors = np.array(HEAT_COLORS) / 255
    position = np.linspace(0, 1, len(colors))
    rgba = np.stack([np.interp(heat, position, colors[:, c]) for c in range(3)] + [np.clip(2.2 * heat - 0.2, 0, 1)], -1)
    image = axes.imshow(rgba, extent=(0, 1, 0, 1), origin="lower", zorder=3)
    image.set_clip_path(outline)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True)


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, np.ascontiguousarray(picture))
    print(path)


if __name__ == "__main__":
    main()
