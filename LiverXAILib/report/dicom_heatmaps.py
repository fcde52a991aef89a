# SPDX-License-Identifier: Apache-2.0
"""A heat map as a DICOM Parametric Map of the series that it explains."""

from __future__ import annotations

import os

import numpy as np
from pydicom.dataset import Dataset

from ..explain.explanation import Explanation
from ..volumes.volume import Volume
from .dicom_objects import SERIES_NUMBERS, made_by, save, without_references
from .dicom_source import DicomSource, read_source


def write_dicom_heatmap(
    explanation: Explanation, volume: Volume, path: str | os.PathLike[str], number: int = 1
) -> list[str]:
    """Write a heat map to `path`: float32 on the pixels of all slices from the first nonzero to the last nonzero one.

    :param volume: the CT that is explained, read from DICOM.
    :param number: of the instance in its series.
    :return: sentences about what was repaired or left out of the series' headers.
    :raises LiverXAILib.errors.UsageError: the CT was not read from DICOM, or the extra ``dicom`` is not installed.
    :raises LiverXAILib.errors.InputError: the files of the series cannot be read.
    :raises OSError: the file cannot be written.
    """
    source = read_source(volume)
    return save(lambda: _parametric_map(explanation, source, number), source, path)


def _parametric_map(explanation: Explanation, source: DicomSource, number: int) -> Dataset:
    import highdicom
    from pydicom.sr.codedict import codes

    array = explanation.heatmap.array
    shown = np.flatnonzero(array.any(axis=(1, 2)))
    slices = slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(None)
    question = explanation.target.describe()
    dataset = highdicom.pm.ParametricMap(
        source_images=source.headers[slices],
        pixel_array=np.ascontiguousarray(array[slices], dtype=np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            highdicom.pm.RealWorldValueMapping(
                lut_label="HEATMAP",
                lut_explanation=f"influence on the model's prediction: {question}"[:64],
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, 1.0),
                slope=1.0,
                intercept=0.0,
            )
        ],
        window_center=0.5,
        window_width=1.0,
        content_label="HEATMAP",
        content_description=f"{explanation.method}: {question}"[:64],
        **made_by("heat maps", SERIES_NUMBERS["pm"], number),
    )
    dataset.BodyPartExamined = "LIVER"
    dataset.PositionReferenceIndicator = source.first.PositionReferenceIndicator
    dataset.SpecificCharacterSet = source.first.SpecificCharacterSet
    return dataset if source.can_be_referenced else without_references(dataset)
