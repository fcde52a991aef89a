# SPDX-License-Identifier: Apache-2.0
"""The catalog of methods: what the panel, the command line, reports and the docs say about each.

Needs no torch, so Slicer's main process can read it. The implementation of each method is found under the same name
in :data:`LiverXAILib.explain.methods.METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError

#: The method that performs best in the faithfulness checks: see docs/explanations.md.
DEFAULT_METHOD = "hires-cam"


@dataclass(frozen=True)
class MethodInfo:
    """What users read about a method.

    :param name: as users write it.
    :param title: as reports print it.
    :param description: one line in plain language.
    :param hint: one or two sentences for a panel: what the map shows, and what it costs.
    :param kind: "layer": the method reads a layer of the network; "image": it changes the image, needs no layer and
        takes many passes of the network.
    :param place_specific: whether the map is specific to the place that was asked about.
    """

    name: str
    title: str
    description: str
    hint: str
    kind: Literal["layer", "image"] = "layer"
    place_specific: Literal["yes", "partly", "no"] = "yes"


CATALOG: dict[str, MethodInfo] = {
    method.name: method
    for method in (
        MethodInfo(
            "seg-grad-cam",
            "Seg-Grad-CAM",
            "features that matter for the prediction, anywhere near the target (smooth, not place-specific)",
            "Features near the target that matter to the model. Smooth and fast; not exact in place.",
            place_specific="no",
        ),
        MethodInfo(
            "seg-grad-cam++",
            "Seg-Grad-CAM++",
            "like Seg-Grad-CAM, but counting only what increases the score",
            "Like Seg-Grad-CAM, but counting only what increases the score.",
            place_specific="no",
        ),
        MethodInfo(
            "hires-cam",
            "HiResCAM",
            "what each place contributed to the prediction (grainier)",
            "What each place contributed to the prediction; grainy.",
        ),
        MethodInfo(
            "seg-xres-cam",
            "Seg-XRes-CAM",
            "between Seg-Grad-CAM and HiResCAM: contributions averaged over small blocks",
            "Between Seg-Grad-CAM and HiResCAM: contributions averaged over small blocks.",
            place_specific="partly",
        ),
        MethodInfo(
            "layer-cam",
            "LayerCAM",
            "places where more of a feature would have strengthened the prediction",
            "Places where more of a feature would have strengthened the prediction.",
        ),
        MethodInfo(
            "integrated-gradients",
            "Integrated gradients (from liver density)",
            "voxels whose difference from plain liver tissue led to the prediction (slow)",
            "Voxels whose difference from plain liver led to the prediction. Slow; needs no layer.",
            kind="image",
        ),
        MethodInfo(
            "integrated-gradients-air",
            "Integrated gradients (from air)",
            "voxels whose difference from air led to the prediction (slow)",
            "Voxels whose difference from air led to the prediction. Slow; needs no layer.",
            kind="image",
        ),
        MethodInfo(
            "occlusion",
            "Occlusion",
            "how much the score drops when a place is replaced by plain tissue (model-agnostic, slow)",
            "Drop of the score when a place becomes plain tissue. Slow; needs no layer.",
            kind="image",
        ),
    )
}


def require_method(name: str) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless there is a method of this name."""
    if name not in CATALOG:
        raise UsageError(f"There is no explanation method {name!r}. Choose one of: {', '.join(CATALOG)}.")
