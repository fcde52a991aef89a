# SPDX-License-Identifier: Apache-2.0
"""The outline of a lesion from one click in it, without a network: by the tumor score's own map and by contrast.

Where the model's probability of tumor stands out at the click, the lesion is the connected part of it above a fraction
of its peak. Elsewhere it is the connected part whose smoothed HU lie nearer to those at the click than to the liver's
median: the half-contrast rule, which puts the border where the blurred edge of a homogeneous lesion is. What leaks
into vessels or out of the liver is cut off by an opening and by the liver's own mask.
``liverxai benchmark clicks`` measures this beside classical methods on the same clicks.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..errors import UsageError
from ..inference.segmentation import Segmentation
from ..volumes.box import Box, components
from ..volumes.volume import Grid, Volume

#: How far from the click a lesion may reach, and how wide its neighborhood is, in mm.
REACH_MM = 60.0
#: A Gaussian against noise (standard deviation), and the radius around the click within which the median is the
#: lesion's HU, both in mm: for large lesions, and for small ones, whose contrast more smoothing would take.
LARGE, SMALL = (1.2, 2.5), (0.7, 1.5)
#: A lesion is large from this volume on: a ball of 20 mm.
LARGE_ML = 4.2
#: What is smaller is all rim, and is not opened.
SMALL_ML = 1.0
#: Less contrast to the liver than this is noise, in HU.
LEAST_CONTRAST_HU = 8.0
#: The model has an opinion of its own from this probability at the click on; it ends at this fraction of its peak.
LEAST_PROBABILITY, PEAK_FRACTION = 0.2, 0.5


def outline_lesion(
    volume: Volume,
    segmentation: Segmentation,
    place_lps_mm: tuple[float, float, float],
    *,
    by: str = "both",
) -> tuple[Box, np.ndarray]:
    """Outline the lesion around a place.

    :param volume: the CT in HU, on the segmentation's grid.
    :param segmentation: for the liver, and for the probability of tumor where it has one.
    :param place_lps_mm: a place in the lesion, LPS mm.
    :param by: "probability", "contrast", or "both": the probability where it stands out, else the contrast.
    :return: the box of the CT in which the lesion lies, and its mask there: bool (k, j, i).
    :raises LiverXAILib.errors.UsageError: the place is outside the image or outside the liver, or nothing stands out
        from the liver there.
    """
    click = np.rint(volume.grid.to_ijk(np.array(place_lps_mm))).astype(int)[::-1]
    where = "The place {:.0f}, {:.0f}, {:.0f} (LPS mm)".format(*place_lps_mm)
    if (click < 0).any() or (click >= volume.shape).any():
        raise UsageError(f"{where} lies outside the image.")
    reach = np.ceil(REACH_MM / np.array(volume.spacing[::-1])).astype(int)
    box = Box.between(click, click + 1).grown(reach, volume.shape)
    near = Segmentation(segmentation.labels.cropped(box), segmentation.specs)
    liver = near.mask("liver")
    organ = _closed(liver, volume.grid)
    start = tuple(click - box.start)
    if not organ[start]:
        raise UsageError(
            f"{where} lies outside the liver. Click into the lesion; outside the liver nothing is outlined."
        )
    if by != "contrast":
        mask = _by_probability(segmentation, volume.grid, box, start)
        if mask is not None:
            return box, mask & organ
        if by == "probability":
            raise UsageError(f"{where}: the model sees nothing of a tumor there.")
    tissue = liver & (near.labels.array != segmentation.spec("tumor").value)
    median = float(np.median(volume.array[box][tissue])) if tissue.any() else 0.0
    mask = _by_contrast(volume.array[box], volume.grid, organ, start, median, *LARGE)
    if mask is None or np.count_nonzero(mask) * volume.grid.voxel_volume_mm3 < LARGE_ML * 1000:
        small = _by_contrast(volume.array[box], volume.grid, organ, start, median, *SMALL)
        mask = mask if small is None else small
    if mask is None:
        raise UsageError(
            f"{where}: nothing stands out from the liver there by more than {LEAST_CONTRAST_HU:.0f} HU. Draw the "
            "lesion by hand."
        )
    return box, mask


def _by_probability(segmentation: Segmentation, grid: Grid, box: Box, start: tuple[int, ...]) -> np.ndarray | None:
    """The connected part above a fraction of the peak of the model's probability; None where it has no opinion."""
    probability = segmentation.probabilities.get("tumor")
    if probability is None:
        return None
    offset = np.rint(grid.to_ijk(probability.grid.origin)).astype(int)[::-1]
    own = Box.full(probability.shape).shifted(offset)
    common = own.intersection(box)
    if common is None:
        return None
    values = np.zeros(box.shape, np.float32)
    values[common.relative_to(box)] = probability.array[common.relative_to(own)]
    if values[start] < LEAST_PROBABILITY:
        return None
    piece = _connected(values >= LEAST_PROBABILITY, start)
    return _connected(values >= min(PEAK_FRACTION * float(values[piece].max()), float(values[start])), start)


def _by_contrast(
    array: np.ndarray,
    grid: Grid,
    organ: np.ndarray,
    start: tuple[int, ...],
    median: float,
    smoothing_mm: float,
    sample_mm: float,
) -> np.ndarray | None:
    """The connected part nearer to the HU at the click than to the liver's median; None without contrast."""
    smooth = _smoothed(array, grid, smoothing_mm)
    spacing = np.array(grid.spacing[::-1])
    near = Box.between(start, np.add(start, 1)).grown(np.maximum(1, sample_mm / spacing).astype(int), array.shape)
    sample = float(np.median(smooth[near]))
    contrast = sample - median
    if abs(contrast) < LEAST_CONTRAST_HU:
        return None
    border = median + contrast / 2
    inside = (smooth > border if contrast > 0 else smooth < border) & organ
    if not inside[start]:
        return None
    mask = _connected(inside, start)
    if np.count_nonzero(mask) * grid.voxel_volume_mm3 < SMALL_ML * 1000:
        return _filled(mask)
    # A thin neck leads into a vessel or out of the liver: cut it where the part with the click stays.
    opened = _opened(mask, grid, 2.0)
    if opened[start]:
        core = _connected(opened, start)
        mask = _connected(mask & _dilated(core, grid, 2.0), start)
    return _filled(mask)


def _connected(mask: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    numbers = components(mask)
    return numbers == numbers[start] if numbers[start] else np.zeros_like(mask)


def _image(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    return image


def _smoothed(array: np.ndarray, grid: Grid, smoothing_mm: float) -> np.ndarray:
    image = _image(array.astype(np.float32), grid)
    return sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, smoothing_mm**2, 16, 0.01, True))


def _radius(grid: Grid, radius_mm: float) -> list[int]:
    return [max(0, round(radius_mm / size)) for size in grid.spacing]


def _opened(mask: np.ndarray, grid: Grid, radius_mm: float) -> np.ndarray:
    image = _image(mask.astype(np.uint8), grid)
    return sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(image, _radius(grid, radius_mm))).astype(bool)


def _dilated(mask: np.ndarray, grid: Grid, radius_mm: float) -> np.ndarray:
    image = _image(mask.astype(np.uint8), grid)
    return sitk.GetArrayFromImage(sitk.BinaryDilate(image, _radius(grid, radius_mm))).astype(bool)


def _closed(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The liver without the dents that a missed lesion at its surface leaves."""
    image = sitk.ConstantPad(_image(mask.astype(np.uint8), grid), [8] * 3, [8] * 3, 0)
    closed = sitk.BinaryMorphologicalClosing(image, _radius(grid, 6.0))
    return sitk.GetArrayFromImage(sitk.Crop(closed, [8] * 3, [8] * 3)).astype(bool)


def _filled(mask: np.ndarray) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(mask.astype(np.uint8)))).astype(bool)
