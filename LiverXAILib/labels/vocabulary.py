# SPDX-License-Identifier: Apache-2.0
"""Classifies segments by name and codes: the liver, a tumor of the liver, a part of the liver, or something else.

It is used for all segmentations that are read: label maps, ``.seg.nrrd``, DICOM SEG, nodes of a Slicer scene,
``dataset.json`` of training data and the channels of third-party models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import InputError, UsageError
from . import terminology
from .terminology import Code

#: Values of the structures in label maps that this project writes, and in others unless specified otherwise.
STRUCTURES = {"liver": 1, "tumor": 2}
#: The result of :func:`structure_of` for a part of the liver, which counts as liver if the file also has a whole liver.
PART = "part of the liver"

_LIVER = re.compile(
    r"(?:(?:whole|entire|full|total|healthy|normal) )?(?:liver|hepar|leber|foie|higado|fegato)"
    r"(?: (?:parenchyma|tissue|organ|volume|mask|structure|with (?:tumors?|lesions?)))?"
)
_MASSES = (
    r"(?:tumors?|lesions?|cancers?|mass|masses|metastas[ie]s|mets?|malignanc(?:y|ies)|neoplasms?|carcinomas?|hcc|"
    r"hepatocellular carcinomas?|cholangiocarcinomas?|tumoral lesions?)"
)
_KINDS = r"(?:(?:primary|secondary|malignant|focal|viable|necrotic|enhancing|all|single) )*"
_TUMOR = re.compile(
    rf"{_KINDS}(?P<organ>(?:intra)?(?:liver|hepatic|colorectal liver) ?)?{_KINDS}{_MASSES}"
    r"(?P<where> (?:in|of) (?:the )?liver)?(?: mask)?(?: ?#?\d+)?"
)
_PART = re.compile(
    r"(?:liver|hepatic|couinaud) (?:(?:portal )?vessels?|veins?|arter(?:y|ies)|(?:left |right |caudate )?lobe|"
    r"segment (?P<number>[1-8][ab]?|i{1,3}|iv[ab]?|vi{0,3}))|(?:left|right|caudate) (?:liver|hepatic) lobe"
)
_OTHER_ORGAN = re.compile(
    r"\b(?:kidneys?|renal|lungs?|pulmonary|pancrea(?:s|tic)|spleen|splenic|colon|colic|rect(?:um|al)|bowel|gastric|"
    r"stomach|breast|adrenals?|prostat(?:e|ic)|brain|cerebral|bones?|vertebra\w*|gall ?bladder|bladder|lymph|nodes?|"
    r"nodal|thyroid|uter(?:us|ine)|ovar(?:y|ian)|esophag\w+|skin|peritone\w+|abdominal wall)\b"
)
_NUMBERED = re.compile(r"(?:segment|label|class|value|structure|roi|region|mask|object)? ?\d*")

_LIVER_CODES = {terminology.LIVER[1], "181268008", "T-62000", "7197", "RID58"}
_PART_CODES = {code[1] for code in terminology.LIVER_SEGMENTS} | {"46193006", "38353004"}
#: Morphology in SNOMED CT and the older SNOMED RT: mass, lesion, neoplasm (benign, malignant, primary, metastatic),
#: carcinoma, hepatocellular carcinoma, cholangiocarcinoma.
_MASS_CODES = {
    *(terminology.MASS[1], "52988006", "108369006", "3898006", "1240414004", "367651003", "86049000", "14799000"),
    *("128462008", "68453008", "25370001", "70179006"),
    *("M-03000", "M-01100", "M-80000", "M-80003", "M-80006", "M-80103", "M-81703"),
}
#: Disorders that include the liver as the site: lesion, malignant neoplasm, secondary malignant neoplasm, carcinoma.
_LIVER_MASS_CODES = {"300331000", "93870000", "94381002", "109841003"}
_ALTERED_CODES = {terminology.MORPHOLOGICALLY_ALTERED[1], "M-01000"}
#: "Tissue", "anatomical structure" and the like as types, "abdomen" and the like as regions: the defaults of programs
#: when the user chose nothing.
_VAGUE_CODES = {
    *(terminology.ANATOMICAL_STRUCTURE[1], "91723000", "85756007", "T-D0050", "T-D000A", "260787004", "A-00004"),
    *("309825002", "115668003", terminology.MORPHOLOGICALLY_ALTERED[1], "M-01000"),
    *("113345001", "818983003", "818982008", "416949008", "416550000", "22943007", "38266002", "T-D4000", "T-D4010"),
}


def named_values(liver: list[int] | None, tumor: list[int] | None) -> dict[str, list[int]] | None:
    """Values of structures from command line options (0: the structure is absent); None if no option is given."""
    if liver is None and tumor is None:
        return None
    given = (("liver", liver), ("tumor", tumor))
    chosen = {name: [STRUCTURES[name]] if values is None else values for name, values in given}
    if chosen["liver"] != [0] and set(chosen["liver"]) <= set(chosen["tumor"]):
        values = " and ".join(map(str, chosen["liver"]))
        raise UsageError(
            f"The liver's value {values} is also the tumor's, so nothing would be liver. Give both values with "
            "--liver-label and --tumor-label; use 0 for a structure that is absent."
        )
    return {name: values for name, values in chosen.items() if values != [0]}


def structure_of_name(name: str) -> str | None:
    """Classify the name of a segment or label as "liver", "tumor", :data:`PART`, or None (anything else)."""
    return _by_name(name)[0]


def is_name(name: str) -> bool:
    """Whether a name is meaningful: "spleen" is, "Segment_1" and "label 3" are not."""
    return not _NUMBERED.fullmatch(_plain(name))


def structure_of(
    name: str, category: Code | None = None, kind: Code | None = None, regions: Iterable[Code] = ()
) -> str | None:
    """Classify a segment by name and codes as "liver", "tumor", :data:`PART`, or None (anything else).

    A specific code takes precedence; the name decides if the code is missing or vague ("tissue"). A mass in an organ
    other than the liver is not a tumor of the liver, whatever its code.

    :param category: segmented property category (DICOM) or Slicer's category.
    :param kind: segmented property type.
    :param regions: anatomic regions, if any.
    :raises LiverXAILib.errors.InputError: name and codes contradict each other.
    """
    by_name, names_liver = _by_name(name)
    regions = list(regions)
    places = {code[1] for code in regions if not is_vague(code)}
    elsewhere = bool(places) and not places & (_LIVER_CODES | _PART_CODES)
    by_code = _by_code(category, kind, bool(places), name)
    if elsewhere and by_code in ("tumor", None):
        if not names_liver:
            return None  # a mass of the kidney
        by_code = None
    if by_name not in (None, by_code) and (by_name, by_code) != ("liver", PART):
        meaning = ", ".join(code[2] or code[1] for code in (kind, *regions) if code is not None)
        raise InputError(
            f"The segment {name!r} is coded as {meaning!r}: name and code contradict each other. Rename the segment, "
            "or correct its terminology."
        )
    return by_code


def _by_code(category: Code | None, kind: Code | None, has_place: bool, name: str) -> str | None:
    by_name = structure_of_name(name)
    if kind is None or is_vague(kind):
        altered = category is not None and category[1] in _ALTERED_CODES
        return "tumor" if altered and has_place and not is_name(name) else by_name
    value = kind[1]
    if value in _LIVER_CODES:
        return "liver"
    if value in _PART_CODES:
        return PART
    if value in _LIVER_MASS_CODES:
        return "tumor"
    if value in _MASS_CODES:
        # Without a region, the name may refer to another organ: "kidney tumor".
        return "tumor" if has_place or not _OTHER_ORGAN.search(_plain(name)) else None
    if value == terminology.BLOOD_VESSEL[1] and by_name == PART:
        return PART
    return None


def is_vague(code: Code) -> bool:
    """Whether a code is uninformative: a general one, or a private one of some program."""
    return code[1] in _VAGUE_CODES or code[0].startswith("99")


def _by_name(name: str) -> tuple[str | None, bool]:
    """The structure that a name denotes, and whether it names the liver."""
    plain = _plain(name)
    if _LIVER.fullmatch(plain):
        return "liver", True
    if match := _TUMOR.fullmatch(plain):
        return "tumor", bool(match["organ"] or match["where"])
    return (PART, True) if _PART.fullmatch(plain) else (None, False)


def liver_segment(name: str) -> int | None:
    """The number (1 to 8) of the Couinaud segment that a name denotes, otherwise None."""
    match = _PART.fullmatch(_plain(name))
    if match is None or match["number"] is None:
        return None
    number = match["number"].rstrip("ab")
    romans = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")
    return int(number) if number.isdigit() else romans.index(number) + 1


def is_liver_vessel(name: str) -> bool:
    """Whether a name denotes vessels inside the liver."""
    plain = _plain(name)
    return bool(_PART.fullmatch(plain)) and "lobe" not in plain and liver_segment(name) is None


def _plain(name: str) -> str:
    """Normalize a name: lower case, words separated by single spaces, American spelling."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    plain = re.sub(r"[\s_.\-:/]+", " ", apart).strip().lower()
    plain = plain.replace("tumour", "tumor").replace("í", "i")
    return re.sub(r"^liver(?=tumor|lesion|cancer|mass|met)", "liver ", plain)
