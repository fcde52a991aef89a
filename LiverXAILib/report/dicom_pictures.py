# SPDX-License-Identifier: Apache-2.0
"""Key images as DICOM Secondary Capture: lesions with outline and calipers, for viewers without SEG or SR support."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from ..analysis import Analysis
from ..explain.answers import Counterfactual
from .dicom_objects import SERIES_NUMBERS, made_by, save
from .dicom_source import DicomSource, read_source


def write_key_images(analysis: Analysis, folder: Path) -> list[Path]:
    """Write a picture of each lesion to ``key-image-<number>.dcm`` in `folder`; number 0 shows the liver.

    They are followed by a picture for each lesion of the changed CTs on which the model was run, with its predictions.

    :raises LiverXAILib.errors.UsageError: the CT was not read from DICOM, or an extra (``dicom``, ``report``) is not
        installed.
    :raises LiverXAILib.errors.InputError: the files of the series cannot be read.
    :raises OSError: a file cannot be written.
    """
    from . import pictures
    from .canvas import side_by_side

    source = read_source(analysis.volume)
    shown = {f"lesion {lesion.number}": lesion for lesion in analysis.measurements.lesions}
    series = generate_uid()
    paths = []
    overview = pictures.render_planes(analysis)["axial"]
    found = "Picture of the CT with what LiverXAI found ({}). For research use only."
    rendered = [(found.format("liver"), overview.pixels())]
    rendered += [
        (found.format(name), side_by_side(pictures.render_lesion(analysis, one))) for name, one in shown.items()
    ]
    for answer in analysis.answers:
        if isinstance(answer, Counterfactual):
            text = f"CHANGED CTs on which the model was run. {answer.sentence} For research use only."
            rendered.append((text, _changed_cts(analysis, answer)))
    for number, (text, pixels) in enumerate(rendered):
        path = folder / f"key-image-{number}.dcm"
        save(lambda n=number, t=text, p=pixels: _capture(p, source, series, n + 1, t), source, path)  # type: ignore[misc]
        paths.append(path)
    return paths


def _changed_cts(analysis: Analysis, answer: Counterfactual) -> np.ndarray:
    """The CT and its changed versions, side by side, with captions: uint8 (rows, columns, 3)."""
    from .answer_pictures import answer_pictures
    from .canvas import Picture, Text, side_by_side

    shown = []
    for caption, picture in answer_pictures(analysis, answer):
        assert isinstance(picture, Picture)
        picture.texts.append(Text(caption, (8.0, 8.0), "lt", 14.0))
        shown.append(picture)
    return side_by_side(shown)


def _capture(pixels: np.ndarray, source: DicomSource, series: str, number: int, text: str) -> Dataset:
    import highdicom

    first = source.first
    dataset = highdicom.sc.SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        # All are axial and seen from the feet: right is the patient's left, down is posterior.
        patient_orientation=("L", "P"),
        study_instance_uid=first.StudyInstanceUID,
        patient_id=first.PatientID,
        patient_name=first.PatientName,
        patient_birth_date=first.PatientBirthDate or None,
        patient_sex=first.PatientSex,
        accession_number=first.AccessionNumber,
        study_id=first.StudyID,
        study_date=first.StudyDate or None,
        study_time=first.StudyTime or None,
        referring_physician_name=first.ReferringPhysicianName,
        specific_character_set=first.SpecificCharacterSet,
        **{**made_by("key images", SERIES_NUMBERS["sc"], number), "series_instance_uid": series},
    )
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BodyPartExamined = "LIVER"
    dataset.BurnedInAnnotation = "NO"
    dataset.DerivationDescription = text[:1024]  # the maximum length of an ST
    return dataset
