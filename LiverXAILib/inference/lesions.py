# SPDX-License-Identifier: Apache-2.0
"""Single lesions: the connected components of a lesion label, with the numbers that are used everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
from scipy import ndimage

from ..volumes.box import Box, bounding_box, central_voxel, components
from ..volumes.volume import Grid, Volume
from .masks import Mask
from .segmentation import Segmentation

#: A point in LPS mm.
Point = tuple[float, float, float]

#: Smaller components are not candidates: see :class:`~LiverXAILib.inference.postprocess.Postprocessing`.
LEAST_CANDIDATE_ML = 0.05
#: For each segmentation in use, by label, the box around its lesions and their numbers there: nearly every step of an
#: analysis needs them. Segmentations are immutable.
_NUMBERED: WeakKeyDictionary[Segmentation, dict[str, tuple[Box, np.ndarray]]] = WeakKeyDictionary()
#: The smallest box of the image around each of these lesions.
_BOXES: WeakKeyDictionary[Segmentation, dict[str, list[Box]]] = WeakKeyDictionary()
#: The same as the first for candidates, see :func:`numbered_candidates`.
_CANDIDATES: WeakKeyDictionary[Segmentation, dict[str, tuple[Box, np.ndarray]]] = WeakKeyDictionary()
#: For the probabilities of refined lesions, the numbers of what is marked, and their boxes.
_MARKED: WeakKeyDictionary[Volume, tuple[np.ndarray, list[Box]]] = WeakKeyDictionary()


def lesion_components(segmentation: Segmentation, label: str = "tumor") -> np.ndarray:
    """Number the lesions: int32 (k, j, i) on the input's grid, 0 background, 1 the largest lesion, 2 the next …

    Voxels that touch by a face, edge or corner (26-neighbors) belong to one lesion. Lesions of equal size are
    numbered in scan order, so that the numbers are the same in table, heat maps and report.
    """
    box, pieces = numbered_lesions(segmentation, label)
    numbers = np.zeros(segmentation.labels.shape, dtype=np.int32)
    numbers[box] = pieces
    return numbers


def lesion_mask(segmentation: Segmentation, number: int, label: str = "tumor") -> np.ndarray:
    """The mask of the lesion `number` of :func:`lesion_components`: bool (k, j, i) on the input's grid."""
    return _lesion(segmentation, number, label).on(Box.full(segmentation.labels.shape))


def _lesion(segmentation: Segmentation, number: int, label: str) -> Mask:
    """A lesion in the smallest box around it."""
    box, pieces = numbered_lesions(segmentation, label)
    boxes = lesion_boxes(segmentation, label)
    if not 0 < number <= len(boxes):
        return Mask.empty()
    own = boxes[number - 1]
    return Mask(own, pieces[own.relative_to(box)] == number)


def as_marked(segmentation: Segmentation, number: int, label: str = "tumor") -> Mask:
    """A lesion in the smallest box around it, as the network of the model's last stage segmented it.

    It is the lesion itself if lesions are not refined, if a reader changed its outline, or if that network
    segmented nothing there.

    :param number: as in :func:`lesion_components`.
    """
    lesion = _lesion(segmentation, number, label)
    return _marked_by_network(segmentation, lesion, label) or lesion


def _marked_by_network(segmentation: Segmentation, lesion: Mask, label: str) -> Mask | None:
    """The mask of :func:`as_marked` if it is not the lesion itself."""
    by_network, final = segmentation.network_probability(label), segmentation.probabilities.get(label)
    if by_network is None or final is None or by_network is final:
        return None
    known = segmentation.labels.grid.box_of(final.grid)
    if known.intersection(lesion.box) != lesion.box:
        return None
    at = tuple((np.argwhere(lesion.voxels) + lesion.box.start - known.start).T)
    size = sum(np.count_nonzero(part) for _, part in _marked_at(final, at))
    found = list(_marked_at(by_network, at))
    if not found or size != len(at[0]) or not above_half(final.array[at]).all():  # or a reader changed it
        return None
    box = Box.union(one.box for one in found)
    return Mask(box.shifted(known.start), np.logical_or.reduce([one.on(box) for one in found]))


def _marked_at(probability: Volume, voxels: tuple[np.ndarray, ...]) -> Iterator[Mask]:
    """The components of probabilities above 0.5 that contain one of the voxels, each in its own box."""
    if probability not in _MARKED:
        numbers = components(above_half(probability.array), corners=True)
        _MARKED[probability] = numbers, _boxes(numbers)
    numbers, boxes = _MARKED[probability]
    for number in set(numbers[voxels].tolist()) - {0}:
        yield Mask(boxes[number - 1], numbers[boxes[number - 1]] == number)


def _boxes(numbers: np.ndarray) -> list[Box]:
    """The smallest box around each of the components numbered from 1."""
    return [Box(*found) for found in ndimage.find_objects(numbers)] if numbers.size else []


def lesion_place(mask: np.ndarray, grid: Grid) -> Point:
    """The voxel of a lesion nearest to its centroid, in LPS mm; it identifies the lesion even if its number changes."""
    box = bounding_box(mask)
    assert box is not None  # a lesion has voxels
    x, y, z = grid.to_lps((central_voxel(np.argwhere(mask[box])) + box.start)[::-1])
    return float(x), float(y), float(z)


def lesion_at(numbers: np.ndarray, grid: Grid, place_lps_mm: Point, within_mm: float | None = None) -> int:
    """The number of the lesion at a point, or nearest to it (of equally near ones, the largest); 0 if none is near.

    :param numbers: as from :func:`lesion_components`, on `grid`.
    :param within_mm: how far it may be; None: one voxel. Distances are the same to 0.01 mm: files hold rounded points.
    """
    if within_mm is None:  # faster, if the point lies in a lesion
        voxel = grid.nearest_voxel(place_lps_mm)
        if (voxel >= 0).all() and (voxel < numbers.shape).all() and (number := int(numbers[tuple(voxel)])):
            return number
    voxels = np.argwhere(numbers)
    if not len(voxels):
        return 0
    distance = np.linalg.norm(grid.to_lps(voxels[:, ::-1]) - np.array(place_lps_mm), axis=1)
    nearest = voxels[distance < distance.min() + 0.01]
    most = max(grid.spacing) if within_mm is None else within_mm
    return int(numbers[tuple(nearest.T)].min()) if distance.min() < most + 0.01 else 0


def lesion_count(segmentation: Segmentation, label: str = "tumor") -> int:
    """The number of lesions in :func:`lesion_components`."""
    return int(numbered_lesions(segmentation, label)[1].max(initial=0))


def numbered_lesions(segmentation: Segmentation, label: str = "tumor") -> tuple[Box, np.ndarray]:
    """:func:`lesion_components` in the smallest box around them (an empty one if there are none), computed once."""
    known = _NUMBERED.setdefault(segmentation, {})
    if label not in known:
        found = segmentation.box or Box.full((0, 0, 0))
        mask = segmentation.mask(label, found)
        own = bounding_box(mask) or Box.full((0, 0, 0))
        known[label] = own.shifted(found.start), components(mask[own], corners=True, largest_first=True)
    return known[label]


def lesion_boxes(segmentation: Segmentation, label: str = "tumor") -> list[Box]:
    """The smallest box of the image around each lesion of :func:`lesion_components`, computed once."""
    known = _BOXES.setdefault(segmentation, {})
    if label not in known:
        box, pieces = numbered_lesions(segmentation, label)
        known[label] = [own.shifted(box.start) for own in _boxes(pieces)]
    return known[label]


def same_lesions(before: Segmentation, after: Segmentation, label: str = "tumor") -> dict[int, int]:
    """The lesions that have the same voxels in two segmentations of one image: number in `before`, number in `after`.

    Lesions are renumbered whenever another one is added, removed or changes its size.
    """
    return same_numbers(numbered_lesions(before, label), numbered_lesions(after, label))


def same_numbers(before: tuple[Box, np.ndarray], after: tuple[Box, np.ndarray]) -> dict[int, int]:
    """The components that have the same voxels: number in `before`, number in `after`.

    :param before, after: a box of one image, and the numbers of the components in it.
    """
    (first, old), (second, new) = before, after
    common = first.intersection(second)
    if common is None:
        return {}
    old_sizes, new_sizes = np.bincount(old[old > 0]), np.bincount(new[new > 0])
    one, other = old[common.relative_to(first)], new[common.relative_to(second)]
    both = (one > 0) & (other > 0)
    pairs, shared = np.unique(one[both] * new_sizes.size + other[both], return_counts=True)
    numbers = np.stack(np.divmod(pairs, new_sizes.size))
    whole = (shared == old_sizes[numbers[0]]) & (shared == new_sizes[numbers[1]])
    return dict(numbers[:, whole].T.tolist())


def candidate_components(segmentation: Segmentation, label: str = "tumor") -> np.ndarray:
    """Number the candidates: components that the network segments as `label` without reaching the operating point.

    A candidate is a connected component of probability above 0.5 that is not in the label map because its score
    reaches the card's peak threshold nowhere. It has at least :data:`LEAST_CANDIDATE_ML`, at least half of it lies in
    the label's parent (the liver), and it does not touch a voxel of `label`, or it would be the rim of a lesion.

    :return: int32 (k, j, i) on the input's grid, 0 background, 1 the largest candidate, 2 the next …; all 0 if the
        segmentation has no probabilities of `label`.
    """
    numbers = np.zeros(segmentation.labels.shape, dtype=np.int32)
    box, pieces = numbered_candidates(segmentation, label)
    numbers[box] = pieces
    return numbers


def numbered_candidates(segmentation: Segmentation, label: str = "tumor") -> tuple[Box, np.ndarray]:
    """:func:`candidate_components` in a box of the image that holds all of them, computed once."""
    known = _CANDIDATES.setdefault(segmentation, {})
    if label not in known:
        known[label] = _numbered_candidates(segmentation, label)
    return known[label]


def _numbered_candidates(segmentation: Segmentation, label: str) -> tuple[Box, np.ndarray]:
    nothing = Box.full((0, 0, 0)), np.zeros((0, 0, 0), dtype=np.int32)
    probability = segmentation.probabilities.get(label)
    if probability is None:
        return nothing
    known = segmentation.labels.grid.box_of(probability.grid)
    counted = segmentation.mask(label, known)
    marked = above_half(probability.array) & ~counted
    box = bounding_box(marked)
    if box is None:
        return nothing
    box = box.grown((1, 1, 1), marked.shape)  # voxels that touch a component from outside matter too
    counted, whole = counted[box], box.shifted(known.start)
    pieces = components(marked[box], corners=True)
    sizes = np.bincount(pieces.ravel())
    keep = sizes * segmentation.labels.grid.voxel_volume_mm3 >= LEAST_CANDIDATE_ML * 1000
    parent = segmentation.spec(label).parent
    if parent is not None:
        inside = segmentation.mask(parent, whole)
        keep &= 2 * np.bincount(pieces[inside], minlength=sizes.size) >= sizes
    keep[np.unique(pieces[grown(counted)])] = False
    keep[0] = False
    return whole, components(keep[pieces], corners=True, largest_first=True)


def above_half(probability: np.ndarray) -> np.ndarray:
    """The mask of probabilities above 0.5. Half precision is compared by its bits, because NumPy compares it slowly."""
    if probability.dtype == np.float16:
        return probability.view(np.uint16) > np.float16(0.5).view(np.uint16)
    return probability > 0.5


def grown(mask: np.ndarray) -> np.ndarray:
    """`mask` and the voxels that touch it by a face, edge or corner."""
    grown = mask.copy()
    for axis in range(3):
        once = grown.copy()
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        once[tuple(ahead)] |= grown[tuple(behind)]
        once[tuple(behind)] |= grown[tuple(ahead)]
        grown = once
    return grown
