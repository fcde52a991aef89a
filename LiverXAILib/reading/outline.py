# SPDX-License-Identifier: Apache-2.0
"""The outline of a lesion from one click in it, and its correction by another click.

Where the tumor probability at the click is high enough, the lesion is the connected component above a fraction of its
peak. Elsewhere it is outlined in two ways: by a small network (:mod:`~LiverXAILib.inference.outline_network`), and by
contrast, as the connected component whose smoothed HU are closer to those at the click than to the median of the liver.
The contrast rule places the border at the blurred edge of a homogeneous lesion, but leaks from faint lesions into
vessels and noise.
It is therefore used only if its result is similar in size to the network's, or if a lesion is larger than the network's
field of view. ``liverxai benchmark clicks`` compares all of them with classical methods on the same clicks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import UsageError
from ..inference.outline_network import SCALES_MM, SIZE, Click, outline_by_network
from ..inference.segmentation import Segmentation
from ..text import place_text
from ..volumes.box import Box, bounding_box, central_voxel, components, without_holes
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume

#: Maximum extent of a lesion from the click, and of the neighborhood that is examined, in mm.
REACH_MM = 60.0
#: Standard deviation of the Gaussian against noise, and radius around the click within which the median HU is taken as
#: the lesion's, both in mm: for large lesions, and for small ones, whose contrast more smoothing would remove.
LARGE, SMALL = (1.2, 2.5), (0.7, 1.5)
#: Volume from which a lesion is large: a ball of 20 mm.
LARGE_ML = 4.2
#: Smaller lesions consist of rim only, so no morphological opening is applied to them.
SMALL_ML = 1.0
#: A smaller contrast with the liver is noise, in HU.
LEAST_CONTRAST_HU = 8.0
#: Probability at the click from which the model's probability is used, and the fraction of its peak at which the
#: lesion ends.
LEAST_PROBABILITY, PEAK_FRACTION = 0.2, 0.5
#: The methods of outlining, see the module's docstring.
METHODS = ("probability", "network", "contrast")
#: Voxel size at which indentations of the liver are found, in mm.
_COARSE_MM = 2.0
#: If more than this fraction of the network's mask lies at the sides of its cube, the lesion extends beyond it.
_MOST_AT_SIDES = 0.05
#: A corrective click changes nothing farther away than this multiple of its distance from the border.
_MISTAKE = 1.5
#: Network and contrast agree if the ratio of the contrast volume to the network volume is in this range.
_AGREEMENT = (0.25, 3.0)
#: Noise is measured within this many voxels around the network's mask.
_AROUND = 6
#: The network's mask must differ from the liver by this many standard errors.
_SIGNIFICANT = 2.0

Point = tuple[float, float, float]


def outline_lesion(
    volume: Volume, segmentation: Segmentation, place_lps_mm: Point, *, by: str = "best"
) -> tuple[Box, np.ndarray]:
    """Outline the lesion around a point.

    :param volume: the CT in HU, on the segmentation's grid.
    :param segmentation: provides the liver, and the tumor probability if available.
    :param place_lps_mm: a point in the lesion, LPS mm.
    :param by: one of :data:`METHODS` alone, or "best": the probability if it is high enough at the point, otherwise
        both other methods.
    :return: the box of the CT that contains the lesion, and its mask there: bool (k, j, i).
    :raises LiverXAILib.errors.UsageError: the point is outside the image or outside the liver, nothing contrasts with
        the liver there, or the method does not exist.
    """
    if by not in (*METHODS, "best"):
        raise UsageError(f"There is no outlining method {by!r}. Choose one of: best, {', '.join(METHODS)}.")
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
        f"The point {place_text(place_lps_mm)}: nothing there differs from the liver by more than "
        f"{LEAST_CONTRAST_HU:.0f} HU. Draw the lesion by hand."
    )


def correct_outline(
    volume: Volume, segmentation: Segmentation, lesion: np.ndarray, place_lps_mm: Point, inside: bool
) -> tuple[Box, np.ndarray]:
    """Correct the outline of a lesion after a click on an error in it.

    :param lesion: the current mask: bool (k, j, i) on the image's grid.
    :param place_lps_mm: a point (LPS mm) that belongs to the lesion, or does not (`inside` False).
    :return: a box of the CT, and the lesion's mask there; the mask outside the box stays.
    :raises LiverXAILib.errors.UsageError: the point is outside the image or the liver.
    """
    box = bounding_box(lesion)
    assert box is not None  # a lesion has voxels
    voxels = np.argwhere(lesion[box]) + box.start
    x, y, z = (float(value) for value in volume.grid.to_lps(central_voxel(voxels)[::-1]))
    scale, first = SCALES_MM[-1], (x, y, z)
    if max(np.ptp(volume.grid.to_lps(voxels[:, ::-1]), axis=0)) > (SIZE - 8) * scale:
        first = place_lps_mm  # only the surroundings of the click are outlined again
    near = _neighborhood(volume, segmentation, place_lps_mm)
    clicks = [Click(first), Click(place_lps_mm, inside)] if first != place_lps_mm else [Click(first, inside)]
    before = volume.with_array(lesion)
    network, _ = _by_network(near, clicks, before)
    present = lesion[near.box]
    at = tuple(volume.grid.nearest_voxel(place_lps_mm) - near.box.start)
    change = np.zeros_like(present)
    if network is not None:
        change = network & ~present if inside else present & ~network
    axes = [(np.arange(n) - c) * size for n, c, size in zip(present.shape, at, volume.spacing[::-1], strict=True)]
    mm = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    # The click marks the middle of the error, so its distance from the border limits the correction.
    border = float(mm[present == inside].min(initial=REACH_MM))
    piece = _connected(change & (mm <= _MISTAKE * border), at)
    if not piece.any():
        piece = mm < border  # the reader overrules the network
    return near.box, (present | (piece & near.organ)) if inside else present & ~piece


@dataclass(frozen=True, eq=False)
class _Neighborhood:
    """The CT around a click: `start` is the click in `box`, `organ` the filled liver mask, `median` the liver's HU."""

    volume: Volume
    box: Box
    start: tuple[int, ...]
    organ: np.ndarray
    median: float

    def within(self, reach_mm: float) -> _Neighborhood:
        """The part of the neighborhood within this distance of the click."""
        reach = np.ceil(reach_mm / np.array(self.volume.spacing[::-1])).astype(int)
        own = Box.between(self.start, np.add(self.start, 1)).grown(reach, self.box.shape)
        start = tuple(int(n) for n in np.subtract(self.start, own.start))
        return _Neighborhood(self.volume, own.shifted(self.box.start), start, self.organ[own], self.median)

    def on(self, other: _Neighborhood, mask: np.ndarray) -> np.ndarray:
        """Convert a mask in this box into one in the box of `other`, which contains this box."""
        whole = np.zeros(other.box.shape, bool)
        whole[self.box.relative_to(other.box)] = mask
        return whole


def _neighborhood(volume: Volume, segmentation: Segmentation, place_lps_mm: Point) -> _Neighborhood:
    click = volume.grid.nearest_voxel(place_lps_mm)
    if (click < 0).any() or (click >= volume.shape).any():
        raise UsageError(f"The point {place_text(place_lps_mm)} lies outside the image.")
    reach = np.ceil(REACH_MM / np.array(volume.spacing[::-1])).astype(int)
    box = Box.between(click, click + 1).grown(reach, volume.shape)
    near = Segmentation(segmentation.labels.cropped(box), segmentation.specs)
    liver = near.mask("liver")
    organ = _closed(liver, volume.grid)
    start = tuple(click - box.start)
    if not organ[start]:
        raise UsageError(
            f"The point {place_text(place_lps_mm)} lies outside the liver. Click inside the lesion; nothing is "
            "outlined outside the liver."
        )
    tissue = liver & (near.labels.array != segmentation.spec("tumor").value)
    median = float(np.median(volume.array[box][tissue])) if tissue.any() else 0.0
    return _Neighborhood(volume, box, start, organ, median)


def _by_both(near: _Neighborhood, place_lps_mm: Point) -> np.ndarray | None:
    """Combine contrast and network.

    The half-contrast outline is used if the network agrees on the lesion's size, because it follows clear borders more
    closely. Otherwise the network's outline is used: contrast alone leaks from faint lesions and is cut short by noise.
    """
    network, reach = _by_network(near, [Click(place_lps_mm)])
    # If the lesion fits into the network's cube, no part of it lies farther away.
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
    """The network's outline, None if it finds nothing; and its reach in mm, None if the lesion extends beyond it."""
    grid = near.volume.grid
    part = near.volume.cropped(near.box)
    organ = Volume(near.organ, part.ijk_to_lps)
    found = outline_by_network(part, organ, near.median, clicks, before)
    if found.at_sides > _MOST_AT_SIDES and before is None:
        return None, None
    small = Box.full(found.grid.shape).projected(found.grid, part.grid)
    logit = resample(found.logit, found.grid, part.grid.cropped(small), fill=-20.0).numpy()
    mask = np.zeros(near.box.shape, bool) if before is None else np.array(before.array[near.box])
    mask[small] = logit > 0
    if before is not None:
        return mask, found.reach_mm
    first = tuple(grid.nearest_voxel(clicks[0].place_lps_mm) - near.box.start)
    mask = _connected(mask, first)
    return mask if mask.any() and _stands_out(part.array, mask, near.organ, near.median) else None, found.reach_mm


def _stands_out(array: np.ndarray, mask: np.ndarray, organ: np.ndarray, median: float) -> bool:
    """Whether the mean HU in a mask differs from the liver's median by more than noise explains for its voxel count."""
    found = bounding_box(mask)
    assert found is not None  # an empty mask is not asked about
    box = found.grown((_AROUND,) * 3, mask.shape)
    array, mask, organ = array[box], mask[box], organ[box]
    around = ndimage.binary_dilation(mask, iterations=_AROUND) & organ & ~mask
    noise = float(array[around].std()) if around.any() else 0.0
    # The noise of neighboring voxels is correlated: eight count as one.
    error = noise / np.sqrt(max(1.0, np.count_nonzero(mask) / 8))
    return abs(float(array[mask].mean()) - median) > max(LEAST_CONTRAST_HU, _SIGNIFICANT * error)


def _by_either_contrast(near: _Neighborhood) -> np.ndarray | None:
    """Outline by contrast with the settings for large lesions, or, if the result is small or empty, for small ones."""
    array, grid = near.volume.array[near.box], near.volume.grid
    mask = _by_contrast(array, grid, near.organ, near.start, near.median, *LARGE)
    if mask is None or np.count_nonzero(mask) * grid.voxel_volume_mm3 < LARGE_ML * 1000:
        small = _by_contrast(array, grid, near.organ, near.start, near.median, *SMALL)
        mask = mask if small is None else small
    return mask


def _by_probability(segmentation: Segmentation, grid: Grid, box: Box, start: tuple[int, ...]) -> np.ndarray | None:
    """The connected component above a fraction of the peak of the model's probability; None if it is too low here."""
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
    """The connected component closer to the HU at the click than to the liver's median; None without contrast."""
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
        return without_holes(mask)
    # A thin neck leads into a vessel or out of the liver: cut it off if the part with the click remains.
    opened = _opened(mask, grid, 2.0)
    if opened[start]:
        core = _connected(opened, start)
        mask = _connected(mask & _dilated(core, grid, 2.0), start)
    return without_holes(mask)


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


def _radius(grid: Grid, radius_mm: float) -> tuple[int, ...]:
    return tuple(max(0, round(radius_mm / size)) for size in grid.spacing)


def _opened(mask: np.ndarray, grid: Grid, radius_mm: float) -> np.ndarray:
    rows = _ball(_radius(grid, radius_mm))
    return _grown_by(rows, ~_grown_by(rows, ~mask))


def _dilated(mask: np.ndarray, grid: Grid, radius_mm: float) -> np.ndarray:
    return _grown_by(_ball(_radius(grid, radius_mm)), mask)


def _closed(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The liver with the indentations of missed lesions at its surface filled; computed at about 2 mm."""
    steps = [max(1, round(_COARSE_MM / size)) for size in grid.spacing[::-1]]
    coarse = mask[tuple(slice(None, None, step) for step in steps)]
    radius = tuple(max(0, round(6.0 / (size * step))) for size, step in zip(grid.spacing, steps[::-1], strict=True))
    rows, margin = _ball(radius), [2 * n for n in radius[::-1]]
    padded = np.pad(coarse, [(n, n) for n in margin])
    closed = ~_grown_by(rows, ~_grown_by(rows, padded))
    closed = closed[tuple(slice(n, size - n) for n, size in zip(margin, closed.shape, strict=True))]
    for axis, step in enumerate(steps):
        closed = closed.repeat(step, axis)
    k, j, i = mask.shape
    return mask | closed[:k, :j, :i]


@functools.cache
def _ball(radius: tuple[int, ...]) -> dict[tuple[int, int], int]:
    """A ball of SimpleITK with this radius (i, j, k) in rows: for each (k, j) from its center, the extent along i."""
    point = np.zeros([2 * n + 1 for n in radius[::-1]], np.uint8)
    point[radius[::-1]] = 1
    ball = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(point), list(radius))).astype(bool)
    found = np.argwhere(ball.any(axis=2))
    _i, j, k = radius
    return {(int(a) - k, int(b) - j): int(np.count_nonzero(ball[a, b])) // 2 for a, b in found}


def _grown_by(rows: dict[tuple[int, int], int], mask: np.ndarray) -> np.ndarray:
    """Dilation by a ball given in rows, many times faster than SimpleITK's: a row of voxels takes one step."""
    grown = np.zeros_like(mask)
    wide, extent = mask.copy(), 0
    for (k, j), wanted in sorted(rows.items(), key=lambda row: row[1]):
        for step in range(extent + 1, wanted + 1):
            wide[..., step:] |= mask[..., :-step]
            wide[..., :-step] |= mask[..., step:]
        extent = max(extent, wanted)
        there, here = zip(*(_shifted(n, size) for n, size in zip((k, j), mask.shape, strict=False)), strict=True)
        grown[there] |= wide[here]
    return grown


def _shifted(by: int, size: int) -> tuple[slice, slice]:
    """The slices of an axis that are `by` voxels apart: in the result, and in the source."""
    return slice(max(0, by), size + min(0, by)), slice(max(0, -by), size - max(0, by))
