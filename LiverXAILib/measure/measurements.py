# SPDX-License-Identifier: Apache-2.0
"""Quantities of the liver and its lesions, each with the unit in its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..text import counted
from .recist import Recist

#: Version of ``measurements.json``; the schema is ``LiverXAILib/report/measurements.schema.json``.
SCHEMA_VERSION = 4
#: Below this probability a contrast phase is called uncertain.
CERTAIN = 0.8
#: LPS mm.
Point = tuple[float, float, float]


@dataclass(frozen=True)
class AxialDiameters:
    """The longest diameter in one axial slice and its perpendicular, as measured for RECIST 1.1 and WHO.

    :param long_mm: longest distance between two points on the outline of one connected component of the lesion in one
        slice, over all slices: it never bridges two components.
    :param short_mm: the longest distance perpendicular to it between two points on the same outline.
    :param long_ends_lps_mm: where the calipers touch, LPS mm.
    :param short_ends_lps_mm: likewise, for the perpendicular.
    :param slice_axis: the image axis ("i", "j" or "k") along which the slices closest to axial are stacked.
    :param slice_index: index of the slice along that axis, from 0.
    """

    long_mm: float
    short_mm: float
    long_ends_lps_mm: tuple[Point, Point]
    short_ends_lps_mm: tuple[Point, Point]
    slice_axis: str
    slice_index: int


@dataclass(frozen=True)
class FindingReliability:
    """How often findings of this model that look like this one are true, see :mod:`LiverXAILib.measure.reliability`.

    :param probability: fitted on findings with known ground truth, in phantoms and with painted lesions; only an
        estimate for patients. Not the probability of malignancy.
    :param word: "likely", "uncertain" or "doubtful".
    :param reason: what lowers the probability, as text; "" for likely findings, or if nothing stands out.
    :param features: the features from which it was computed.
    """

    probability: float
    word: str
    reason: str
    features: Mapping[str, float]

    def describe(self) -> str:
        """Word, number and reason: "doubtful (23 %): it lies at the edge of the liver"."""
        text = f"{self.word} ({100 * self.probability:.0f} %)"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True)
class LesionMeasurements:
    """One lesion.

    :param number: as in :func:`LiverXAILib.inference.lesions.lesion_components`: 1 is the largest.
    :param mean_probability: the model's mean probability of "tumor" over the lesion; None without probabilities. It is
        the model's confidence, not the probability of malignancy.
    :param axial: longest axial diameter and its perpendicular.
    :param feret_mm: longest diameter in any direction.
    :param surface_distance_mm: from the lesion to the nearest voxel at the liver's surface; 0: it reaches the
        surface. None if the liver has no surface in the image.
    :param touches_image_border: the lesion may extend beyond the image.
    :param contrast_hu: the lesion's mean HU minus the liver's without lesions; None if all of the liver is lesion.
    :param enhancement: hypo-, iso- or hyperattenuating relative to the liver (hypo and hyper: by more than
        :data:`LiverXAILib.measure.lesions.ISO_HU`), with the phase; None where the phase is uncertain.
    :param sphericity: surface of a sphere of the same volume over the lesion's surface: 1 for a sphere; None on sheared
        grids.
    :param location: the hepatic segments in which it lies, where the labels have segments; otherwise a text that says
        on which side of the body's midline it lies.
    :param instance_number: DICOM instance number of the slice with the axial diameters; None if the image was not read
        from DICOM.
    :param source: who outlined it: "model", "reader", or "model, edited by the reader".
    :param reliability: None if the model card does not define it, or if a reader outlined the lesion.
    """

    number: int
    volume_ml: float
    mean_hu: float
    sd_hu: float
    median_hu: float
    mean_probability: float | None
    axial: AxialDiameters
    feret_mm: float
    centroid_lps_mm: Point
    surface_distance_mm: float | None
    touches_image_border: bool
    contrast_hu: float | None = None
    enhancement: str | None = None
    sphericity: float | None = None
    location: str | None = None
    instance_number: int | None = None
    source: str = "model"
    reliability: FindingReliability | None = None


@dataclass(frozen=True)
class ContrastPhase:
    """An estimate, not a measurement.

    :param phase: "native", "arterial", "portal venous" or "delayed": the most probable one.
    :param probability: its probability, assuming that only these four phases occur and are equally frequent; below
        :data:`CERTAIN` the phase is uncertain.
    :param aorta_hu: median over slices of the HU in the brightest homogeneous disc of 12 mm in front of the spine;
        None: slices disagree, and the aorta was not used.
    :param liver_vessels_hu: 99th percentile of the smoothed liver, where portal and hepatic veins are.
    """

    phase: str
    probability: float
    aorta_hu: float | None
    liver_vessels_hu: float

    @property
    def certain(self) -> bool:
        """Whether the probability of the phase is at least :data:`CERTAIN`."""
        return self.probability >= CERTAIN


@dataclass(frozen=True)
class Remnant:
    """What a resection of whole hepatic segments would leave, excluding lesions.

    :param percent: of the functional volume, or of the standard volume where height and weight are known.
    """

    resection: str
    remaining_segments: tuple[str, ...]
    volume_ml: float
    percent: float


@dataclass(frozen=True)
class Candidate:
    """A connected component that the network segments as tumor without reaching the operating point.

    :param number: as in :func:`LiverXAILib.inference.lesions.candidate_components`: 1 is the largest.
    :param axial: longest axial diameter and its perpendicular.
    :param mean_probability: the model's mean probability of "tumor" in it, and `peak_probability`: the highest.
    :param place_lps_mm: the voxel of the component nearest to its centroid, by which the candidate is found again.
    :param reason: a sentence that says why it is not counted.
    :param status: "open", or what the reader decided: "accepted" or "rejected".
    :param reliability: as for a lesion.
    """

    number: int
    volume_ml: float
    mean_hu: float
    axial: AxialDiameters
    mean_probability: float
    peak_probability: float
    place_lps_mm: Point
    reason: str
    status: str = "open"
    reliability: FindingReliability | None = None


@dataclass(frozen=True)
class RejectedLesion:
    """A lesion that a reader has rejected. It counts in no quantity but is kept, so that it can be restored.

    :param number: 1 is the largest.
    :param mean_probability: as for a lesion.
    :param place_lps_mm: as for a candidate.
    :param who: the reader who rejected it.
    :param when: ISO 8601.
    """

    number: int
    volume_ml: float
    mean_hu: float
    axial: AxialDiameters
    mean_probability: float | None
    place_lps_mm: Point
    who: str
    when: str


@dataclass(frozen=True)
class Measurements:
    """What was measured in one CT. Standard deviations are those of the population of voxels.

    :param liver_volume_ml: including tumors; 0 if no liver was found.
    :param liver_mean_hu: of the liver without tumors; None if there is none.
    :param liver_cut_at: sides of the image that the liver reaches ("superior", "inferior" …): it may extend beyond the
        image there, so its volume is a lower bound. Empty: the liver is complete.
    :param tumor_volume_ml: of all lesions; None if the model does not look for tumors.
    :param tumor_burden_percent: tumor volume as a percentage of the liver volume, tumors included.
    :param lesions: in the order of their numbers; empty if there are none or the model does not look for tumors.
    :param plausible: whether this can be a liver (:mod:`LiverXAILib.measure.plausibility`); None if none was found.
    :param implausible_because: sentences that say why not.
    :param functional_volume_ml: of the liver without lesions; None if lesions were not looked for.
    :param standard_volume_ml: for a person of this height and weight; None where these are not known.
    :param standard_volume_ratio: functional volume (the liver's where lesions were not looked for) to standard volume.
    :param phase: contrast phase, estimated; None if there is too little liver to tell.
    :param steatosis: a sentence about fat from the HU of an unenhanced CT; None in other phases, or if it is uncertain.
    :param segment_volumes_ml: functional volume by hepatic segment ("I" to "VIII"), where the labels have segments.
    :param remnants: what typical resections would leave, where the labels have all segments.
    :param recist: None if lesions were not looked for.
    :param candidates: components below the model's operating point; they count in no other quantity.
    :param rejected: lesions that a reader rejected and that are not candidates; they count in no quantity either.
    """

    liver_volume_ml: float
    liver_mean_hu: float | None
    liver_sd_hu: float | None
    liver_cut_at: tuple[str, ...]
    tumor_volume_ml: float | None
    tumor_burden_percent: float | None
    lesion_count: int | None
    lesions: tuple[LesionMeasurements, ...]
    plausible: bool | None = None
    implausible_because: tuple[str, ...] = ()
    functional_volume_ml: float | None = None
    standard_volume_ml: float | None = None
    standard_volume_ratio: float | None = None
    phase: ContrastPhase | None = None
    steatosis: str | None = None
    segment_volumes_ml: Mapping[str, float] = field(default_factory=dict)
    remnants: tuple[Remnant, ...] = ()
    recist: Recist | None = None
    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[RejectedLesion, ...] = ()

    def __repr__(self) -> str:
        found = (counted(len(self.lesions), "lesion"), counted(len(self.candidates), "candidate"))
        return f"Measurements(liver {self.liver_volume_ml:.1f} ml, {', '.join(found)})"

    @property
    def liver_complete(self) -> bool:
        """Whether a liver was found that does not reach the image's border."""
        return self.liver_volume_ml > 0 and not self.liver_cut_at

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self), "liver_complete": self.liver_complete}

    def rows(self) -> list[dict[str, Any]]:
        """One row for the liver, one for all tumors (if the model looks for them), one for each lesion, candidate and
        rejected lesion.

        All rows have the same columns; what does not apply is None.
        """
        empty: dict[str, Any] = dict.fromkeys(COLUMNS)
        rows = [
            empty
            | {
                "structure": "liver",
                "volume_ml": self.liver_volume_ml,
                "mean_hu": self.liver_mean_hu,
                "sd_hu": self.liver_sd_hu,
                "touches_image_border": bool(self.liver_cut_at),
                "plausible": self.plausible,
            }
        ]
        if self.tumor_volume_ml is not None:
            rows.append(
                empty
                | {
                    "structure": "tumor",
                    "volume_ml": self.tumor_volume_ml,
                    "tumor_burden_percent": self.tumor_burden_percent,
                    "lesion_count": self.lesion_count,
                }
            )
        for lesion in self.lesions:
            values = {name: value for name, value in dataclasses.asdict(lesion).items() if name in COLUMNS}
            x, y, z = lesion.centroid_lps_mm
            rows.append(
                empty
                | values
                | {
                    "structure": "lesion",
                    **_finding_columns(lesion),
                    "recist_target": self.recist is not None and lesion.number in self.recist.targets,
                    "centroid_l_mm": x,
                    "centroid_p_mm": y,
                    "centroid_s_mm": z,
                }
            )
        rows += [_not_counted(one, structure="candidate", source="model") for one in self.candidates]
        rows += [_not_counted(one, structure="rejected lesion") for one in self.rejected]
        return rows

    def doubted(self, reasons: Sequence[str]) -> Measurements:
        """The same measurements, implausible for these reasons as well."""
        if not reasons:
            return self
        return dataclasses.replace(self, plausible=False, implausible_because=(*reasons, *self.implausible_because))

    def warnings(self, others: Iterable[str] = ()) -> list[str]:
        """A sentence for each reason why the liver is implausible, in place of those in `others`; then the others."""
        start = "Implausible: "
        mine = [f"{start}{reason}" for reason in self.implausible_because]
        return [*mine, *(sentence for sentence in others if not sentence.startswith(start))]

    def summary(self) -> str:
        """The main quantities as a few lines of text."""
        if self.liver_volume_ml == 0:
            return "No liver was found."
        liver = f"Liver   {self.liver_volume_ml:8.1f} ml"
        if self.liver_mean_hu is not None and self.liver_sd_hu is not None:
            liver += f", {self.liver_mean_hu:.0f} ± {self.liver_sd_hu:.0f} HU"
        if self.liver_cut_at:
            liver += f"; incomplete, cut at the image's {' and '.join(self.liver_cut_at)} border"
        lines = [f"IMPLAUSIBLE: {reason}" for reason in self.implausible_because]
        lines.append(liver)
        if self.standard_volume_ml is not None and self.standard_volume_ratio is not None:
            part = "the liver" if self.functional_volume_ml is None else "the liver without lesions"
            lines.append(
                f"Size    {self.standard_volume_ml:8.1f} ml, standard liver volume; {part} has "
                f"{100 * self.standard_volume_ratio:.0f} % of this volume"
            )
        if self.tumor_volume_ml is None:
            lines.append("Tumor   not looked for by this model")
        else:
            burden = "" if self.tumor_burden_percent is None else f", {self.tumor_burden_percent:.2f} % of the liver"
            count = counted(self.lesion_count or 0, "lesion")
            lines.append(f"Tumor   {self.tumor_volume_ml:8.1f} ml{burden}, {count}")
        lines += [f"  {_line(x, f'{x.mean_hu:.0f} ± {x.sd_hu:.0f} HU')}" for x in self.lesions]
        if self.candidates:
            candidates = counted(len(self.candidates), "candidate")
            lines.append(f"Not counted: {candidates}, marked without sufficient confidence")
            for one in self.candidates:
                status = "" if one.status == "open" else f", {one.status} by the reader"
                lines.append(f" C{_line(one, f'{one.mean_hu:.0f} HU{status}')}")
        if self.rejected:
            lines.append(f"Not counted: {counted(len(self.rejected), 'lesion')}, rejected by the reader")
            lines += [f" R{_line(one, f'{one.mean_hu:.0f} HU')}" for one in self.rejected]
        if self.recist is not None and self.recist.targets:
            numbers = ", ".join(str(number) for number in self.recist.targets)
            targets = "target lesion" if len(self.recist.targets) == 1 else "target lesions"
            lines.append(f"RECIST  {self.recist.sum_mm:5d} mm, sum of diameters of {targets} {numbers}")
        return "\n".join(lines)


def _line(finding: LesionMeasurements | Candidate | RejectedLesion, hu: str) -> str:
    """The line of a lesion, candidate or rejected lesion in the summary."""
    axial, reliability = finding.axial, _reliability(finding)
    return (
        f"{finding.number:>3}   {finding.volume_ml:8.2f} ml, {axial.long_mm:.1f} × {axial.short_mm:.1f} mm axial, {hu}"
        + ("" if reliability is None else f"; {reliability.describe()}")
    )


def _reliability(finding: LesionMeasurements | Candidate | RejectedLesion) -> FindingReliability | None:
    """How often findings like this one are true; None for rejected lesions."""
    return None if isinstance(finding, RejectedLesion) else finding.reliability


def _not_counted(finding: Candidate | RejectedLesion, **added: str) -> dict[str, Any]:
    """The row of a candidate or a rejected lesion."""
    values = {name: value for name, value in dataclasses.asdict(finding).items() if name in COLUMNS}
    x, y, z = finding.place_lps_mm
    place = {"centroid_l_mm": x, "centroid_p_mm": y, "centroid_s_mm": z}
    return dict.fromkeys(COLUMNS) | values | _finding_columns(finding) | place | added


def _finding_columns(finding: LesionMeasurements | Candidate | RejectedLesion) -> dict[str, Any]:
    """Columns that all findings have in common."""
    reliability = _reliability(finding)
    return {
        "axial_long_mm": finding.axial.long_mm,
        "axial_short_mm": finding.axial.short_mm,
        "axial_slice": finding.axial.slice_index,
        "reliability": None if reliability is None else reliability.probability,
        "reliability_word": None if reliability is None else reliability.word,
        "reliability_reason": None if reliability is None else reliability.reason,
    }


#: The columns of :meth:`Measurements.rows`.
COLUMNS = (
    "structure",
    "number",
    "volume_ml",
    "mean_hu",
    "sd_hu",
    "median_hu",
    "mean_probability",
    "axial_long_mm",
    "axial_short_mm",
    "axial_slice",
    "feret_mm",
    "surface_distance_mm",
    "centroid_l_mm",
    "centroid_p_mm",
    "centroid_s_mm",
    "touches_image_border",
    "source",
    "tumor_burden_percent",
    "lesion_count",
    "contrast_hu",
    "enhancement",
    "sphericity",
    "location",
    "instance_number",
    "recist_target",
    "plausible",
    "reliability",
    "reliability_word",
    "reliability_reason",
)
