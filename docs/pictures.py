# SPDX-License-Identifier: Apache-2.0
"""Draw the picture of a counterfactual for the README: ``python docs/pictures.py``.

Writes docs/images/counterfactual.png: the largest lesion of a synthetic CT, unchanged and in the changed CTs for the
bundled model, each with the model's confidence.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

import LiverXAILib as lx
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.report.answer_pictures import answer_pictures

OUTPUT = Path(__file__).parent / "images" / "counterfactual.png"


def main() -> None:
    phantom = make_phantom(11)
    analysis = lx.analyze(phantom.ct, lx.load_model("default"), targets=["lesion:1"], device="cpu")
    pictures = list(answer_pictures(analysis, analysis.answers[0]))
    figure = Figure(figsize=(2.4 * len(pictures), 2.7), dpi=150, facecolor="white")
    for number, (caption, picture) in enumerate(pictures):
        axes = figure.add_axes((number / len(pictures), 0, 0.99 / len(pictures), 0.89))
        axes.imshow(picture.pixels())
        axes.set_axis_off()
        axes.set_title(caption, fontsize=10)
    figure.savefig(OUTPUT, metadata={"Software": None})


if __name__ == "__main__":
    main()
