# SPDX-License-Identifier: Apache-2.0
"""The default model's training anatomy: real CT with labels or teacher labels, and phantoms.

What may be trained on is listed here, by name, and nothing else is ever read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
import torch

from LiverXAILib.errors import InputError
from LiverXAILib.files import replacing
from LiverXAILib.inference.geometry import AIR_HU, network_orientation_grid
from LiverXAILib.networks import ObeliskUNet
from LiverXAILib.phantoms import TISSUES, make_phantom
from LiverXAILib.progress import CancelToken, Progress, check_cancel, report_progress
from LiverXAILib.volumes.box import bounding_box, components, largest_component
from LiverXAILib.volumes.io import read_labels, read_volume
from LiverXAILib.volumes.resample import regrid, resample, resized
from LiverXAILib.volumes.volume import Grid, Volume

from .synthesis import Source, Tissue

_log = logging.getLogger(__name__)

#: Axes of every source and of the network: superior, posterior, left.
AXES = "SPL"
#: Native livers are brighter, after smoothing, and effusions darker.
_DARKEST_LIVER_HU = 32.0
_FAT_HU = -100.0

#: Organ names of the labelled CT (TotalSegmentator's) by tissue; names are matched at their beginning.
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
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> list[Source]:
    """All training anatomy, prepared once and kept in `cache`.

    :param data: folder with ``ct/``, ``dicom/`` and ``models/obelisk/``.
    :param phantoms: seeds of the phantoms.
    :param real: whether to add the real CT.
    :raises LiverXAILib.errors.InputError: a file is missing.
    """
    real_makers = {
        "totalseg_abdomen_3mm": (lambda: _from_labels(data, "totalseg_abdomen_3mm", spacing_mm), 0.30),
        "totalseg_slab": (lambda: _from_labels(data, "totalseg_slab", spacing_mm), 0.12),
        "cptac_pda": (lambda: _from_teacher(data, "dicom/cptac_pda", spacing_mm), 0.28),
        "lidc_0314": (lambda: _from_teacher(data, "ct/lidc_0314/image.nii.gz", spacing_mm, 200), 0.09),
        "acrin_013": (lambda: _from_teacher(data, "ct/acrin_013/image.nii.gz", spacing_mm, 170), 0.06),
        "kits_00072": (lambda: _from_teacher(data, "ct/kits_00072/image.nii.gz", spacing_mm), 0.07),
        "cmb_crc_01068": (lambda: _from_teacher(data, "ct/cmb_crc_01068/image.nii.gz", spacing_mm, 200), 0.01),
    }
    phantom_makers = {
        f"phantom_{seed}": ((lambda seed=seed: _phantom(seed, spacing_mm)), 0.31 / len(phantoms)) for seed in phantoms
    }
    makers = (real_makers if real else {}) | phantom_makers
    cache.mkdir(parents=True, exist_ok=True)
    sources = []
    for number, (name, (make, weight)) in enumerate(makers.items()):
        check_cancel(cancel)
        report_progress(progress, f"Preparing {name}", number / len(makers))
        path = cache / f"{name}-{spacing_mm:g}mm.npz"
        if not path.is_file():
            ct, tissues, liver = make()
            _log.info("%s at %g mm: %.0f ml of liver", name, spacing_mm, liver.sum() * spacing_mm**3 / 1000)
            # A phantom's intensities are drawn anew for each sample: it has no CT to keep.
            kept = np.empty(0, np.int16) if ct is None else ct
            with replacing(path) as temporary:  # two parts that are trained side by side may both prepare it
                np.savez_compressed(temporary, tissues=tissues, liver=liver, ct=kept)
        with np.load(path) as stored:
            ct = stored["ct"] if stored["ct"].size else None
            detailed = name.startswith(("totalseg", "phantom"))
            sources.append(Source(name, ct, stored["tissues"], stored["liver"], detailed, weight))
    return sources


Prepared = tuple[np.ndarray | None, np.ndarray, np.ndarray]


def to_grid(volume: Volume, spacing_mm: float) -> tuple[np.ndarray, Grid]:
    grid = regrid(network_orientation_grid(volume.grid, AXES), (spacing_mm,) * 3)
    ct = resample(volume.array, volume.grid, grid, fill=AIR_HU).clamp(-1024, 3071).round()
    return ct.numpy().astype(np.int16), grid


def read_ct(path: Path) -> Volume:
    if not path.exists():
        raise InputError(f"The training data has no {path}. See docs/default-model.md for the layout it needs.")
    volume = read_volume(path)
    return volume.with_array(np.clip(volume.array, -1024, 3071).astype(np.int16))


def _from_labels(data: Path, name: str, spacing_mm: float) -> Prepared:
    """A CT with organ labels beside it."""
    volume = read_ct(data / "ct" / name / "image.nii.gz")
    organs = read_labels(data / "ct" / name / "organs.nii.gz")
    names = json.loads((data / "ct" / "totalseg_labels.json").read_text(encoding="utf-8"))
    ct, grid = to_grid(volume, spacing_mm)
    tissues = tissues_by_hu(ct)
    best = np.full(grid.shape, 0.5, dtype=np.float32)
    liver = np.zeros(grid.shape, dtype=bool)
    for value in np.unique(organs.array[organs.array > 0]):
        organ = names[str(value)]
        tissue = next((t for prefix, t in _ORGANS.items() if organ.startswith(prefix)), None)
        if tissue is None:
            continue  # bones and muscles are told by their HU
        share = resample((organs.array == value).astype(np.float32), organs.grid, grid).numpy()
        where = share >= best
        best[where] = share[where]
        if tissue in (Tissue.STOMACH, Tissue.BOWEL):
            where = where & (ct > -150) & (ct < 150)  # gas and oral contrast stay what they are
        tissues[where] = int(tissue)
        if tissue is Tissue.LIVER:
            liver = share >= 0.5
    return ct, tissues, liver


def _phantom(seed: int, spacing_mm: float) -> Prepared:
    phantom = make_phantom(seed, spacing_mm=(spacing_mm,) * 3, lesions=False)
    lut = np.zeros(256, dtype=np.uint8)
    for name, value in TISSUES.items():
        lut[value] = int(_PHANTOM[name])
    # The phantom's axes are left, posterior, superior with k ascending: SPL already.
    return None, lut[phantom.tissues.array], phantom.truth.array > 0


def _from_teacher(data: Path, path: str, spacing_mm: float, lowest_mm: float | None = None) -> Prepared:
    """A CT without labels: the liver as the OBELISK ensemble sees it, corrected and with doubtful parts left out.

    :param lowest_mm: show the teacher only this much of the scan, from its lower end (it knows abdomens, not trunks).
    """
    volume = read_ct(data / path)
    ct, grid = to_grid(volume, spacing_mm)
    liver = _teacher_liver(volume, grid, data / "models" / "obelisk", lowest_mm)
    tissues = tissues_by_hu(ct)
    liver, unknown = _refine_teacher(ct, liver, tissues, spacing_mm)
    _apply_corrections(MANUAL_CORRECTIONS.get(Path(path).parts[1], ()), ct, tissues, liver, unknown, spacing_mm)
    tissues[liver] = int(Tissue.LIVER)
    # Where somebody saw the teacher fail, its positives are as doubtful as its negatives.
    tissues[unknown] = int(Tissue.UNKNOWN)
    return ct, tissues, liver


@dataclass(frozen=True)
class _Region:
    """A box of a CT, in mm from its inferior, anterior, right corner, where the teacher's overlay was seen to be wrong.

    :param verdict: "no liver"; "unknown": all soft tissue there is left out; or "fluid": what is darker than any liver
        is fluid, the rest is left out.
    """

    verdict: Literal["no liver", "unknown", "fluid"]
    superior: tuple[float, float] = (0, 9999)
    posterior: tuple[float, float] = (0, 9999)
    left: tuple[float, float] = (0, 9999)

    def box(self, spacing_mm: float) -> tuple[slice, slice, slice]:
        ranges = (self.superior, self.posterior, self.left)
        k, j, i = (slice(round(a / spacing_mm), round(b / spacing_mm)) for a, b in ranges)
        return k, j, i


def _apply_corrections(
    regions: Sequence[_Region],
    ct: np.ndarray,
    tissues: np.ndarray,
    liver: np.ndarray,
    unknown: np.ndarray,
    spacing_mm: float,
) -> None:
    """Change `tissues`, `liver` and `unknown` (k, j, i) where the regions say so, in place."""
    for region in regions:
        box = region.box(spacing_mm)
        soft = (ct[box] > -30) & (ct[box] < 160)
        if region.verdict == "unknown":
            unknown[box] |= soft
        elif region.verdict == "no liver":
            unknown[box] &= ~(soft | liver[box])
            liver[box] = False
        else:
            fluid = soft & (_smoothed(ct, spacing_mm)[box] < _DARKEST_LIVER_HU)
            tissues[box][fluid] = int(Tissue.FLUID)
            liver[box] &= ~fluid
            unknown[box] = (unknown[box] | soft) & ~fluid


#: What looking at every third slice of the overlays showed.
MANUAL_CORRECTIONS: dict[str, tuple[_Region, ...]] = {
    "cptac_pda": (
        _Region("unknown", superior=(127, 133), left=(206, 9999)),  # the heart's lower surface on the left lobe
        _Region("no liver", superior=(133, 9999), left=(206, 9999)),  # the heart
        _Region("unknown", superior=(139, 9999), left=(188, 206)),  # vena cava and right atrium
    ),
    "lidc_0314": (
        _Region("fluid", superior=(16, 76), posterior=(230, 312), left=(60, 172)),  # liver, and effusion behind it
        _Region("fluid", superior=(76, 9999), posterior=(214, 9999)),  # the effusion above it
    ),
    "acrin_013": (
        _Region("unknown", superior=(22, 56), left=(322, 9999)),  # left lobe and stomach, told apart by nobody
        _Region("unknown", superior=(50, 62), left=(290, 9999)),
        _Region("no liver", superior=(62, 9999), left=(296, 9999)),  # the heart
    ),
    "kits_00072": (
        _Region("unknown", superior=(14, 17), left=(202, 9999)),  # the heart's lower surface
        _Region("unknown", superior=(17, 20), left=(156, 9999)),
        _Region("no liver", superior=(20, 9999), left=(116, 9999)),  # the heart
    ),
    "cmb_crc_01068": (_Region("unknown", superior=(0, 39)),),  # half of the dome is found: only fat and air are sure
}


def _refine_teacher(
    ct: np.ndarray, liver: np.ndarray, tissues: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher cuts the border short by 8-10 % of volume: grow 2 mm where the CT looks like liver.

    The vena cava, which it includes where it is enhanced, is taken out: liver labels of the field leave it out.

    :return: the liver, and a band 5 mm around it of what may be liver too, or its border's partial volume with fat or
        lung: neither is certain there.
    """
    liver = largest_component(liver)
    smooth = _smoothed(ct, spacing_mm)
    median = float(np.median(ct[liver]))
    spread = float(np.clip(smooth[liver].std(), 8, 25))
    bright = liver & (smooth > median + max(30.0, 2 * spread))
    cava = _dilate(_ball_open(bright, round(5 / spacing_mm)), 1)
    alike = (np.abs(smooth - median) < 1.8 * spread) & (tissues != Tissue.BONE)
    grown = (liver | (_dilate(liver, max(1, round(2 / spacing_mm))) & alike)) & ~cava
    # Above the middle between liver and fat, where a reader would draw the outline.
    perhaps = (ct > (median + _FAT_HU) / 2) & (smooth < median + 1.8 * spread)
    band = _dilate(grown, max(1, round(5 / spacing_mm))) & ~grown & ~cava & perhaps & (tissues != Tissue.BONE)
    return grown, band


def _smoothed(ct: np.ndarray, spacing_mm: float) -> np.ndarray:
    """`ct` without its noise: a Gaussian of 2.4 mm."""
    image = _image(ct.astype(np.float32))
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, 2.4 / spacing_mm))  # voxels: no spacing is set


def _teacher_liver(volume: Volume, grid: Grid, weights: Path, lowest_mm: float | None) -> np.ndarray:
    """Liver of the OBELISK ensemble (mean softmax of the folds) on `grid`; see :class:`ObeliskUNet`."""
    base = network_orientation_grid(volume.grid, "LAI")
    dense = resample(volume.array, volume.grid, base, fill=AIR_HU).numpy() > -300
    body = largest_component(_open(dense))
    body_box = bounding_box(body)
    assert body_box is not None
    depth = base.shape[2]
    keep = depth if lowest_mm is None else min(depth, int(lowest_mm / base.spacing[0]))
    box = body_box._replace(i=slice(depth - keep, depth))
    target = resized(base.cropped(box), (144, 144, 144))
    image = resample(volume.array, volume.grid, target, fill=AIR_HU)[None, None]
    files = sorted(weights.glob("allconvunet_tcia_fold*.pth"))
    if not files:
        raise InputError(f"The teacher's weights (allconvunet_tcia_fold1.pth …) are not in {weights}.")
    total = torch.zeros(9, *target.shape)
    for file in files:
        network = ObeliskUNet().eval()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
        with torch.inference_mode():
            total += network(image)[0].softmax(0) / len(files)
    margin = total[6] - torch.cat([total[:6], total[7:]]).amax(0)
    return resample(margin, target, grid, fill=-1.0).numpy() > 0


def tissues_by_hu(ct: np.ndarray) -> np.ndarray:
    """Tissue classes that intensity alone tells: air, table, fat, soft tissue, enhanced, bone, gas, lung."""
    body = _body(ct)
    tissues = np.full(ct.shape, int(Tissue.SOFT), dtype=np.uint8)
    tissues[ct < -30] = int(Tissue.FAT)
    tissues[ct > 110] = int(Tissue.ENHANCED)
    tissues[ct > 190] = int(Tissue.BONE)
    hollow = body & (ct < -300)
    tissues[hollow] = int(Tissue.GAS)
    tissues[_large(hollow & (ct > -970), 20_000)] = int(Tissue.LUNG)
    tissues[~body] = int(Tissue.AIR)
    tissues[~body & (ct > -700)] = int(Tissue.TABLE)
    return tissues


def _body(ct: np.ndarray) -> np.ndarray:
    """The patient, lungs and bowel gas included: the largest dense component, filled slice by slice."""
    body = largest_component(_open(ct > -300))
    filled = [sitk.GetArrayFromImage(sitk.BinaryFillhole(_image(plane.astype(np.uint8)))) for plane in body]
    return np.stack(filled) > 0


def _large(mask: np.ndarray, voxels: int) -> np.ndarray:
    numbers = components(mask)
    large = np.bincount(numbers.ravel()) >= voxels
    large[0] = False
    return large[numbers]


def _open(mask: np.ndarray) -> np.ndarray:
    image = _image(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(image, [1, 1, 0])) > 0


def _image(array: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(array)


def _ball_open(mask: np.ndarray, radius: int) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(_image(mask.astype(np.uint8)), [radius] * 3)) > 0


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    image = _image(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryDilate(image, [radius] * 3)) > 0
