# SPDX-License-Identifier: Apache-2.0
"""The card and the model folder of the default model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from LiverXAILib._version import __version__
from LiverXAILib.inference.outline_network import OUTLINES
from LiverXAILib.inference.outline_network import WEIGHTS as OUTLINE_WEIGHTS
from LiverXAILib.models.downloads import checksum
from LiverXAILib.models.formats.liverxai import save_model
from LiverXAILib.models.spec import LIVER, TUMOR, ModelSpec, OutlineAgain

from ..real_ct import COLLECTIONS, patient_of
from .phases import PHASES, STAGES, stage_of
from .sources import WEIGHTS

RECIPE = (
    "two 3-D U-Nets with batch norm, at 4 mm and at 2 mm around the liver, the latter trained on small boxes first, "
    "then with one more level on large ones, with HU relative to the median of the liver; each sample is one of these "
    "anatomies, deformed, with new intensities, with real, transplanted or synthetic tumors as they appear in its "
    "contrast phase, and with simulated acquisition; see docs/default-model.md"
)
LIMITS = (
    "For research use only.",
    "The tumor output is experimental: it misses most lesions under 10 mm, many of 10 to 20 mm and some larger ones "
    "that hardly differ from the liver, most of all in arterial scans, and sometimes marks vessels. No finding does "
    "not mean no tumor.",
    "Tumor labels of training are silver: outlined on the images, but not by a radiologist.",
    "Thin parts of the liver and veins inside it may be left out; heart and bowel next to it may be included: check "
    "the outlines.",
    "Any focal lesion, cysts included, is called tumor.",
    "Unusual anatomy (situs inversus, after resection or transplantation, children, massive ascites) was not seen in "
    "training.",
    "Outlines are computed on a 2 mm grid; those of findings of up to 48 mm are refined at 1 or 2 mm and tend to be "
    "too small for real lesions. Not for MR, and not for CT with a resolution worse than about 6 mm.",
)
#: File with the attribution, stored next to the weights.
ATTRIBUTION = "ATTRIBUTION.md"


def data_of(left_out: Sequence[str] = ()) -> list[str]:
    """The training data, one line for each collection."""
    lines = []
    for prefix, collection in COLLECTIONS.items():
        scans = [name for name in WEIGHTS if name.startswith(prefix) and patient_of(name) not in left_out]
        if scans:
            cite = f"{collection.license}, doi {collection.doi}"
            lines.append(f"{collection.title}, {cite}: {', '.join(scans)}")
    lines.append(
        "labels: livers by the OBELISK ensemble (MIT), corrected, or by TotalSegmentator; doubtful parts left out"
    )
    lines.append("real tumors: silver labels of hepatocellular carcinoma; other tumors are synthetic")
    return [*lines, "64 procedural phantoms, heads of ellipsoids and empty scanners"]


def attribution(left_out: Sequence[str] = ()) -> str:
    """The text of :data:`ATTRIBUTION`."""
    head = (
        "# Attribution\n\nThese weights (Apache-2.0) were trained on the following data, modified as described in the "
        "model card.\n\n"
    )
    return head + "".join(f"* {line}\n" for line in data_of(left_out))


def export(
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    folder: Path,
    runs: Mapping[str, Mapping[str, Any]],
    operating: Mapping[str, Mapping[str, float]],
    quality: Mapping[str, Any] | None = None,
    *,
    left_out: Sequence[str] = (),
) -> ModelSpec:
    """Write the model folder: half-precision weights, the card and the attribution, as they are bundled.

    :param weights: weights of each stage.
    :param runs: how each phase was trained.
    :param operating: the operating points of the stages that were trained.
    :param quality: measures of these weights; if empty, the card says "not measured".
    :param left_out: patients excluded from training.
    """
    spec = ModelSpec(
        name="default",
        version=__version__,
        title="LiverXAI default model",
        description=(
            "Liver and liver tumors in CT of the abdomen or trunk: the liver is located at 4 mm, then segmented with "
            "its tumors at 2 mm, one pass each; the outlines of small findings are refined at 1 or 2 mm."
        ),
        labels=(LIVER, TUMOR),
        stages=tuple(stage_of(name, PHASES[name], operating.get(name)) for name in STAGES),
        license="Apache-2.0",
        source="python -m recipes.default_model",
        training={"data": data_of(left_out), "recipe": RECIPE, "runs": runs},
        quality=quality or {"note": "not measured"},
        limits=LIMITS,
        outlines=OutlineAgain(TUMOR.name, checksum(OUTLINES / OUTLINE_WEIGHTS)),
    )
    saved = save_model(spec, {name: [dict(weights[name])] for name in STAGES}, folder)
    (folder / ATTRIBUTION).write_text(attribution(left_out), encoding="utf-8")
    return saved
