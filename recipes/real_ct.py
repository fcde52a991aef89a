# SPDX-License-Identifier: Apache-2.0
"""Real CT that may be trained on, by patient: which labels each scan has, and its source.

Scans for evaluation (CHAOS 3, 3D-IRCADb 1) are not in these lists, and no scan outside these lists is ever read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from LiverXAILib.errors import InputError
from LiverXAILib.volumes.io import read_labels, read_volume
from LiverXAILib.volumes.volume import Volume

#: Contrast phases of the scans.
Phase = Literal["native", "arterial", "portal"]


@dataclass(frozen=True)
class Scan:
    """A CT for training, ``ct/<name>/image.nii.gz``.

    :param tumors: "labeled" in ``tumor.nii.gz``; "none" if the liver has none; or "unknown".
    :param liver_value: value of the liver in ``organs.nii.gz``; None: the liver is in ``liver.nii.gz``.
    """

    name: str
    tumors: Literal["labeled", "none", "unknown"]
    liver_value: int | None = None
    phase: Phase = "portal"


@dataclass(frozen=True)
class Collection:
    """A source of scans, with the attribution required for works derived from it."""

    title: str
    license: str
    doi: str


COLLECTIONS: Mapping[str, Collection] = {
    "acrin": Collection("ACRIN-FLT-Breast (TCIA)", "CC BY 3.0", "10.7937/K9/TCIA.2017.OL20ZMXG"),
    "cmb": Collection("CMB-CRC (TCIA)", "CC BY 4.0", "10.7937/DJG7-GZ87"),
    "cptac": Collection("CPTAC-PDA (TCIA)", "CC BY 3.0", "10.7937/K9/TCIA.2018.SC20FO18"),
    "crlm": Collection("Colorectal-Liver-Metastases (TCIA)", "CC BY 4.0", "10.7937/QXK2-QG03"),
    "hcc": Collection("HCC-TACE-Seg (TCIA)", "CC BY 4.0", "10.7937/TCIA.5FNA-0924"),
    "kits": Collection("C4KC-KiTS (TCIA)", "CC BY 3.0", "10.7937/TCIA.2019.IX49E8NX"),
    "lidc": Collection("LIDC-IDRI (TCIA)", "CC BY 3.0", "10.7937/K9/TCIA.2015.LO9QL9SX"),
    "pancreas": Collection("Pancreatic-CT-CBCT-SEG (TCIA)", "CC BY 4.0", "10.7937/TCIA.ESHQ-4D90"),
    "totalseg": Collection("TotalSegmentator CT data set", "CC BY 4.0", "10.5281/zenodo.6802613"),
}


def collection_of(name: str) -> Collection:
    """The collection of a scan or a patient, by the prefix of its name."""
    return next(collection for prefix, collection in COLLECTIONS.items() if name.startswith(prefix))


def _hcc(name: str, arterial: str, portal: str) -> tuple[Scan, Scan]:
    return Scan(f"{name}_{arterial}", "labeled", phase="arterial"), Scan(f"{name}_{portal}", "labeled")


#: Every patient with a labeled liver, and the scans. Tumor labels are a silver standard: outlined on the images, but
#: not by a radiologist. Liver labels are a teacher's, corrected, or another model's.
PATIENTS: Mapping[str, tuple[Scan, ...]] = {
    "hcc002": (Scan("hcc002_b", "unknown"),),
    "hcc005": (*_hcc("hcc005", "a1", "a3"), Scan("hcc005_pre", "unknown", phase="native")),
    "hcc006": (Scan("hcc006_p", "unknown"),),
    "hcc007": _hcc("hcc007", "b2", "b3"),
    "hcc009": _hcc("hcc009", "a1", "a3"),
    "hcc011": (Scan("hcc011_2", "unknown"),),
    "hcc013": _hcc("hcc013", "a1", "a2"),
    "hcc015": _hcc("hcc015", "1", "3"),
    "crlm1004": (Scan("crlm1004", "unknown"),),
    "crlm1006": (Scan("crlm1006", "unknown"),),
    "lidc0001": (Scan("lidc0001", "none", phase="arterial"),),
    "pancreas_cb001": (Scan("pancreas_cb001", "none", phase="arterial"),),
    "totalseg_abdomen": (Scan("totalseg_abdomen_3mm", "none", 5, "native"),),
    "totalseg_slab": (Scan("totalseg_slab", "none", 5),),
}


def patient_of(scan: str) -> str:
    """The patient of a scan; a scan that is not in :data:`PATIENTS` is its patient's only one."""
    return next((name for name, scans in PATIENTS.items() if scan in [own.name for own in scans]), scan)


def read_ct(path: Path) -> Volume:
    """Read a CT in int16 HU.

    :raises LiverXAILib.errors.InputError: the CT is missing or unreadable.
    """
    if not path.exists():
        raise InputError(f"The training data has no {path}. See docs/default-model.md for the layout it needs.")
    volume = read_volume(path)
    return volume.with_array(np.clip(volume.array, -1024, 3071).astype(np.int16))


def read_scan(data: Path, scan: Scan) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Read the CT and, as bool (k, j, i) on its grid, the liver with its tumors and the labeled tumors.

    :param data: folder with ``ct/``.
    :raises LiverXAILib.errors.InputError: a file is missing or unreadable.
    """
    folder = data / "ct" / scan.name
    volume = read_ct(folder / "image.nii.gz")
    if scan.liver_value is None:
        liver = read_labels(folder / "liver.nii.gz").array > 0
    else:
        liver = read_labels(folder / "organs.nii.gz").array == scan.liver_value
    tumor = np.zeros_like(liver)
    if scan.tumors == "labeled":
        tumor = read_labels(folder / "tumor.nii.gz").array > 0
    return volume, liver | tumor, tumor
