# SPDX-License-Identifier: Apache-2.0
"""The outline of a lesion from one click in it, and its correction by another click.

Where the probability of tumor stands out at the click, the lesion is the connected part of it above a fraction of
its peak. Elsewhere a small network outlines it (:mod:`.click_network`), and so does contrast: the connected part whose
smoothed HU lie nearer to those at the click than to the median of the liver. This rule puts the border where the
blurred edge of a homogeneous lesion is, but leaks out of faint lesions into vessels and noise: it counts where it finds
about as much as the network does, or where a lesion is larger than what the network sees. ``liverxai benchmark clicks``
measures all of them beside classical methods on the same clicks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import UsageError
from ..inference.segmentation import Segmentation
from ..volumes.box import Box, central_voxel, components
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .click_network import SCALES_MM, SIZE, Click, outline_by_network

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
#: Ways to outline, see the module's text.
METHODS = ("probability", "network", "contrast")
#: Dents in the liver are found on every so many millimeters.
_COARSE_MM = 2.0
#: If so much of what the network marks lies at the sides of what it sees, the lesion goes on beyond.
_MOST_AT_SIDES = 0.05
#: A corrective click changes nothing farther away than this many times the distance from it to the border.
_MISTAKE = 1.5
#: Network and contrast agree on a lesion's size if contrast finds so many times what the network does.
_AGREEMENT = (0.25, 3.0)
#: What the network marks must differ from the liver by so many standard errors.
_SIGNIFICANT = 2.0

Point = tuple[float, float, float]


def outline_lesion(
    volume: Volume, segmentation: Segmentation, place_lps_mm: Point, *, by: str = "best"
) -> tuple[Box, np.ndarray]:
    """Outline the lesion around a place.

    :param volume: the CT in HU, on the segmentation's grid.
    :param segmentation: for the liver, and for the probability of tumor where it has one.
    :param place_lps_mm: a place in the lesion, LPS mm.
    :param by: one of :data:`METHODS` alone, or "best": the probability where it stands out, else both others.
    :return: the box of the CT in which the lesion lies, and its mask there: bool (k, j, i).
    :raises LiverXAILib.errors.UsageError: the place is outside the image or outside the liver, nothing stands out
        from the liver there, or there is no such way to outline.
    """
    if by not in (*METHODS, "best"):
        raise UsageError(f"There is no way to outline called {by!r}. Choose one of: best, {', '.join(METHODS)}.")
    near = _neighborhood(volume, segmentation, place_lps_mm)
    mask = None
    if by in ("best", "probability"):
        mask = _by_probability(segmentation, volume.grid, near.box, near.start)
    if by == "network":
        mask = _by_network(near, [Click(place_lps_mm)])[0]
    elif by == "contrast":
        mask = _by_either_contrast(near)
    elif mask is None and by == "best":
        mask = _by_both(near, place_lps_mm)
    if mask is not None:
        return near.box, mask & near.organ
    raise UsageError(
        f"{_words(place_lps_mm)}: nothing stands out from the liver there by more than {LEAST_CONTRAST_HU:.0f} HU. "
        "Draw the lesion by hand."
    )


def correct_outline(
    volume: Volume, segmentation: Segmentation, lesion: np.ndarray, place_lps_mm: Point, inside: bool
) -> tuple[Box, np.ndarray]:
    """Outline a lesion anew after a click that says what is wrong with its outline.

    :param lesion: its mask now: bool (k, j, i) on the image's grid.
    :param place_lps_mm: a place (LPS mm) that belongs to it, or does not (`inside` False).
    :return: a box of the CT, and the lesion's mask there; what it has elsewhere stays.
    :raises LiverXAILib.errors.UsageError: the place is outside the image or the liver.
    """
    voxels = np.argwhere(lesion)
    x, y, z = (float(value) for value in volume.grid.to_lps(central_voxel(voxels)[::-1]))
    scale, first = SCALES_MM[-1], (x, y, z)
    if max(np.ptp(volume.grid.to_lps(voxels[:, ::-1]), axis=0)) > (SIZE - 8) * scale:
        first = place_lps_mm  # only what is around the click is outlined anew
    near = _neighborhood(volume, segmentation, place_lps_mm)
    clicks = [Click(first), Click(place_lps_mm, inside)] if first != place_lps_mm else [Click(first, inside)]
    before = volume.with_array(lesion.astype(np.uint8))
    network, _ = _by_network(near, clicks, before)
    present = lesion[near.box]
    at = tuple(volume.grid.nearest_voxel(place_lps_mm) - near.box.start)
    change = np.zeros_like(present)
    if network is not None:
        change = network & ~present if inside else present & ~network
    axes = [(np.arange(n) - c) * size for n, c, size in zip(present.shape, at, volume.spacing[::-1], strict=True)]
    mm = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    # The click is in the middle of the mistake, and so far from its border: elsewhere nobody complained.
    border = float(mm[present == inside].min(initial=REACH_MM))
    piece = _connected(change & (mm <= _MISTAKE * border), at)
    if not piece.any():
        piece = mm < border  # the reader is right, whatever the network says
    return near.box, (present | (piece & near.organ)) if inside else present & ~piece


@dataclass(frozen=True, eq=False)
class _Neighborhood:
    """The CT around a click: `start` is the click in `box`, `organ` the liver with dents filled, `median` its HU."""

    volume: Volume
    box: Box
    start: tuple[int, ...]
    organ: np.ndarray
    median: float

    def within(self, reach_mm: float) -> _Neighborhood:
        """The part of it that is not farther from the click."""
        reach = np.ceil(reach_mm / np.array(self.volume.spacing[::-1])).astype(int)
        own = Box.between(self.start, np.add(self.start, 1)).grown(reach, self.box.shape)
        start = tuple(int(n) for n in np.subtract(self.start, own.start))
        return _Neighborhood(self.volume, own.shifted(self.box.start), start, self.organ[own], self.median)

    def on(self, other: _Neighborhood, mask: np.ndarray) -> np.ndarray:
        """A mask in this box as one in the box of `other`, which holds this."""
        whole = np.zeros(other.box.shape, bool)
        whole[self.box.relative_to(other.box)] = mask
        return whole


def _words(place_lps_mm: Point) -> str:
    return "The place {:.0f}, {:.0f}, {:.0f} (LPS mm)".format(*place_lps_mm)


def _neighborhood(volume: Volume, segmentation: Segmentation, place_lps_mm: Point) -> _Neighborhood:
    click = volume.grid.nearest_voxel(place_lps_mm)
    if (click < 0).any() or (click >= volume.shape).any():
        raise UsageError(f"{_words(place_lps_mm)} lies outside the image.")
    reach = np.ceil(REACH_MM / np.array(volume.spacing[::-1])).astype(int)
    box = Box.between(click, click + 1).grown(reach, volume.shape)
    near = Segmentation(segmentation.labels.cropped(box), segmentation.specs)
    liver = near.mask("liver")
    organ = _closed(liver, volume.grid)
    start = tuple(click - box.start)
    if not organ[start]:
        raise UsageError(
            f"{_words(place_lps_mm)} lies outside the liver. Click into the lesion; outside the liver nothing is "
            "outlined."
        )
    tissue = liver & (near.labels.array != segmentation.spec("tumor").value)
    median = float(np.median(volume.array[box][tissue])) if tissue.any() else 0.0
    return _Neighborhood(volume, box, start, organ, median)


def _by_both(near: _Neighborhood, place_lps_mm: Point) -> np.ndarray | None:
    """The half-contrast outline where the network agrees on how large the lesion is: it follows clear borders better.

    Elsewhere the network's: contrast alone leaks out of faint lesions, and breaks off in noise.
    """
    network, reach = _by_network(near, [Click(place_lps_mm)])
    # Of a lesion that fits what the network sees, nothing lies farther away.
    is_large = reach is None
    around = near if reach is None else near.within(reach)
    found = _by_either_contrast(around)
    contrast = None if found is None else around.on(near, found)
    if contrast is None:
        return network
    size = np.count_nonzero(contrast) * near.volume.grid.voxel_volume_mm3 / 1000
    if network is None:
        return contrast if is_large or size <= LARGE_ML else None
    ratio = np.count_nonzero(contrast) / np.count_nonzero(network)
    return contrast if _AGREEMENT[0] <= ratio <= _AGREEMENT[1] else network


def _by_network(
    near: _Neighborhood, clicks: list[Click], before: Volume | None = None
) -> tuple[np.ndarray | None, float | None]:
    """What the network outlines, None where it finds nothing; and how far it looked in mm, None if the lesion goes on
    beyond."""
    grid = near.volume.grid
    part = near.volume.cropped(near.box)
    organ = Volume(near.organ, part.ijk_to_lps)
    found = outline_by_network(part, organ, near.median, clicks, before)
    if found.at_sides > _MOST_AT_SIDES and before is None:
        return None, None
    small = Box.full(found.grid.shape).projected(found.grid, part.grid)
    logit = resample(found.logit, found.grid, part.grid.cropped(small), fill=-20.0).numpy()
    mask = np.zeros(near.box.shape, bool) if before is None else np.array(before.array[near.box] > 0)
    mask[small] = logit > 0
    if before is not None:
        return mask, found.reach_mm
    first = tuple(grid.nearest_voxel(clicks[0].place_lps_mm) - near.box.start)
    mask = _connected(mask, first)
    return mask if mask.any() and _stands_out(part.array, mask, near.organ, near.median) else None, found.reach_mm


def _stands_out(array: np.ndarray, mask: np.ndarray, organ: np.ndarray, median: float) -> bool:
    """Whether the mean HU in a mask differs from the liver's median by more than noise does in as many voxels."""
    around = ndimage.binary_dilation(mask, iterations=6) & organ & ~mask
    noise = float(array[around].std()) if around.any() else 0.0
    # Neighboring voxels share their noise: eight count as one.
    error = noise / np.sqrt(max(1.0, np.count_nonzero(mask) / 8))
    return abs(float(array[mask].mean()) - median) > max(LEAST_CONTRAST_HU, _SIGNIFICANT * error)


def _by_either_contrast(near: _Neighborhood) -> np.ndarray | None:
    """As large lesions are outlined by contrast, or, if that is small or nothing, as small ones."""
    array, grid = near.volume.array[near.box], near.volume.grid
    mask = _by_contrast(array, grid, near.organ, near.start, near.median, *LARGE)
    if mask is None or np.count_nonzero(mask) * grid.voxel_volume_mm3 < LARGE_ML * 1000:
        small = _by_contrast(array, grid, near.organ, near.start, near.median, *SMALL)
        mask = mask if small is None else small
    return mask


def _by_probability(segmentation: Segmentation, grid: Grid, box: Box, start: tuple[int, ...]) -> np.ndarray | None:
    """The connected part above a fraction of the peak of the model's probability; None where it has no opinion."""
    probability = segmentation.probabilities.get("tumor")
    if probability is None:
        return None
    own = grid.box_of(probability.grid)
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
    """The liver without the dents that a missed lesion at its surface leaves; found on every second millimeter."""
    steps = [max(1, round(_COARSE_MM / size)) for size in grid.spacing[::-1]]
    coarse = mask[tuple(slice(None, None, step) for step in steps)]
    image = sitk.ConstantPad(_image(coarse.astype(np.uint8), grid), [8] * 3, [8] * 3, 0)
    radius = [max(0, round(6.0 / (size * step))) for size, step in zip(grid.spacing, steps[::-1], strict=True)]
    closed = sitk.GetArrayFromImage(sitk.Crop(sitk.BinaryMorphologicalClosing(image, radius), [8] * 3, [8] * 3))
    for axis, step in enumerate(steps):
        closed = closed.repeat(step, axis)
    k, j, i = mask.shape
    return mask | closed[:k, :j, :i].astype(bool)


def _filled(mask: np.ndarray) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(mask.astype(np.uint8)))).astype(bool)
