# SPDX-License-Identifier: Apache-2.0
"""The default model's training anatomy: real CT with labels or teacher labels, and phantoms.

All scans that may be trained on are listed here by name; no others are ever read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from LiverXAILib.errors import InputError
from LiverXAILib.files import replacing
from LiverXAILib.inference.geometry import AIR_HU, network_orientation_grid
from LiverXAILib.phantoms import TISSUES, make_phantom
from LiverXAILib.volumes.io import read_labels
from LiverXAILib.volumes.resample import regrid, resample
from LiverXAILib.volumes.volume import Grid, Volume

from ..real_ct import PATIENTS, Phase, Scan, patient_of, read_ct, read_scan
from .synthesis import Source, Tissue
from .teacher import MANUAL_CORRECTIONS, apply_corrections, refine_teacher, teacher_liver
from .tissue_maps import FAT_HU, dilated, smoothed, tissues_by_hu

_log = logging.getLogger(__name__)

#: Axes of every source and of the network: superior, posterior, left.
AXES = "SPL"

#: Every real scan that is trained on, and how often it is drawn. All scans of a patient together are drawn about as
#: often as those of another patient; scans that show little liver are drawn less often.
WEIGHTS: dict[str, float] = {
    "totalseg_abdomen_3mm": 0.09,
    "totalseg_slab": 0.05,
    "lidc0001": 0.07,
    "pancreas_cb001": 0.05,
    "crlm1004": 0.035,
    "crlm1006": 0.035,
    "hcc002_b": 0.035,
    "hcc005_a1": 0.03,
    "hcc005_a3": 0.03,
    "hcc005_pre": 0.02,
    "hcc006_p": 0.035,
    "hcc007_b2": 0.035,
    "hcc007_b3": 0.035,
    "hcc009_a1": 0.035,
    "hcc009_a3": 0.035,
    "hcc011_2": 0.035,
    "hcc013_a1": 0.035,
    "hcc013_a2": 0.035,
    "hcc015_1": 0.03,
    "hcc015_3": 0.035,
    "cptac_pda": 0.07,
    "lidc_0314": 0.05,
    "acrin_013": 0.03,
    "kits_00072": 0.04,
    "cmb_crc_01068": 0.01,
}
#: Weight of all phantoms together.
_PHANTOMS = 0.25
#: Scans with labeled organs, and the file under ``ct/`` that names the organs.
_ORGAN_NAMES = {
    "totalseg_abdomen_3mm": "totalseg_labels.json",
    "totalseg_slab": "totalseg_labels.json",
    "lidc0001": "lidc0001/organs.json",
}
#: Scans without any label: how much of each, from its lower end, the teacher segments (trained on abdomens).
_LOWEST_MM = {"lidc_0314": 200.0, "acrin_013": 170.0, "cmb_crc_01068": 200.0}
_PHASES: dict[str, Phase] = {
    "cptac_pda": "portal",
    "lidc_0314": "native",
    "acrin_013": "native",
    "kits_00072": "arterial",
    "cmb_crc_01068": "arterial",
}
#: Scans without any label, of patients with cancer that spreads to the liver.
_TUMORS_UNKNOWN = ("cmb_crc_01068", "acrin_013")

#: Organ names of the labeled CT (TotalSegmentator's) by tissue; names are matched by prefix.
_ORGANS: dict[str, Tissue] = {
    "spleen": Tissue.SPLEEN,
    "kidney_cyst": Tissue.FLUID,
    "kidney": Tissue.KIDNEY,
    "gallbladder": Tissue.GALLBLADDER,
    "liver": Tissue.LIVER,
    "stomach": Tissue.STOMACH,
    "pancreas": Tissue.PANCREAS,
    "adrenal": Tissue.ADRENAL,
    "lung": Tissue.LUNG,
    "esophagus": Tissue.SOFT,
    "small_bowel": Tissue.BOWEL,
    "duodenum": Tissue.BOWEL,
    "colon": Tissue.BOWEL,
    "urinary_bladder": Tissue.BLADDER,
    "heart": Tissue.HEART,
    "aorta": Tissue.AORTA,
    "inferior_vena_cava": Tissue.VENA_CAVA,
    "portal_vein": Tissue.PORTAL_VEIN,
    "iliac_artery": Tissue.AORTA,
    "iliac_vena": Tissue.VENA_CAVA,
    "autochthon": Tissue.MUSCLE,
    "iliopsoas": Tissue.MUSCLE,
    "gluteus": Tissue.MUSCLE,
}

_PHANTOM: dict[str, Tissue] = {
    "air": Tissue.AIR,
    "table": Tissue.TABLE,
    "skin": Tissue.SOFT,
    "subcutaneous_fat": Tissue.FAT,
    "visceral_fat": Tissue.FAT,
    "muscle": Tissue.MUSCLE,
    "cortical_bone": Tissue.BONE,
    "cancellous_bone": Tissue.BONE,
    "cartilage": Tissue.SOFT,
    "disc": Tissue.SOFT,
    "spinal_canal": Tissue.FLUID,
    "lung": Tissue.LUNG,
    "lung_vessel": Tissue.ENHANCED,
    "heart_muscle": Tissue.HEART,
    "heart_blood": Tissue.HEART,
    "aorta": Tissue.AORTA,
    "vena_cava": Tissue.VENA_CAVA,
    "portal_vein": Tissue.PORTAL_VEIN,
    "hepatic_vein": Tissue.PORTAL_VEIN,
    "small_vessel": Tissue.ENHANCED,
    "liver": Tissue.LIVER,
    "lesion": Tissue.LIVER,
    "lesion_rim": Tissue.LIVER,
    "lesion_core": Tissue.LIVER,
    "lesion_calcification": Tissue.LIVER,
    "cyst": Tissue.LIVER,
    "gallbladder": Tissue.GALLBLADDER,
    "gallstone": Tissue.BONE,
    "spleen": Tissue.SPLEEN,
    "kidney_cortex": Tissue.KIDNEY,
    "kidney_medulla": Tissue.KIDNEY,
    "kidney_pelvis": Tissue.FLUID,
    "adrenal": Tissue.ADRENAL,
    "pancreas": Tissue.PANCREAS,
    "gut_wall": Tissue.BOWEL,
    "gut_fluid": Tissue.FLUID,
    "gut_contrast": Tissue.GUT_CONTRAST,
    "gut_gas": Tissue.GAS,
    "stool": Tissue.BOWEL,
    "effusion": Tissue.FLUID,
    "ascites": Tissue.FLUID,
}


def load_sources(
    data: Path,
    cache: Path,
    *,
    spacing_mm: float = 3.0,
    phantoms: Sequence[int] = range(1000, 1064),
    real: bool = True,
    left_out: Sequence[str] = (),
) -> list[Source]:
    """Load all training anatomy, prepared once and kept in `cache`.

    :param data: folder with ``ct/``, ``dicom/`` and ``models/obelisk/``.
    :param phantoms: seeds of the phantoms.
    :param real: whether to add the real CT.
    :param left_out: patients (:func:`~recipes.real_ct.patient_of`) whose CT is not read.
    :raises LiverXAILib.errors.InputError: a file is missing, or a patient is unknown.
    """
    if unheard := set(left_out) - {patient_of(name) for name in WEIGHTS}:
        raise InputError(f"{', '.join(sorted(unheard))}: not a patient. There are: {', '.join(sorted(WEIGHTS))}.")
    scans = {scan.name: scan for own in PATIENTS.values() for scan in own}
    names = [name for name in WEIGHTS if patient_of(name) not in left_out] if real else []
    real_makers = {name: (partial(_real, data, name, scans.get(name), spacing_mm), WEIGHTS[name]) for name in names}
    phantom_makers = {
        f"phantom_{seed}": (partial(_phantom, seed, spacing_mm), _PHANTOMS / len(phantoms)) for seed in phantoms
    }
    cache.mkdir(parents=True, exist_ok=True)
    sources = []
    for name, (make, weight) in (real_makers | phantom_makers).items():
        path = cache / f"{name}-{spacing_mm:g}mm.npz"
        if not path.is_file():
            made = make()
            _log.info("%s at %g mm: %.0f ml of liver", name, spacing_mm, made.liver.sum() * spacing_mm**3 / 1000)
            none = np.empty(0, np.int16)  # a phantom's intensities are drawn anew for each sample: it has no CT to keep
            arrays: dict[str, Any] = {key: none if value is None else value for key, value in vars(made).items()}
            with replacing(path) as temporary:  # phases that are trained in parallel may both prepare it
                np.savez_compressed(temporary, **arrays)
        with np.load(path) as stored:
            ct, tissues, liver, tumors = (stored[key] for key in ("ct", "tissues", "liver", "tumors"))
        scan = scans.get(name)
        sources.append(
            Source(
                name,
                ct if ct.size else None,
                tissues,
                liver,
                # In other scans few organs are labeled separately.
                detailed=name.startswith(("totalseg", "phantom", "lidc0001")),
                weight=weight,
                tumors=tumors.astype(bool) if tumors.size else None,
                tumors_known=name not in _TUMORS_UNKNOWN and (scan is None or scan.tumors != "unknown"),
                phase=scan.phase if scan else _PHASES.get(name),
            )
        )
    return sources


@dataclass(frozen=True)
class Prepared:
    """A source on its grid, as it is stored: `ct` int16, `tissues` uint8, `liver` and `tumors` bool; (k, j, i)."""

    ct: np.ndarray | None
    tissues: np.ndarray
    liver: np.ndarray
    tumors: np.ndarray | None = None


def to_grid(volume: Volume, spacing_mm: float) -> tuple[np.ndarray, Grid]:
    """Resample a CT to an isotropic grid along :data:`AXES`: int16 (k, j, i), and the grid."""
    grid = regrid(network_orientation_grid(volume.grid, AXES), (spacing_mm,) * 3)
    ct = resample(volume.array, volume.grid, grid, fill=AIR_HU).clamp(-1024, 3071).round()
    return ct.numpy().astype(np.int16), grid


def _real(data: Path, name: str, scan: Scan | None, spacing_mm: float) -> Prepared:
    """Prepare a real CT with labeled organs, with a labeled liver, or with neither."""
    if name in _ORGAN_NAMES:
        return _from_labels(data, name, spacing_mm)
    if scan is not None:
        return _from_liver(data, scan, spacing_mm)
    folder = Path("dicom/cptac_pda") if name == "cptac_pda" else Path("ct", name, "image.nii.gz")
    return _from_teacher(data, folder, spacing_mm, _LOWEST_MM.get(name))


def _from_labels(data: Path, name: str, spacing_mm: float) -> Prepared:
    """Prepare a CT with organ labels."""
    volume = read_ct(data / "ct" / name / "image.nii.gz")
    organs = read_labels(data / "ct" / name / "organs.nii.gz")
    names = json.loads((data / "ct" / _ORGAN_NAMES[name]).read_text(encoding="utf-8"))
    ct, grid = to_grid(volume, spacing_mm)
    tissues = tissues_by_hu(ct)
    best = np.full(grid.shape, 0.5, dtype=np.float32)
    liver = np.zeros(grid.shape, dtype=bool)
    for value in np.unique(organs.array[organs.array > 0]):
        organ = names[str(value)]
        tissue = next((t for prefix, t in _ORGANS.items() if organ.startswith(prefix)), None)
        if tissue is None:
            continue  # bones and muscles are classified by HU
        share = resample((organs.array == value).astype(np.float32), organs.grid, grid).numpy()
        where = share >= best
        best[where] = share[where]
        if tissue in (Tissue.STOMACH, Tissue.BOWEL):
            where = where & (ct > -150) & (ct < 150)  # gas and oral contrast keep their classes
        tissues[where] = int(tissue)
        if tissue is Tissue.LIVER:
            liver = share >= 0.5
    return Prepared(ct, tissues, liver)


def _from_liver(data: Path, scan: Scan, spacing_mm: float) -> Prepared:
    """Prepare a CT with a labeled liver, and perhaps tumors; other tissue that may be liver is left out."""
    volume, labeled, labeled_tumors = read_scan(data, scan)
    ct, grid = to_grid(volume, spacing_mm)
    liver, tumors = (
        resample(mask.astype(np.float32), volume.grid, grid).numpy() > 0.5 for mask in (labeled, labeled_tumors)
    )
    tissues = tissues_by_hu(ct)
    tissues[_border(ct, liver, tissues, spacing_mm)] = int(Tissue.UNKNOWN)
    tissues[liver] = int(Tissue.LIVER)
    return Prepared(ct, tissues, liver, tumors & liver if scan.tumors == "labeled" else None)


def _border(ct: np.ndarray, liver: np.ndarray, tissues: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The voxels within 4 mm of a model's liver that look like liver: their label is uncertain."""
    smooth = smoothed(ct, spacing_mm)
    median, spread = float(np.median(ct[liver])), float(np.clip(smooth[liver].std(), 8, 25))
    alike = (ct > (median + FAT_HU) / 2) & (smooth < median + 1.8 * spread) & (tissues != Tissue.BONE)
    return dilated(liver, max(1, round(4 / spacing_mm))) & ~liver & alike


def _phantom(seed: int, spacing_mm: float) -> Prepared:
    phantom = make_phantom(seed, spacing_mm=(spacing_mm,) * 3, lesions=False)
    lut = np.zeros(256, dtype=np.uint8)
    for name, value in TISSUES.items():
        lut[value] = int(_PHANTOM[name])
    # The phantom's axes are left, posterior, superior, so its arrays (k, j, i) are SPL already.
    return Prepared(None, lut[phantom.tissues.array], phantom.truth.array > 0)


def _from_teacher(data: Path, path: Path, spacing_mm: float, lowest_mm: float | None = None) -> Prepared:
    """Prepare a CT without labels: the OBELISK ensemble's liver, corrected, with uncertain parts left out.

    :param lowest_mm: segment only this much of the scan, from its lower end (the teacher was trained on abdomens only).
    """
    volume = read_ct(data / path)
    ct, grid = to_grid(volume, spacing_mm)
    liver = teacher_liver(volume, grid, data / "models" / "obelisk", lowest_mm)
    tissues = tissues_by_hu(ct)
    liver, unknown = refine_teacher(ct, liver, tissues, spacing_mm)
    apply_corrections(MANUAL_CORRECTIONS.get(path.parts[1], ()), ct, tissues, liver, unknown, spacing_mm)
    tissues[liver] = int(Tissue.LIVER)
    # Where review showed that the teacher failed, its positives are as uncertain as its negatives.
    tissues[unknown] = int(Tissue.UNKNOWN)
    return Prepared(ct, tissues, liver)
