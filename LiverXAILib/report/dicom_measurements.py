# SPDX-License-Identifier: Apache-2.0
"""Measurements as a DICOM structured report: TID 1500, with the SEG of the lesions that it refers to.

Template and codes: DICOM PS3.16, TID 1500 "Measurement Report" and TID 1411 "Volumetric ROI Measurements".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from ..analysis import Analysis
from ..errors import UsageError
from ..labels.terminology import Code
from ..measure.measurements import LesionMeasurements, Measurements
from .dicom_objects import SERIES_NUMBERS, algorithm, code, made_by, save
from .dicom_segmentation import lesion_segments, segmentation_dataset
from .dicom_source import DicomSource, read_source

if TYPE_CHECKING:
    from highdicom.sr import CoordinatesForMeasurement, CoordinatesForMeasurement3D, Measurement

_VOLUME: Code = ("SCT", "118565006", "Volume")
_LONG_AXIS: Code = ("SCT", "103339001", "Long axis")
_SHORT_AXIS: Code = ("SCT", "103340004", "Short axis")
_DIAMETER: Code = ("SCT", "81827009", "Diameter")
_ATTENUATION: Code = ("DCM", "112031", "Attenuation Coefficient")
_MAXIMUM: Code = ("SCT", "56851009", "Maximum")
_MEAN: Code = ("SCT", "373098007", "Mean")
_DEVIATION: Code = ("SCT", "386136009", "Standard Deviation")
_MILLIMETER: Code = ("UCUM", "mm", "millimeter")
_MILLILITER: Code = ("UCUM", "ml", "milliliter")
_HOUNSFIELD: Code = ("UCUM", "[hnsf'U]", "Hounsfield unit")
#: By how many slices the ends of a line may differ that is drawn in one of them.
_IN_SLICE = 0.01
#: Significant digits of a value in a report.
_DIGITS = 6


def write_measurement_report(
    analysis: Analysis, report: str | os.PathLike[str], segmentation: str | os.PathLike[str]
) -> list[str]:
    """Write the measurements to `report` and the SEG with one segment for each lesion, to which it refers.

    :return: sentences about what was repaired or left out of the series' headers.
    :raises LiverXAILib.errors.UsageError: the CT was not read from DICOM, nothing was found, or the extra ``dicom`` is
        not installed.
    :raises LiverXAILib.errors.InputError: the files of the series cannot be read.
    :raises OSError: a file cannot be written.
    """
    source = read_source(analysis.volume)
    segments = lesion_segments(analysis.segmentation)
    if not segments:
        raise UsageError("Nothing was found, so there is nothing to report.")
    seg: list[Dataset] = []

    def make_segmentation() -> Dataset:
        seg.append(segmentation_dataset(analysis.segmentation, source, segments))
        return seg[0]

    save(make_segmentation, source, segmentation)
    return save(lambda: _report(analysis, source, seg[0]), source, report)


def _report(analysis: Analysis, source: DicomSource, seg: Dataset) -> Dataset:
    import highdicom
    from pydicom.sr.codedict import codes

    observer = highdicom.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["LiverXAI"]), name="LiverXAI", manufacturer_name="LiverXAI"
        ),
    )
    content = highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[
            group for segment in seg.SegmentSequence for group in _groups(analysis, source, seg, segment)
        ],
    )
    return highdicom.sr.Comprehensive3DSR(
        evidence=[*(source.headers if source.can_be_referenced else ()), seg],
        content=content[0],
        is_complete=True,
        specific_character_set="ISO_IR 192",
        **made_by("measurements", SERIES_NUMBERS["sr"]),
    )


def _groups(analysis: Analysis, source: DicomSource, seg: Dataset, segment: Dataset) -> list[Any]:
    """The measurements of one segment of the SEG: those of its voxels and, for a lesion, its calipers."""
    import highdicom

    name, _, number = str(segment.SegmentLabel).rpartition(" ")
    spec = next(spec for spec in analysis.segmentation.specs if spec.name in (segment.SegmentLabel, name))
    lesion = next((one for one in analysis.measurements.lesions if spec.is_lesion and str(one.number) == number), None)
    model = algorithm(analysis.segmentation)[0]
    common = {
        "tracking_identifier": highdicom.sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
        "finding_type": code(spec.type),
        "finding_category": code(spec.category),
        "finding_sites": [highdicom.sr.FindingSite(code(spec.region))] if spec.region else None,
        "algorithm_id": highdicom.sr.AlgorithmIdentification(model.AlgorithmName, model.AlgorithmVersion),
    }
    region = highdicom.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=highdicom.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=segment.SegmentNumber,
            source_series=highdicom.sr.SourceSeriesForSegmentation(source.first.SeriesInstanceUID),
        ),
        measurements=_of_lesion(lesion) if lesion else _of_liver(analysis.measurements) if spec.is_liver else [],
        **common,
    )
    if lesion is None:
        return [region]
    calipers = [
        _value(name, length, _MILLIMETER, at=_line(ends, analysis, source))
        for name, length, ends in (
            (_LONG_AXIS, lesion.axial.long_mm, lesion.axial.long_ends_lps_mm),
            (_SHORT_AXIS, lesion.axial.short_mm, lesion.axial.short_ends_lps_mm),
        )
    ]
    return [region, highdicom.sr.MeasurementsAndQualitativeEvaluations(measurements=calipers, **common)]


def _of_liver(measured: Measurements) -> list[Measurement]:
    values = [_value(_VOLUME, measured.liver_volume_ml, _MILLILITER)]
    if measured.liver_mean_hu is not None and measured.liver_sd_hu is not None:
        values.append(_value(_ATTENUATION, measured.liver_mean_hu, _HOUNSFIELD, _MEAN))
        values.append(_value(_ATTENUATION, measured.liver_sd_hu, _HOUNSFIELD, _DEVIATION))
    return values


def _of_lesion(lesion: LesionMeasurements) -> list[Measurement]:
    return [
        _value(_VOLUME, lesion.volume_ml, _MILLILITER),
        _value(_DIAMETER, lesion.feret_mm, _MILLIMETER, _MAXIMUM),
        _value(_ATTENUATION, lesion.mean_hu, _HOUNSFIELD, _MEAN),
        _value(_ATTENUATION, lesion.sd_hu, _HOUNSFIELD, _DEVIATION),
    ]


def _value(name: Code, value: float, unit: Code, derivation: Code | None = None, at: Any = None) -> Measurement:
    import highdicom

    return highdicom.sr.Measurement(
        name=code(name),
        value=float(f"{value:.{_DIGITS}g}"),
        unit=code(unit),
        derivation=code(derivation) if derivation else None,
        referenced_coordinates=[at] if at is not None else None,
    )


def _line(
    ends_lps_mm: Any, analysis: Analysis, source: DicomSource
) -> CoordinatesForMeasurement | CoordinatesForMeasurement3D:
    """The ends of a caliper: in pixels of its slice if that is a stored image, otherwise in patient coordinates.

    A reader may have measured in another slice than the library, or across slices.
    """
    import highdicom

    ends = np.array(ends_lps_mm)
    ijk = analysis.volume.grid.to_ijk(ends)
    number = round(float(ijk[:, 2].mean()))
    is_in_slice = np.ptp(ijk[:, 2]) < _IN_SLICE and 0 <= number < len(source.headers)
    if not is_in_slice or not source.can_be_referenced:
        return highdicom.sr.CoordinatesForMeasurement3D(
            graphic_type="POLYLINE", graphic_data=ends, frame_of_reference_uid=source.first.FrameOfReferenceUID
        )
    header = source.headers[number]
    # The center of the first pixel is (0.5, 0.5).
    pixels = ijk[:, :2] + 0.5
    return highdicom.sr.CoordinatesForMeasurement(
        graphic_type="POLYLINE",
        graphic_data=pixels,
        source_image=highdicom.sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID),
    )
