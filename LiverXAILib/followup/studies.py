# SPDX-License-Identifier: Apache-2.0
"""One study of a follow-up: a result of ``analyze``, in memory or in a folder, or a CT to be analyzed."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import Analysis, Decision
from ..context import RunContext
from ..errors import InputError, UsageError
from ..files import require_exists
from ..inference import Segmentation, read_segmentation
from ..inference.lesions import lesion_components
from ..labels.label_map import read_label_map
from ..measure import measure
from ..measure.measurements import CERTAIN, SCHEMA_VERSION, Point
from ..models import LIVER, TUMOR, load_model
from ..options import Options
from ..reading.command import require_same_ct
from ..reading.measuring import with_calipers
from ..report.writers import PROVENANCE
from ..text import counted
from ..volumes.volume import Volume

_MEASUREMENTS, _SEGMENTATION, _DICOM = "measurements.json", "segmentation.seg.nrrd", "segmentation.dcm"


@dataclass(frozen=True)
class StudyLesion:
    """The measurements of a lesion that are compared.

    Names and units are those of :class:`~LiverXAILib.measure.measurements.LesionMeasurements`.
    """

    number: int
    volume_ml: float
    mean_hu: float
    long_mm: float
    short_mm: float
    long_ends_lps_mm: tuple[Point, Point]


@dataclass(frozen=True)
class Identity:
    """Attributes that reveal whether studies belong to different patients; they are never written.

    :param patient, birth_date, sex: digests of the DICOM patient ID, birth date and sex; "" if unknown.
    :param series: the series' UID; "" if unknown.
    :param voxels: checksum of the CT's voxels; "" if unknown.
    """

    patient: str = ""
    series: str = ""
    birth_date: str = ""
    sex: str = ""
    voxels: str = ""

    def completed(self, other: Identity) -> Identity:
        """Fill in unknown attributes from `other`."""
        return Identity(*(own or theirs for own, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, eq=False)
class Study:
    """One time point.

    :param name: name of the study in messages.
    :param volume: the CT in HU; None: unavailable, only its results are known.
    :param targets: numbers of the RECIST target lesions of this study, chosen by the rule or by a reader.
    :param phase: contrast phase; None if uncertain.
    :param date: date of the study; None: unknown.
    :param made_here: whether its segmentation was made for this comparison.
    :param remarks: sentences about it for the reader.
    """

    name: str
    segmentation: Segmentation
    lesions: tuple[StudyLesion, ...]
    liver_ml: float
    liver_hu: float | None
    liver_cut_at: tuple[str, ...]
    targets: tuple[int, ...]
    phase: str | None
    volume: Volume | None = None
    date: datetime.date | None = None
    identity: Identity = Identity()
    made_here: bool = False
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {counted(len(self.lesions), 'lesion')})"

    @property
    def lesions_ml(self) -> float:
        """The volume of all lesions."""
        return sum(lesion.volume_ml for lesion in self.lesions)

    def lesion(self, number: int) -> StudyLesion:
        """The lesion with this `number` (from 1)."""
        return self.lesions[number - 1]


def study_of(analysis: Analysis, name: str) -> Study:
    """Make a study from a result in memory."""
    metadata = analysis.volume.metadata
    date, identity = _from_dicom(metadata.get("files"))
    series, voxels = metadata.get("series_instance_uid"), analysis.provenance.get("input", {}).get("sha256")
    identity = identity.completed(Identity(series=str(series or ""), voxels=str(voxels or "")))
    return _study(name, analysis.segmentation, analysis.measurements.to_dict(), analysis.volume, date, identity)


def read_study(path: Path, image: Path | None, name: str, options: Options, model: str, context: RunContext) -> Study:
    """Read a folder written by ``analyze``, or analyze a CT.

    :param image: the CT from which the result was made; None: unknown.
    :param options: how a CT is read and analyzed.
    :param model: name or folder of the model for the analysis.
    :raises LiverXAILib.errors.InputError: `path` does not exist, or the result is damaged or of another version.
    """
    require_exists(path)
    if path.is_dir() and any((path / file).exists() for file in (PROVENANCE, _MEASUREMENTS, _SEGMENTATION)):
        return read_result(path, image, name, options)
    if image is not None:
        raise UsageError(f"{path} is itself a CT, not a result: give '-' at its position in --images.")
    context.report(f"Analyzing {name}", 0.0)
    volume = options.read(path)
    analysis = options.analyze(volume, load_model(model), context)
    study = study_of(analysis, name)
    return dataclasses.replace(study, made_here=True)


def read_result(path: Path, image: Path | None, name: str, options: Options) -> Study:
    """Read a folder written by ``analyze``; arguments and errors as in :func:`read_study`."""
    if not (path / PROVENANCE).exists():
        raise InputError(f"{path} is not a complete result of 'liverxai analyze': {PROVENANCE} is missing.")
    try:
        measured = json.loads((path / _MEASUREMENTS).read_text(encoding="utf-8"))
        provenance = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
        version = measured["schema_version"]
        metadata, voxels = provenance["input"]["metadata"], str(provenance["input"].get("sha256") or "")
        decisions = [Decision.from_dict(one) for one in provenance.get("reader", ())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {_MEASUREMENTS} or {PROVENANCE} is damaged. Analyze the CT again.") from error
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} was written by another version of LiverXAI. Analyze the CT again.")
    date, identity = _from_dicom([path / _DICOM] if (path / _DICOM).exists() else None)
    # The series of the result's own SEG is not that of the CT.
    identity = dataclasses.replace(identity, series=str(metadata.get("series_instance_uid") or ""), voxels=voxels)
    _require_lesions_sought(name, measured)
    specs = (LIVER, TUMOR)  # explicit, because a file without lesions does not record that they were searched for
    if image is None:
        segmentation = Segmentation(read_label_map(path / _SEGMENTATION).volume, specs)
        if _edited(segmentation, measured):
            raise InputError(
                f"{path}: {_SEGMENTATION} was edited after it was measured. Also give the CT (--images), so that it "
                "can be measured again."
            )
        return _study(name, segmentation, measured, None, date, identity)
    volume = options.read(image)
    require_same_ct(path, provenance, volume)
    segmentation = dataclasses.replace(read_segmentation(path / _SEGMENTATION, volume), specs=specs)
    own_date, own = _from_dicom(volume.metadata.get("files"))
    again = with_calipers(measure(volume, segmentation), segmentation, decisions).to_dict()
    remarks = []
    if (measured["recist"] or {}).get("chosen_by_reader"):
        if _edited(segmentation, measured):
            remarks.append(
                f"The segmentation of {name} was edited after its target lesions were chosen: they were selected by "
                "the rule of RECIST 1.1 instead. Choose them with --recist-targets."
            )
        else:
            again["recist"] = measured["recist"]
    study = _study(name, segmentation, again, volume, own_date or date, own.completed(identity))
    return dataclasses.replace(study, remarks=tuple(remarks))


def _edited(segmentation: Segmentation, measured: Mapping[str, Any]) -> bool:
    """Whether a label map differs from the one that was measured, by the volumes of the liver and of each lesion."""
    sizes = np.bincount(lesion_components(segmentation).ravel())[1:]
    liver = np.count_nonzero(segmentation.mask("liver"))
    found = np.array([liver, *sizes]) * segmentation.labels.grid.voxel_volume_mm3 / 1000
    written = [measured["liver_volume_ml"], *(one["volume_ml"] for one in measured["lesions"])]
    return len(found) != len(written) or not np.allclose(found, written, rtol=1e-5, atol=0)


def _study(
    name: str,
    segmentation: Segmentation,
    measured: Mapping[str, Any],
    volume: Volume | None,
    date: datetime.date | None,
    identity: Identity,
) -> Study:
    """Make a study from the output of :meth:`~LiverXAILib.measure.measurements.Measurements.to_dict`."""
    if not measured["liver_volume_ml"]:
        raise InputError(f"{name}: no liver was found, so nothing can be compared.")
    _require_lesions_sought(name, measured)
    phase = measured["phase"]
    return Study(
        name,
        segmentation,
        tuple(_lesion(one) for one in measured["lesions"]),
        measured["liver_volume_ml"],
        measured["liver_mean_hu"],
        tuple(measured["liver_cut_at"]),
        tuple(measured["recist"]["targets"]),
        phase["phase"] if phase is not None and phase["probability"] >= CERTAIN else None,
        volume,
        date,
        identity,
    )


def _require_lesions_sought(name: str, measured: Mapping[str, Any]) -> None:
    if measured["tumor_volume_ml"] is None:
        raise UsageError(f"{name}: the model of this result does not segment tumors, so there is nothing to track.")


def _lesion(one: Mapping[str, Any]) -> StudyLesion:
    axial = one["axial"]
    start, end = (_point(point) for point in axial["long_ends_lps_mm"])
    return StudyLesion(
        one["number"],
        one["volume_ml"],
        one["mean_hu"],
        axial["long_mm"],
        axial["short_mm"],
        (start, end),
    )


def _point(values: Any) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _from_dicom(files: Any) -> tuple[datetime.date | None, Identity]:
    """The date and identity of a study from the first DICOM file of a series; unknown without files."""
    if not files:
        return None, Identity()
    import pydicom

    from ..volumes.dicom.headers import pydicom_warnings_hidden

    person = ["PatientID", "PatientBirthDate", "PatientSex"]
    tags = [*person, "StudyDate", "SeriesDate", "AcquisitionDate", "SeriesInstanceUID"]
    try:
        with pydicom_warnings_hidden():
            header = pydicom.dcmread(files[0], stop_before_pixels=True, force=True, specific_tags=tags)
    except Exception as error:  # pydicom raises almost any type
        raise InputError(f"{files[0]} can no longer be read.") from error
    dates = [_date(str(header.get(tag) or "")) for tag in ("AcquisitionDate", "SeriesDate", "StudyDate")]
    patient, birth_date, sex = (_digest(str(header.get(tag) or "").strip()) for tag in person)
    identity = Identity(patient, str(header.get("SeriesInstanceUID") or ""), birth_date, sex)
    return next((date for date in dates if date is not None), None), identity


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "replace")).hexdigest() if text else ""


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text.strip().replace(".", "")[:8], "%Y%m%d").date()
    except ValueError:
        return None


def same_study(one: Study, other: Study) -> bool:
    """Whether two studies are identical: by their voxels, or by their series if the CTs are not available.

    Several scans may share a series UID, so it is compared only on the same grid.
    """
    both = one.volume is not None and other.volume is not None
    if not both and one.identity.voxels and one.identity.voxels == other.identity.voxels:
        return True  # the labels may still differ, if a reader has changed one of the results
    a, b = one.segmentation.labels, other.segmentation.labels
    if not a.grid.matches(b.grid):
        return False
    if one.volume is not None and other.volume is not None:
        return np.array_equal(one.volume.array, other.volume.array)
    if one.identity.series and other.identity.series:
        return one.identity.series == other.identity.series
    return np.array_equal(a.array, b.array)
