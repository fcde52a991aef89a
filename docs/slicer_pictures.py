# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of Slicer in the documentation, the module's icon and the thumbnail of its sample data.

python docs/slicer_pictures.py                                      # docs/images/slicer-*.png and the icons
python docs/slicer_pictures.py --input ct.nrrd --output four-up.png # one picture of a CT of your own

The views are rendered off-screen by Slicer's own displayable managers (see Testing/slicerhost); this needs the extra
``test`` and a graphics driver with EGL.
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
from slicerhost.modules import load_module
from slicerhost.rendering import FourUp

from LiverXAILib import mrml
from LiverXAILib.colors import HEAT_COLORS
from LiverXAILib.panel.sample_data import make_phantom

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
        volumeNode, truthNode = make_phantom(seed=SEED)
    display = volumeNode.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(-160, 240)
    if not options.input:
        draw_icon(ICONS / "LiverXAI.png")
        save(ICONS / "LiverXAIPhantom.png", thumbnail(layout, volumeNode, truthNode))
        host.scene.RemoveNode(truthNode)
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


#: Seed of the synthetic patient in the pictures.
SEED = 7


def thumbnail(layout: FourUp, volumeNode: slicer.vtkMRMLScalarVolumeNode, truthNode: slicer.vtkMRMLSegmentationNode):
    """The largest true lesion, with outlines of lesion and liver, 260 × 280 pixels."""
    mrml.show_overlay(volumeNode.GetScene(), volumeNode, None, truthNode)
    view = layout.slices["Red"]
    view.fit()
    view.node.SetFieldOfView(380, 380, view.node.GetFieldOfView()[2])
    tumor = slicer.util.arrayFromSegmentBinaryLabelmap(truthNode, "tumor", volumeNode)
    k = int(tumor.sum(axis=(1, 2)).argmax())
    j, i = np.argwhere(tumor[k]).mean(axis=0)
    left, posterior, superior = mrml.volume_from_node(volumeNode).grid.to_lps(np.array([i, j, k]))
    view.jump_to((-left / 2, -posterior, superior))
    return view.picture()[116:396, 126:386]


def four_up(layout: FourUp, nodes: mrml.AnalysisNodes, target: str) -> np.ndarray:
    """The liver in the center; slices through the largest lesion, or for the liver through the heat map's maximum."""
    bounds = [0.0] * 6
    nodes.segmentation.GetRASBounds(bounds)
    low, high = np.array(bounds[::2]), np.array(bounds[1::2])
    table = nodes.table.GetTable()
    structures = [table.GetValueByName(row, "structure").ToString() for row in range(table.GetNumberOfRows())]
    point = mrml.hottest_point(nodes.heatmaps[target])
    if target != "liver" and "lesion" in structures:
        row = structures.index("lesion")
        names = ("centroid_l_mm", "centroid_p_mm", "centroid_s_mm")
        left, posterior, superior = (float(table.GetValueByName(row, name).ToString()) for name in names)
        point = (-left, -posterior, superior)
    return layout.show((low + high) / 2, point, float((high - low).max()) * 1.25)


#: The outline of a liver as seen from the front, counterclockwise; x to the patient's left, y up.
LIVER_OUTLINE = (
    (0.03, 0.42),
    (0.05, 0.20),
    (0.17, 0.08),
    (0.34, 0.17),
    (0.44, 0.30),
    (0.47, 0.42),
    (0.53, 0.36),
    (0.66, 0.46),
    (0.83, 0.56),
    (0.97, 0.70),
    (0.93, 0.82),
    (0.74, 0.83),
    (0.56, 0.80),
    (0.38, 0.93),
    (0.17, 0.88),
    (0.06, 0.68),
)


def draw_icon(path: Path) -> None:
    """Draw the icon, a liver with a hot spot: 128 × 128 pixels, with a transparent background."""
    figure = Figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    corners = np.array([*LIVER_OUTLINE, LIVER_OUTLINE[0]])
    steps = np.linspace(0, len(LIVER_OUTLINE), 800, endpoint=False)
    kernel = np.exp(-0.5 * (np.arange(-60, 61) / 22) ** 2)
    smooth = [
        np.convolve(
            np.pad(np.interp(steps, np.arange(len(corners)), part), 60, mode="wrap"), kernel / kernel.sum(), "valid"
        )
        for part in corners.T
    ]
    (outline,) = axes.fill(*smooth, facecolor="#dd8265", edgecolor="#7d3524", linewidth=3)
    u, v = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256))
    heat = np.exp(-((u - 0.3) ** 2 + (v - 0.56) ** 2) / 0.03)
    position = np.linspace(0, 1, len(HEAT_COLORS))
    colors = [np.interp(heat, position, [color[c] / 255 for color in HEAT_COLORS]) for c in range(3)]
    rgba = np.stack([*colors, np.clip(2.2 * heat - 0.2, 0, 1)], axis=-1)
    axes.imshow(rgba, extent=(0, 1, 0, 1), origin="lower", zorder=3).set_clip_path(outline)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    figure.savefig(path, transparent=True)
    print(path)


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, np.ascontiguousarray(picture))
    print(path)


if __name__ == "__main__":
    main()
