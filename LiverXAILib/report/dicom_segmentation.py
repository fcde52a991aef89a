# SPDX-License-Identifier: Apache-2.0
"""A segmentation as a DICOM Segmentation object (SEG) of the series that it was made from, for PACS and viewers."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset

from ..errors import UsageError
from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..models.spec import LabelSpec
from .dicom_objects import SERIES_NUMBERS, algorithm, code, made_by, save, tracking_of, without_references
from .dicom_source import DicomSource, read_source


def write_dicom_segmentation(
    segmentation: Segmentation, path: str | os.PathLike[str], *, lesions: bool = False
) -> list[str]:
    """Write the labels that were found to `path` as a binary DICOM SEG; "liver" includes its tumors.

    The object belongs to the patient and the study of the CT, as DICOM demands, and names them.

    :param segmentation: of a CT that was read from DICOM.
    :param lesions: one segment for each lesion instead of one for all, with tracking identifiers that the measurement
        report uses too.
    :return: sentences about what was repaired or left out of the series' headers.
    :raises LiverXAILib.errors.UsageError: it is of something else, nothing was found, or the extra ``dicom`` is not
        installed.
    :raises LiverXAILib.errors.InputError: the files of the series cannot be read.
    :raises OSError: the file cannot be written.
    """
    source = read_source(segmentation.labels)
    segments = [(spec, segmentation.mask(spec.name)) for spec in segmentation.specs]
    if lesions:
        segments = [one for spec, mask in segments for one in _lesions(segmentation, spec, mask)]
    segments = [(spec, mask) for spec, mask in segments if mask.any()]
    if not segments:
        raise UsageError("Nothing was found, and a DICOM segmentation cannot be empty.")
    return save(lambda: segmentation_dataset(segmentation, source, segments), source, path)


def _lesions(segmentation: Segmentation, spec: LabelSpec, mask: np.ndarray) -> list[tuple[LabelSpec, np.ndarray]]:
    if not spec.is_lesion:
        return [(spec, mask)]
    components = lesion_components(segmentation, spec.name)
    return [
        (replace(spec, name=f"{spec.name} {number}"), components == number)
        for number in range(1, int(components.max()) + 1)
    ]


def segmentation_dataset(
    segmentation: Segmentation, source: DicomSource, segments: list[tuple[LabelSpec, np.ndarray]]
) -> Dataset:
    """The SEG of `segments`, which are masks (bool (k, j, i)) on the grid of the series."""
    import highdicom

    dataset = highdicom.seg.Segmentation(
        source_images=source.headers,
        pixel_array=np.stack([mask for _, mask in segments], axis=-1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=spec.name,
                segmented_property_category=code(spec.category),
                segmented_property_type=code(spec.type),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm(segmentation),
                anatomic_regions=[code(spec.region)] if spec.region else None,
                display_color=highdicom.color.CIELabColor.from_rgb(*spec.color),
                **tracking_of(source, spec.name, mask),
            )
            for number, (spec, mask) in enumerate(segments, start=1)
        ],
        content_label="LIVER",
        content_description="For research use only",
        **made_by("segmentation", SERIES_NUMBERS["seg"]),
    )
    dataset.PositionReferenceIndicator = source.first.PositionReferenceIndicator
    return dataset if source.can_be_referenced else without_references(dataset)
