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
from ..labels.terminology import algorithm_type
from ..models.spec import LabelSpec
from .dicom_objects import SERIES_NUMBERS, algorithm, code, made_by, save, tracking_of, without_references
from .dicom_source import DicomSource, read_source

#: A label and where it is: bool (k, j, i) on the grid of the series.
Segment = tuple[LabelSpec, np.ndarray]


def write_dicom_segmentation(
    segmentation: Segmentation, path: str | os.PathLike[str], *, lesions: bool = False
) -> list[str]:
    """Write the labels that were found to `path` as a binary DICOM SEG; "liver" includes its tumors.

    As DICOM requires, the object belongs to the patient and the study of the CT and identifies them.

    :param segmentation: of a CT that was read from DICOM.
    :param lesions: one segment for each lesion instead of one for all, with tracking identifiers that the measurement
        report uses too.
    :return: sentences about what was repaired or left out of the series' headers.
    :raises LiverXAILib.errors.UsageError: the CT was not read from DICOM, nothing was found, or the extra ``dicom`` is
        not installed.
    :raises LiverXAILib.errors.InputError: the files of the series cannot be read.
    :raises OSError: the file cannot be written.
    """
    source = read_source(segmentation.labels)
    segments = lesion_segments(segmentation) if lesions else _found(segmentation)
    if not segments:
        raise UsageError("Nothing was found, and a DICOM segmentation must not be empty.")
    return save(lambda: segmentation_dataset(segmentation, source, segments), source, path)


def _found(segmentation: Segmentation) -> list[Segment]:
    segments = [(spec, segmentation.mask(spec.name)) for spec in segmentation.specs]
    return [(spec, mask) for spec, mask in segments if mask.any()]


def lesion_segments(segmentation: Segmentation) -> list[Segment]:
    """What was found, with one segment for each lesion, named "tumor 1" … by the lesion numbers."""
    segments: list[Segment] = []
    for spec, mask in _found(segmentation):
        if spec.is_lesion:
            components = lesion_components(segmentation, spec.name)
            numbers = range(1, int(components.max()) + 1)
            segments += [(replace(spec, name=f"{spec.name} {number}"), components == number) for number in numbers]
        else:
            segments.append((spec, mask))
    return segments


def segmentation_dataset(segmentation: Segmentation, source: DicomSource, segments: list[Segment]) -> Dataset:
    """The SEG of `segments`."""
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
                algorithm_type=algorithm_type(segmentation.provenance),
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
