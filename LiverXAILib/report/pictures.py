# SPDX-License-Identifier: Apache-2.0
"""Pictures for reports: upright slices of a CT with outlines, heat maps and calipers.

Whatever the image's orientation, slices are resampled along the patient's axes and shown in radiological convention:
the patient's left is on the right of axial and coronal pictures, anterior on the left of sagittal ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import contourpy
import numpy as np

from ..analysis import Analysis
from ..explain.explanation import Explanation
from ..inference.lesions import numbered_lesions
from ..inference.segmentation import Segmentation
from ..measure.measurements import Candidate, LesionMeasurements, Measurements, RejectedLesion
from ..models.spec import LabelSpec
from ..volumes.box import Box, bounding_box
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .canvas import Line, Picture, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Display window in HU: level 40, width 400, the usual one for the abdomen.
WINDOW_HU = (-160.0, 240.0)
#: The maximum number of lesions that are pictured, the largest first.
MAX_LESIONS = 8
#: Total width of the three slices of an overview, and width of each of the two pictures of a lesion, in pixels.
_OVERVIEW_PIXELS, _LESION_PIXELS = 1500, 375

_MARGIN_MM = 35.0
_LESION_FIELD_MM = 60.0
_AIR_HU, _NOWHERE = -1024.0, -10_000.0
_DIRECTIONS = (("L", "R"), ("P", "A"), ("S", "I"))
_TICK_COLOR = (158, 202, 225)


@dataclass(frozen=True)
class Plane:
    """The LPS directions that point right and down in a picture, and its letters: left, right, top, bottom."""

    name: str
    right: np.ndarray
    down: np.ndarray
    letters: str

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.right, self.down)

    def flat(self, lps: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) → mm to the right and down (..., 2)."""
        return np.asarray(lps) @ np.column_stack([self.right, self.down])


_LEFT, _POSTERIOR, _SUPERIOR = np.eye(3)
PLANES = (
    Plane("axial", _LEFT, _POSTERIOR, "RLAP"),
    Plane("coronal", _LEFT, -_SUPERIOR, "RLSI"),
    Plane("sagittal", _POSTERIOR, -_SUPERIOR, "APSI"),
)


@dataclass(frozen=True)
class View:
    """One picture: a plane through `center` (LPS mm), from `low` to `high` (mm to the right and down)."""

    plane: Plane
    center: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pixel_mm: float

    @property
    def grid(self) -> Grid:
        """The picture's pixels as a grid of one slice."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.column_stack([self.plane.right, self.plane.down, self.plane.normal]) * self.pixel_mm
        depth = float(self.center @ self.plane.normal)
        first = self.low + self.pixel_mm / 2
        matrix[:3, 3] = first @ np.stack([self.plane.right, self.plane.down]) + depth * self.plane.normal
        columns, rows = (max(2, int(n)) for n in np.ceil((self.high - self.low) / self.pixel_mm))
        return Grid((1, rows, columns), matrix)

    def shown(self, volume: Volume, window_hu: tuple[float, float], changed: Volume | None = None) -> Picture:
        """The slice of a CT, without drawings.

        :param changed: shown instead of `volume` where it has voxels.
        """
        hu = sample(volume, self.grid, _AIR_HU)
        if changed is not None:
            edited = sample(changed, self.grid, _NOWHERE)
            hu = np.where(edited > _NOWHERE / 2, edited, hu)
        return Picture(hu, window_hu, (float(self.low[0]), float(self.low[1])), self.pixel_mm)


def render_planes(analysis: Analysis, explanation: Explanation | None = None) -> dict[str, Picture]:
    """Axial, coronal and sagittal slices with the outlines of all labels; with `explanation`, its heat map on top.

    The slices intersect in the largest lesion, or in the liver's center if there is none; those of an explanation of
    one lesion or place intersect there. All have the same scale. Lesions that a slice cuts are numbered.

    :return: the pictures by plane.
    """
    pictures = {}
    for view in _overview(analysis, explanation):
        picture = view.shown(analysis.volume, WINDOW_HU)
        if explanation is not None:
            heat = np.clip(sample(explanation.heatmap, view.grid, 0.0), 0, 1)
            picture = replace(picture, heat=heat)
        for spec in analysis.segmentation.specs:
            draw_outline(picture, view, analysis.segmentation, spec)
        _draw_other_planes(picture, view)
        draw_letters(picture, view)
        draw_scale_bar(picture)
        _draw_lesion_numbers(picture, view, analysis.segmentation, analysis.measurements.lesions)
        rows, columns = picture.hu.shape
        picture.texts.append(Text(_depth(view), (0.02 * columns, 0.02 * rows), "lt"))
        pictures[view.plane.name] = picture
    return pictures


def render_lesion(
    analysis: Analysis, lesion: LesionMeasurements | Candidate | RejectedLesion
) -> tuple[Picture, Picture]:
    """A lesion or candidate in the slice of its longest axial diameter, twice.

    Once in the abdominal window with calipers, and once without calipers in a narrow window centered on the liver's own
    HU, in which faint lesions are visible.
    """
    view = _lesion_view(analysis.volume.grid, lesion)
    tumor = next(spec for spec in analysis.segmentation.specs if spec.is_lesion)
    marked = view.shown(analysis.volume, WINDOW_HU)
    plain = replace(marked, window_hu=liver_window_hu(analysis.measurements), lines=[], texts=[])
    draw_outline(marked, view, analysis.segmentation, tumor)
    for ends, dashed in ((lesion.axial.long_ends_lps_mm, False), (lesion.axial.short_ends_lps_mm, True)):
        marked.lines.append(Line(view.plane.flat(np.array(ends)), width=2.3, dashed=dashed))
    draw_letters(marked, view)
    for picture in (marked, plain):
        draw_scale_bar(picture)
    return marked, plain


def liver_window_hu(measurements: Measurements) -> tuple[float, float]:
    """A display window in HU, 150 wide and centered on this patient's liver."""
    center = measurements.liver_mean_hu if measurements.liver_mean_hu is not None else sum(WINDOW_HU) / 2
    return center - 75.0, center + 75.0


def render_curves(curves: Mapping[str, Any]) -> Figure:
    """Deletion and insertion: the model's confidence while the most influential part is removed or restored.

    :param curves: "deletion" and "insertion", the confidence, and "fractions", the fractions of the volume that
        were changed. These are cubic, and so is the axis, because a target is a small part of the volume.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.7), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for name, color, line in (("deletion", "#b2182b", "-"), ("insertion", "#2166ac", "--")):
        axes.plot(np.cbrt(curves["fractions"]), curves[name], line, color=color, linewidth=1.8, label=name)
    percent = (0, 0.1, 1, 5, 20, 50, 100)
    axes.set_xticks(np.cbrt(np.array(percent) / 100), [f"{value:g}" for value in percent])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("changed part of the volume, most influential first, %", fontsize=8)
    axes.set_ylabel("model's confidence (0 to 1)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _overview(analysis: Analysis, explanation: Explanation | None) -> list[View]:
    """The three views: the field of view covers the liver with a margin; all have the same scale."""
    image_low, image_high = _box(analysis.volume.grid, np.array(analysis.volume.shape) - 1)
    found = _found(analysis.segmentation, "liver")
    low, high = image_low, image_high
    center = (low + high) / 2
    if found is not None:
        box, liver = found
        box_low, box_high = _box(analysis.volume.grid, np.array(box.stop) - 1, np.array(box.start))
        low, high = np.maximum(low, box_low - _MARGIN_MM), np.minimum(high, box_high + _MARGIN_MM)
        # As tall as deep where the image allows, so that the three pictures fit side by side without a gap.
        depth = high[1] - low[1]
        low[2] = max(image_low[2], min(low[2], (low[2] + high[2] - depth) / 2))
        high[2] = min(image_high[2], max(high[2], low[2] + depth))
        low[2] = max(image_low[2], min(low[2], high[2] - depth))
        center = analysis.volume.grid.to_lps(liver[::-1])
    if analysis.measurements.lesions:
        center = np.array(analysis.measurements.lesions[0].centroid_lps_mm)
    if explanation is not None and (focus := explanation.target.focus(analysis.segmentation)) is not None:
        center = focus
    low, high = np.minimum(low, center - _MARGIN_MM), np.maximum(high, center + _MARGIN_MM)
    corners = [np.stack([plane.flat(low), plane.flat(high)]) for plane in PLANES]
    pixel_mm = sum(float(np.ptp(ends[:, 0])) for ends in corners) / _OVERVIEW_PIXELS
    return [
        View(plane, center, ends.min(axis=0), ends.max(axis=0), pixel_mm)
        for plane, ends in zip(PLANES, corners, strict=True)
    ]


def _found(segmentation: Segmentation, name: str) -> tuple[Box, np.ndarray] | None:
    """The box around a structure and the mean (k, j, i) of its voxels; None if it was not found."""
    if segmentation.box is None:
        return None
    mask = segmentation.mask(name, segmentation.box)
    box = bounding_box(mask)
    if box is None:
        return None
    counts = [np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    mean = [float(np.average(np.arange(len(count)), weights=count)) for count in counts]
    return box.shifted(segmentation.box.start), np.array(mean) + segmentation.box.start


def _lesion_view(grid: Grid, lesion: LesionMeasurements | Candidate | RejectedLesion) -> View:
    """The image's own slice in which the lesion was measured, with left pointing right and posterior down."""
    axis = "ijk".index(lesion.axial.slice_axis)
    across = np.delete(grid.ijk_to_lps[:3, :3], axis, axis=1)
    normal = np.cross(across[:, 0], across[:, 1])
    normal /= np.linalg.norm(normal) * np.sign(normal[2])
    right = _LEFT - normal[0] * normal
    right /= np.linalg.norm(right)
    plane = Plane("axial", right, np.cross(normal, right), "RLAP")
    center = np.array(lesion.axial.long_ends_lps_mm).mean(axis=0)
    field = max(_LESION_FIELD_MM, 1.5 * lesion.axial.long_mm)
    middle = plane.flat(center)
    return View(plane, center, middle - field / 2, middle + field / 2, field / _LESION_PIXELS)


def _box(grid: Grid, high_kji: np.ndarray, low_kji: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The axis-aligned box in LPS mm around a box of voxels, including their faces."""
    low = np.zeros(3) if low_kji is None else low_kji
    (k0, j0, i0), (k1, j1, i1) = low - 0.5, high_kji + 0.5
    corners = grid.to_lps(np.array([(i, j, k) for i in (i0, i1) for j in (j0, j1) for k in (k0, k1)]))
    return corners.min(axis=0), corners.max(axis=0)


def sample(volume: Volume, grid: Grid, fill: float) -> np.ndarray:
    """One slice (rows, columns) of a volume on a grid of one slice; only the needed part of the volume is read."""
    part = _part_around(volume.grid, grid)
    if part is None:
        return np.full(grid.shape[1:], fill, np.float32)
    cropped = volume.cropped(part)
    return resample(cropped.array, cropped.grid, grid, fill=fill)[0].numpy()


def _part_around(source: Grid, grid: Grid) -> Box | None:
    """The voxels of `source` that a slice on `grid` needs, or None."""
    _, rows, columns = grid.shape
    corners = np.array([(0, 0, 0), (columns - 1, 0, 0), (0, rows - 1, 0), (columns - 1, rows - 1, 0)])
    kji = source.to_ijk(grid.to_lps(corners))[:, ::-1]
    margin = 2 + np.ceil(grid.spacing[0] / np.array(source.spacing[::-1]))
    low = np.floor(kji.min(axis=0)) - margin
    high = np.ceil(kji.max(axis=0)) + margin + 1
    return Box.between(low, high).intersection(Box.full(source.shape))


def draw_outline(picture: Picture, view: View, segmentation: Segmentation, spec: LabelSpec) -> None:
    """Draw the outline of a structure in its color."""
    grid = segmentation.labels.grid
    part = _part_around(grid, view.grid)
    # Everything outside the found box is background, of which the outline needs two voxels.
    around = None if segmentation.box is None else segmentation.box.grown((2, 2, 2), grid.shape)
    if part is None or around is None or (part := part.intersection(around)) is None:
        return
    mask = Volume(segmentation.mask(spec.name, part).view(np.uint8), grid.cropped(part).ijk_to_lps)
    inside = sample(mask, view.grid, 0.0)
    if inside.max() < 0.5:
        return
    for points in contourpy.contour_generator(z=inside).lines(0.5):
        picture.lines.append(Line((np.asarray(points) + 0.5) * view.pixel_mm + view.low, spec.color))


def draw_letters(picture: Picture, view: View) -> None:
    """Draw L, R, A, P, S and I at the edges."""
    rows, columns = picture.hu.shape
    places = (((0.035, 0.5), "lm"), ((0.965, 0.5), "rm"), ((0.5, 0.035), "mt"), ((0.5, 0.965), "mb"))
    for letter, ((x, y), anchor) in zip(view.plane.letters, places, strict=True):
        picture.texts.append(Text(letter, (x * columns, y * rows), anchor, 19.0))


def draw_scale_bar(picture: Picture) -> None:
    """Draw a bar of 1, 2 or 5 cm in the lower left corner."""
    width, height = picture.size_mm
    length = next((mm for mm in (50, 20) if width > 4 * mm), 10)
    margin = 0.04 * width
    start = np.add(picture.corner_mm, (margin, height - margin))
    picture.lines.append(Line(np.stack([start, np.add(start, (length, 0.0))]), width=4.0))
    x, y = picture.to_pixels(start)
    picture.texts.append(Text(f"{length // 10} cm", (float(x), float(y) - 6), "ls", 16.0, bold=False))


def _draw_other_planes(picture: Picture, view: View) -> None:
    """Draw ticks at the edges where the other two slices intersect this one."""
    (left, top), (width, height) = picture.corner_mm, picture.size_mm
    right, bottom = left + width, top + height
    x, y = view.plane.flat(view.center)
    tick = 0.025 * width
    for ends in (
        ((x, top), (x, top + tick)),
        ((x, bottom - tick), (x, bottom)),
        ((left, y), (left + tick, y)),
        ((right - tick, y), (right, y)),
    ):
        picture.lines.append(Line(np.array(ends), _TICK_COLOR, 2.0, halo=False))


def _draw_lesion_numbers(
    picture: Picture, view: View, segmentation: Segmentation, lesions: Sequence[LesionMeasurements]
) -> None:
    """Draw the number next to each lesion that the slice cuts."""
    rows, columns = picture.hu.shape
    cut = _lesions_in(view.grid, segmentation) if lesions else set()
    for lesion in lesions[:MAX_LESIONS]:
        center = np.array(lesion.centroid_lps_mm)
        radius = lesion.feret_mm / 2
        if lesion.number not in cut:
            continue
        x, y = picture.to_pixels(np.add(view.plane.flat(center), (0.7 * radius, -0.7 * radius)))
        if 0 <= x < columns and 0 <= y < rows:
            picture.texts.append(Text(str(lesion.number), (float(x) + 4, float(y) - 4), "ls"))


def _lesions_in(slice_grid: Grid, segmentation: Segmentation) -> set[int]:
    """The numbers of the lesions in which a pixel of a slice lies."""
    box, numbers = numbered_lesions(segmentation)
    _, rows, columns = slice_grid.shape
    pixels = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), 0, indexing="ij"), axis=-1).reshape(-1, 3)
    ijk = segmentation.labels.grid.cropped(box).to_ijk(slice_grid.to_lps(pixels))
    kji = np.rint(ijk[:, ::-1]).astype(int)
    inside = kji[((kji >= 0) & (kji < numbers.shape)).all(axis=1)]
    return set(np.unique(numbers[tuple(inside.T)]).tolist()) - {0}


def _depth(view: View) -> str:
    """The position of a slice, e.g. "S 105 mm"."""
    axis = int(np.argmax(np.abs(view.plane.normal)))
    position = float(view.center[axis])
    return f"{_DIRECTIONS[axis][0 if position >= 0 else 1]} {abs(position):.0f} mm"
