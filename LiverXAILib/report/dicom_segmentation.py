# SPDX-License-Identifier: Apache-2.0
"""A segmentation as a DICOM Segmentation object (SEG) of the series that it was made from, for PACS and viewers."""

from __future__ import annotations

import importlib.util
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pydicom

from .._version import __version__
from ..errors import InputError, UsageError
from ..files import replacing
from ..inference.segmentation import Segmentation
from ..models.spec import LabelSpec
from ..volumes.volume import Volume

if TYPE_CHECKING:
    import highdicom

_SERIES_NUMBER = 300
#: What DICOM demands of each image, if need be empty; anonymized ones often lack some.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)


def require_dicom_extra() -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` if what DICOM objects need is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError("DICOM objects need highdicom: run 'pip install \"liverxai[dicom]\"', or leave out --dicom.")


def write_dicom_segmentation(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Write the labels that were found to `path` as a binary DICOM SEG; "liver" includes its tumors.

    The object belongs to the patient and the study of the CT, as DICOM demands, and names them.

    :param segmentation: of a DICOM series: its metadata has "files", one for each slice.
    :raises LiverXAILib.errors.UsageError: it is of something else, nothing was found, or the extra ``dicom`` is not
        installed.
    :raises LiverXAILib.errors.InputError: the series' headers lack what DICOM objects need.
    :raises OSError: the file cannot be written.
    """
    require_dicom_extra()
    headers = dicom_headers(segmentation.labels)
    found = [spec for spec in segmentation.specs if segmentation.mask(spec.name).any()]
    if not found:
        raise UsageError("Nothing was found, and a DICOM segmentation cannot be empty.")
    with warnings.catch_warnings():
        # About names of patients that are written in an unusual way.
        warnings.simplefilter("ignore")
        dataset = _dataset(segmentation, headers, found)
    with replacing(path) as temporary:
        dataset.save_as(temporary)


def _dataset(
    segmentation: Segmentation, headers: list[pydicom.Dataset], found: list[LabelSpec]
) -> highdicom.seg.Segmentation:
    import highdicom

    model = segmentation.provenance.get("model", {})
    return highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=np.stack([segmentation.mask(spec.name) for spec in found], axis=-1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(number, spec, str(model.get("name", "unknown")), str(model.get("version", "unknown")))
            for number, spec in enumerate(found, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="LiverXAI",
        manufacturer_model_name="LiverXAI",
        software_versions=__version__,
        device_serial_number="none",
        content_label="LIVER",
        content_description="For research use only",
        series_description="LiverXAI segmentation (research only)",
    )


def dicom_headers(volume: Volume) -> list[pydicom.Dataset]:
    """The headers of the slices of a CT, in their order, to which a DICOM object can refer.

    :raises LiverXAILib.errors.UsageError: it was not read from a DICOM series with one file for each slice.
    :raises LiverXAILib.errors.InputError: the headers lack what DICOM demands.
    """
    files = volume.metadata.get("files")
    if not files:
        raise UsageError(
            "A DICOM segmentation can only be made of an evenly spaced DICOM series with one file for each slice. "
            "Leave out --dicom."
        )
    headers = [_header(name, volume.spacing[2]) for name in files]
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise InputError("The slices share SOP Instance UIDs, so that no DICOM object can refer to them.")
    return headers


def _header(name: str, spacing_mm: float) -> pydicom.Dataset:
    header = pydicom.dcmread(name, stop_before_pixels=True, force=True)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not header.get(keyword):
            setattr(header, keyword, header.file_meta.get(f"MediaStorage{keyword}"))
    if not header.get("SliceThickness"):
        header.SliceThickness = round(spacing_mm, 4)
    if "FrameOfReferenceUID" not in header:
        raise InputError("The DICOM series lacks a frame of reference, so that no DICOM object can refer to it.")
    return header


def _description(number: int, spec: LabelSpec, model: str, version: str) -> highdicom.seg.SegmentDescription:
    import highdicom
    from highdicom.sr.coding import CodedConcept
    from pydicom.sr.codedict import codes

    def concept(code: tuple[str, str, str]) -> CodedConcept:
        scheme, value, meaning = code
        return CodedConcept(value, scheme, meaning)

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=spec.name,
        segmented_property_category=concept(spec.category),
        segmented_property_type=concept(spec.type),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"LiverXAI {model}", version=version, family=codes.DCM.ArtificialIntelligence
        ),
        anatomic_regions=[concept(spec.region)] if spec.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*spec.color),
    )
