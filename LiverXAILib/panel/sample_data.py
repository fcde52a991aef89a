# SPDX-License-Identifier: Apache-2.0
"""Data to try the module with, offered by Slicer's module "Sample Data"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from ..mrml import segmentation_to_node, volume_to_node
from ..mrml.nodes import RESULT
from .installation import require_packages

_CHECKSUM = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"


def register_sample_data(icons: Path) -> None:
    """Offer a portal-venous CT from Slicer's own collection, and a synthetic patient.

    :param icons: folder with the thumbnails.
    """
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="LiverXAI",
        sampleName="CTLiver",
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{_CHECKSUM}",
        fileNames="CTLiver.nrrd",
        nodeNames="CTLiver",
        checksums=f"SHA256:{_CHECKSUM}",
        thumbnailFileName=str(icons / "LiverXAI.png"),
    )
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="LiverXAI",
        sampleName="LiverXAIPhantom",
        # Slicer's SampleDataSource requires these even when a function creates the data.
        uris="",
        fileNames="LiverXAIPhantom",
        nodeNames="LiverXAIPhantom",
        customDownloader=make_phantom,
        thumbnailFileName=str(icons / "LiverXAIPhantom.png"),
    )


def make_phantom(
    source: Any = None, seed: int = 1, spacing_mm: tuple[float, float, float] = (1.5, 1.5, 3.0)
) -> list[Any]:
    """Add a synthetic abdominal CT and the ground truth segmentation of its liver and tumors to the scene.

    :param source: passed by Slicer's module SampleData; not used.
    :param seed: each number gives another patient.
    :param spacing_mm: of the voxels (x, y, z).
    :return: the volume node and the segmentation node.
    :raises LiverXAILib.errors.LiverXAIError: torch is missing.
    """
    require_packages(("torch",))
    from .. import phantoms
    from ..inference import Segmentation
    from ..models import LIVER, TUMOR

    phantom = phantoms.make_phantom(seed, spacing_mm=spacing_mm)
    volume_node = volume_to_node(phantom.ct, slicer.mrmlScene, "LiverXAIPhantom")
    truth = Segmentation(phantom.truth, (LIVER, TUMOR), provenance={"source": "phantom", "seed": seed})
    segmentation_node = segmentation_to_node(truth, slicer.mrmlScene, volume_node)
    segmentation_node.SetName("LiverXAIPhantom truth")
    segmentation_node.SetAttribute(RESULT, None)  # the ground truth is not a result: an analysis must not replace it
    segmentation_node.GetDisplayNode().SetVisibility(False)
    return [volume_node, segmentation_node]
