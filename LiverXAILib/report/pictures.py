# SPDX-License-Identifier: Apache-2.0
"""Pictures for reports: upright slices of a CT with outlines, heat maps and calipers. Needs the extra ``report``.

Whatever way the image lies, slices are resampled along the patient's axes and shown as radiologists are used to:
the patient's left is on the right of axial and coronal pictures, anterior on the left of sagittal ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..analysis import Analysis
from ..colors import HEAT_COLORS, VISIBLE_HEAT
from ..explain.explanation import Explanation
from ..measure.measurements import Candidate, LesionMeasurements, Measurements
from ..models.spec import LabelSpec
from ..volumes.box import Box
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume

#: Display window in HU: level 40, width 400, the usual one for the abdomen.
WINDOW_HU = (-160.0, 240.0)
HEAT_MAP = LinearSegmentedColormap.from_list("LiverXAI heat map", np.array(HEAT_COLORS) / 255)

_MARGIN_MM = 35.0
#: As many lesions are pictured, the largest first.
MAX_LESIONS = 8

_LESION_FIELD_MM = 60.0
_AIR_HU = -1024.0
_DIRECTIONS = (("L", "R"), ("P", "A"), ("S", "I"))
_HALO = [withStroke(linewidth=2.2, foreground="black", alpha=0.75)]
_TEXT: dict[str, Any] = {"color": "white", "fontsize": 8.5, "fontweight": "bold", "path_effects": _HALO}


@dataclass(frozen=True)
class _Plane:
    """Which LPS direction runs to the right of a picture, which one down, and the letters left, right, top, bottom."""

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
_PLANES = (
    _Plane("axial", _LEFT, _POSTERIOR, "RLAP"),
    _Plane("coronal", _LEFT, -_SUPERIOR, "RLSI"),
    _Plane("sagittal", _POSTERIOR, -_SUPERIOR, "APSI"),
)


@dataclass(frozen=True)
class _View:
    """One picture: a plane through `center` (LPS mm), from `low` to `high` (mm to the right and down)."""

    plane: _Plane
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

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top in mm, for matplotlib."""
        _, rows, columns = self.grid.shape
        width, height = columns * self.pixel_mm, rows * self.pixel_mm
        return float(self.low[0]), float(self.low[0] + width), float(self.low[1] + height), float(self.low[1])


def render_planes(analysis: Analysis, explanation: Explanation | None = None) -> dict[str, Figure]:
    """Axial, coronal and sagittal slices with the outlines of all labels; with `explanation`, its heat map over them.

    The slices meet in the largest lesion, or in the liver's center if there is none; those of an explanation of one
    lesion or place meet there. All have the same scale. Lesions that a slice cuts bear their numbers.

    :return: the figures by plane; each is as large as its slice, without a frame.
    """
    views = _overview(analysis, explanation)
    inches_per_mm = 10.0 / sum(float(view.high[0] - view.low[0]) for view in views)
    specs = analysis.segmentation.specs
    masks = {spec.name: _volume_of(analysis.segmentation.mask(spec.name), analysis) for spec in specs}
    figures = {}
    for view in views:
        width, height = (view.high - view.low) * inches_per_mm
        figure = Figure(figsize=(float(width), float(height)), dpi=150)
        axes = figure.add_axes((0, 0, 1, 1))
        _draw_ct(axes, view, analysis.volume, WINDOW_HU)
        if explanation is not None:
            _draw_heat(axes, view, explanation.heatmap)
        for spec in specs:
            _draw_outline(axes, view, masks[spec.name], spec)
        _draw_other_planes(axes, view)
        _draw_letters(axes, view)
        _draw_scale_bar(axes, view)
        _draw_lesion_numbers(axes, view, analysis.measurements.lesions)
        axes.text(0.02, 0.98, _depth(view), transform=axes.transAxes, va="top", **_TEXT)
        figures[view.plane.name] = figure
    return figures


def render_lesion(analysis: Analysis, lesion: LesionMeasurements | Candidate) -> Figure:
    """A lesion or candidate in the slice of its longest axial diameter, twice: in the abdominal window with calipers,
    and without them in a narrow window centered on the liver's own HU, in which faint lesions can be seen."""
    view = _lesion_view(analysis.volume.grid, lesion)
    figure = Figure(figsize=(5.0, 2.5), dpi=150)
    tumor = next(spec for spec in analysis.segmentation.specs if spec.is_lesion)
    for column, window in enumerate((WINDOW_HU, liver_window_hu(analysis.measurements))):
        axes = figure.add_axes((0.5 * column, 0, 0.5, 1))
        _draw_ct(axes, view, analysis.volume, window)
        if column == 0:
            _draw_outline(axes, view, _volume_of(analysis.segmentation.mask(tumor.name), analysis), tumor)
            for ends, style in ((lesion.axial.long_ends_lps_mm, "-"), (lesion.axial.short_ends_lps_mm, "--")):
                x, y = view.plane.flat(np.array(ends)).T
                axes.plot(x, y, style, color="white", linewidth=1.1, path_effects=_HALO)
            _draw_letters(axes, view)
        _draw_scale_bar(axes, view)
    return figure


def liver_window_hu(measurements: Measurements) -> tuple[float, float]:
    """A display window in HU, 150 wide and centered on this patient's liver."""
    center = measurements.liver_mean_hu if measurements.liver_mean_hu is not None else sum(WINDOW_HU) / 2
    return center - 75.0, center + 75.0


def render_curves(curves: Mapping[str, Any]) -> Figure:
    """Deletion and insertion: the model's answer while the most influential part is taken away or put back.

    :param curves: "deletion" and "insertion", values of the answer, and "fractions", the parts of the volume that
        were changed. These grow with the cube, and so does the axis: a target is a small part of the volume.
    """
    figure = Figure(figsize=(4.4, 2.7), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for name, color, line in (("deletion", "#b2182b", "-"), ("insertion", "#2166ac", "--")):
        axes.plot(np.cbrt(curves["fractions"]), curves[name], line, color=color, linewidth=1.8, label=name)
    percent = (0, 0.1, 1, 5, 20, 50, 100)
    axes.set_xticks(np.cbrt(np.array(percent) / 100), [f"{value:g}" for value in percent])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("changed part of the volume, most influential first, %", fontsize=8)
    axes.set_ylabel("model's answer (0 to 1)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _overview(analysis: Analysis, explanation: Explanation | None) -> list[_View]:
    """The three views: the field of view is the liver's with a margin, the same scale in all."""
    image_low, image_high = _box(analysis.volume.grid, np.array(analysis.volume.shape) - 1)
    liver = np.argwhere(analysis.segmentation.mask("liver"))
    low, high = image_low, image_high
    center = (low + high) / 2
    if len(liver):
        box_low, box_high = _box(analysis.volume.grid, liver.max(axis=0), liver.min(axis=0))
        low, high = np.maximum(low, box_low - _MARGIN_MM), np.minimum(high, box_high + _MARGIN_MM)
        # As tall as deep where the image allows, so that the three pictures stand side by side without a gap.
        depth = high[1] - low[1]
        low[2] = max(image_low[2], min(low[2], (low[2] + high[2] - depth) / 2))
        high[2] = min(image_high[2], max(high[2], low[2] + depth))
        low[2] = max(image_low[2], min(low[2], high[2] - depth))
        center = analysis.volume.grid.to_lps(liver.mean(axis=0)[::-1])
    if analysis.measurements.lesions:
        center = np.array(analysis.measurements.lesions[0].centroid_lps_mm)
    if explanation is not None and (focus := explanation.target.focus(analysis.segmentation)) is not None:
        center = focus
    low, high = np.minimum(low, center - _MARGIN_MM), np.maximum(high, center + _MARGIN_MM)
    pixel_mm = float((high - low).max()) / 480
    views = []
    for plane in _PLANES:
        corners = np.stack([plane.flat(low), plane.flat(high)])
        views.append(_View(plane, center, corners.min(axis=0), corners.max(axis=0), pixel_mm))
    return views


def _lesion_view(grid: Grid, lesion: LesionMeasurements | Candidate) -> _View:
    """The image's own slice in which the lesion was measured, turned to the patient's left and posterior."""
    axis = "ijk".index(lesion.axial.slice_axis)
    across = np.delete(grid.ijk_to_lps[:3, :3], axis, axis=1)
    normal = np.cross(across[:, 0], across[:, 1])
    normal /= np.linalg.norm(normal) * np.sign(normal[2])
    right = _LEFT - normal[0] * normal
    right /= np.linalg.norm(right)
    plane = _Plane("axial", right, np.cross(normal, right), "RLAP")
    center = np.array(lesion.axial.long_ends_lps_mm).mean(axis=0)
    field = max(_LESION_FIELD_MM, 1.5 * lesion.axial.long_mm)
    middle = plane.flat(center)
    return _View(plane, center, middle - field / 2, middle + field / 2, field / 320)


def _box(grid: Grid, high_kji: np.ndarray, low_kji: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The upright box in LPS mm around a box of voxels, faces included."""
    low = np.zeros(3) if low_kji is None else low_kji
    (k0, j0, i0), (k1, j1, i1) = low - 0.5, high_kji + 0.5
    corners = grid.to_lps(np.array([(i, j, k) for i in (i0, i1) for j in (j0, j1) for k in (k0, k1)]))
    return corners.min(axis=0), corners.max(axis=0)


def _volume_of(mask: np.ndarray, analysis: Analysis) -> Volume:
    return Volume(mask.view(np.uint8), analysis.volume.ijk_to_lps)


def _sample(volume: Volume, grid: Grid, fill: float) -> np.ndarray:
    """One upright slice (rows, columns) of a volume; only the part that the slice needs is touched."""
    _, rows, columns = grid.shape
    corners = np.array([(0, 0, 0), (columns - 1, 0, 0), (0, rows - 1, 0), (columns - 1, rows - 1, 0)])
    kji = volume.grid.to_ijk(grid.to_lps(corners))[:, ::-1]
    margin = 2 + np.ceil(grid.spacing[0] / np.array(volume.spacing[::-1]))
    low = np.maximum(np.floor(kji.min(axis=0)) - margin, 0).astype(int)
    high = np.minimum(np.ceil(kji.max(axis=0)) + margin + 1, volume.shape).astype(int)
    if (low >= high).any():
        return np.full((rows, columns), fill, np.float32)
    part = volume.cropped(Box.between(low, high))
    return resample(part.array, part.grid, grid, fill=fill)[0].numpy()


def _draw_ct(axes: Axes, view: _View, volume: Volume, window_hu: tuple[float, float]) -> None:
    low, high = window_hu
    slice_hu = _sample(volume, view.grid, _AIR_HU)
    axes.imshow(slice_hu, cmap="gray", vmin=low, vmax=high, extent=view.extent, interpolation="bilinear")
    axes.set_axis_off()
    axes.set_anchor("N")


def _draw_heat(axes: Axes, view: _View, heatmap: Volume) -> None:
    heat = np.clip(_sample(heatmap, view.grid, 0.0), 0, 1)
    rgba = HEAT_MAP(heat)
    # Fades in from the threshold on, so that no false edge appears where it is crossed.
    rgba[..., 3] = np.clip((heat - VISIBLE_HEAT) / 0.15, 0, 1) * (0.4 + 0.25 * heat)
    axes.imshow(rgba, extent=view.extent, interpolation="bilinear")


def _draw_outline(axes: Axes, view: _View, mask: Volume, spec: LabelSpec) -> None:
    inside = _sample(mask, view.grid, 0.0)
    if inside.max() < 0.5:
        return
    left, right, bottom, top = view.extent
    rows, columns = inside.shape
    half = view.pixel_mm / 2
    lines = axes.contour(
        np.linspace(left + half, right - half, columns),
        np.linspace(top + half, bottom - half, rows),
        inside,
        levels=[0.5],
        colors=[_color(spec)],
        linewidths=1.2,
    )
    lines.set(path_effects=_HALO)


def _draw_letters(axes: Axes, view: _View) -> None:
    places = (
        (0.035, 0.5, "left", "center"),
        (0.965, 0.5, "right", "center"),
        (0.5, 0.965, "center", "top"),
        (0.5, 0.035, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(view.plane.letters, places, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical, color="white", fontsize=9,
            fontweight="bold", path_effects=_HALO,
        )  # fmt: skip


def _draw_scale_bar(axes: Axes, view: _View) -> None:
    left, right, bottom, _ = view.extent
    length = next((mm for mm in (50, 20) if right - left > 4 * mm), 10)
    x, y = left + 0.04 * (right - left), bottom - 0.04 * (right - left)
    axes.plot([x, x + length], [y, y], color="white", linewidth=2, solid_capstyle="butt", path_effects=_HALO)
    label = f"{length // 10} cm"
    axes.annotate(
        label, (x, y), xytext=(0, 3), textcoords="offset points", ha="left", va="bottom",
        color="white", fontsize=7.5, path_effects=_HALO,
    )  # fmt: skip


def _draw_other_planes(axes: Axes, view: _View) -> None:
    """Ticks at the edges tell where the other two slices cut this one."""
    left, right, bottom, top = view.extent
    x, y = view.plane.flat(view.center)
    tick = 0.025 * (right - left)
    for xs, ys in (
        ([x, x], [top, top + tick]),
        ([x, x], [bottom - tick, bottom]),
        ([left, left + tick], [y, y]),
        ([right - tick, right], [y, y]),
    ):
        axes.plot(xs, ys, color="#9ecae1", linewidth=1.0)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _draw_lesion_numbers(axes: Axes, view: _View, lesions: Sequence[LesionMeasurements]) -> None:
    """The number beside each lesion that the slice cuts, as far as its longest diameter tells."""
    for lesion in lesions[:MAX_LESIONS]:
        center = np.array(lesion.centroid_lps_mm)
        radius = lesion.feret_mm / 2
        if abs(float((center - view.center) @ view.plane.normal)) > radius:
            continue
        x, y = view.plane.flat(center)
        axes.annotate(
            str(lesion.number), (float(x) + 0.7 * radius, float(y) - 0.7 * radius), xytext=(2, 2),
            textcoords="offset points", annotation_clip=True, **_TEXT,
        )  # fmt: skip


def _color(spec: LabelSpec) -> tuple[float, float, float]:
    red, green, blue = spec.color
    return red / 255, green / 255, blue / 255


def _depth(view: _View) -> str:
    """Where a slice lies, e.g. "S 105 mm"."""
    axis = int(np.argmax(np.abs(view.plane.normal)))
    position = float(view.center[axis])
    return f"{_DIRECTIONS[axis][0 if position >= 0 else 1]} {abs(position):.0f} mm"
