# SPDX-License-Identifier: Apache-2.0
"""Livers of CT without labels, from the OBELISK ensemble, corrected, with uncertain parts left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from LiverXAILib.errors import InputError
from LiverXAILib.inference.geometry import AIR_HU, network_orientation_grid
from LiverXAILib.networks import ObeliskUNet
from LiverXAILib.volumes.box import bounding_box, largest_component
from LiverXAILib.volumes.resample import resample, resized
from LiverXAILib.volumes.volume import Grid, Volume

from .synthesis import Tissue
from .tissue_maps import FAT_HU, dilated, opened_by_ball, opened_slices, smoothed

#: HU that separates smoothed native livers, which are brighter, from effusions.
_DARKEST_LIVER_HU = 32.0


@dataclass(frozen=True)
class Region:
    """A box of a CT, in mm from its inferior, anterior, right corner, in which the teacher was wrong on review.

    :param verdict: "no liver"; "unknown": all soft tissue in it is left out; or "fluid": voxels darker than any liver
        are fluid, the rest is left out.
    """

    verdict: Literal["no liver", "unknown", "fluid"]
    superior: tuple[float, float] = (0, 9999)
    posterior: tuple[float, float] = (0, 9999)
    left: tuple[float, float] = (0, 9999)

    def box(self, spacing_mm: float) -> tuple[slice, slice, slice]:
        ranges = (self.superior, self.posterior, self.left)
        k, j, i = (slice(round(a / spacing_mm), round(b / spacing_mm)) for a, b in ranges)
        return k, j, i


def apply_corrections(
    regions: Sequence[Region],
    ct: np.ndarray,
    tissues: np.ndarray,
    liver: np.ndarray,
    unknown: np.ndarray,
    spacing_mm: float,
) -> None:
    """Correct `tissues`, `liver` and `unknown` (k, j, i) in the regions, in place."""
    for region in regions:
        box = region.box(spacing_mm)
        soft = (ct[box] > -30) & (ct[box] < 160)
        if region.verdict == "unknown":
            unknown[box] |= soft
        elif region.verdict == "no liver":
            unknown[box] &= ~(soft | liver[box])
            liver[box] = False
        else:
            fluid = soft & (smoothed(ct, spacing_mm)[box] < _DARKEST_LIVER_HU)
            tissues[box][fluid] = int(Tissue.FLUID)
            liver[box] &= ~fluid
            unknown[box] = (unknown[box] | soft) & ~fluid


#: Corrections from a review of every third slice of the overlays.
MANUAL_CORRECTIONS: dict[str, tuple[Region, ...]] = {
    "cptac_pda": (
        Region("unknown", superior=(127, 133), left=(206, 9999)),  # the heart's lower surface on the left lobe
        Region("no liver", superior=(133, 9999), left=(206, 9999)),  # the heart
        Region("unknown", superior=(139, 9999), left=(188, 206)),  # vena cava and right atrium
    ),
    "lidc_0314": (
        Region("fluid", superior=(16, 76), posterior=(230, 312), left=(60, 172)),  # liver, and effusion behind it
        Region("fluid", superior=(76, 9999), posterior=(214, 9999)),  # the effusion above it
    ),
    "acrin_013": (
        Region("unknown", superior=(22, 56), left=(322, 9999)),  # left lobe and stomach cannot be separated
        Region("unknown", superior=(50, 62), left=(290, 9999)),
        Region("no liver", superior=(62, 9999), left=(296, 9999)),  # the heart
    ),
    "kits_00072": (
        Region("unknown", superior=(14, 17), left=(202, 9999)),  # the heart's lower surface
        Region("unknown", superior=(17, 20), left=(156, 9999)),
        Region("no liver", superior=(20, 9999), left=(116, 9999)),  # the heart
    ),
    "cmb_crc_01068": (Region("unknown", superior=(0, 39)),),  # half of the dome is found: only fat and air are certain
}


def refine_teacher(
    ct: np.ndarray, liver: np.ndarray, tissues: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Refine the teacher's liver, which misses 8-10 % of the volume at the border.

    It is grown by 2 mm where the CT looks like liver. The vena cava, which the teacher includes if enhanced, is removed
    because public liver labels exclude it.

    :return: the liver, and an uncertain band of 5 mm around it: possible liver, and partial volume of its border with
        fat or lung.
    """
    liver = largest_component(liver)
    smooth = smoothed(ct, spacing_mm)
    median = float(np.median(ct[liver]))
    spread = float(np.clip(smooth[liver].std(), 8, 25))
    bright = liver & (smooth > median + max(30.0, 2 * spread))
    cava = dilated(opened_by_ball(bright, round(5 / spacing_mm)), 1)
    alike = (np.abs(smooth - median) < 1.8 * spread) & (tissues != Tissue.BONE)
    grown = (liver | (dilated(liver, max(1, round(2 / spacing_mm))) & alike)) & ~cava
    # Above the midpoint between liver and fat, where a reader would draw the outline.
    perhaps = (ct > (median + FAT_HU) / 2) & (smooth < median + 1.8 * spread)
    band = dilated(grown, max(1, round(5 / spacing_mm))) & ~grown & ~cava & perhaps & (tissues != Tissue.BONE)
    return grown, band


def teacher_liver(volume: Volume, grid: Grid, weights: Path, lowest_mm: float | None) -> np.ndarray:
    """Segment the liver with the OBELISK ensemble (mean softmax of the folds) on `grid`; see :class:`ObeliskUNet`."""
    base = network_orientation_grid(volume.grid, "LAI")
    dense = resample(volume.array, volume.grid, base, fill=AIR_HU).numpy() > -300
    body = largest_component(opened_slices(dense))
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
