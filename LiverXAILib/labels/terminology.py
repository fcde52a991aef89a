# SPDX-License-Identifier: Apache-2.0
"""Coded concepts (DICOM PS3.16, mostly SNOMED CT) and their text form in 3D Slicer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A coded concept: coding scheme, code value, meaning.
Code = tuple[str, str, str]

ANATOMICAL_STRUCTURE: Code = ("SCT", "123037004", "Anatomical Structure")
MORPHOLOGICALLY_ALTERED: Code = ("SCT", "49755003", "Morphologically Altered Structure")
LIVER: Code = ("SCT", "10200004", "Liver")
#: A CT alone does not prove what a lesion is, hence neither "Neoplasm" nor "Metastasis".
MASS: Code = ("SCT", "4147007", "Mass")
BLOOD_VESSEL: Code = ("SCT", "59820001", "Blood vessel")
#: The Couinaud segments I to VIII (CID 7170).
LIVER_SEGMENTS: tuple[Code, ...] = tuple(
    ("SCT", value, f"Couinaud hepatic segment {roman}")
    for roman, value in (
        ("I", "71133005"),
        ("II", "277956007"),
        ("III", "277957003"),
        ("IV", "277958008"),
        ("V", "277959000"),
        ("VI", "277960005"),
        ("VII", "277961009"),
        ("VIII", "277962002"),
    )
)

_TYPE_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"


def terminology_entry(category: Code, kind: Code, region: Code | None) -> str:
    """Format category, type and region of a segment as in 3D Slicer's segment tag ``TerminologyEntry``."""
    fields = (category, kind, None), (region, None)
    (types, regions) = (["^".join(code or ("", "", "")) for code in codes] for codes in fields)
    return "~".join((_TYPE_CONTEXT, *types, _REGION_CONTEXT, *regions))


def parse_terminology_entry(text: str) -> tuple[Code | None, Code | None, Code | None]:
    """Parse category, type and region from 3D Slicer's ``TerminologyEntry``; None for those that are not set."""
    fields = text.split("~")
    if len(fields) < 6:
        return None, None, None
    category, kind, region = (_code(fields[number]) for number in (1, 2, 5))
    return category, kind, region


def _code(field: str) -> Code | None:
    scheme, value, meaning = (*field.split("^"), "", "", "")[:3]
    return (scheme, value, meaning) if value else None


def algorithm_type(provenance: Mapping[str, Any]) -> str:
    """The DICOM segment algorithm type of a segmentation: "SEMIAUTOMATIC" if a reader has changed the model's."""
    return "SEMIAUTOMATIC" if provenance.get("edited") else "AUTOMATIC"
