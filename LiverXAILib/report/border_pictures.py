# SPDX-License-Identifier: Apache-2.0
"""Pictures of how much of the surroundings the model needs to draw an organ's border."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..analysis import Analysis
from ..explain.answers import BorderNeed
from ..volumes.volume import Volume
from .canvas import Picture
from .pictures import PLANES, WINDOW_HU, Plane, View, draw_letters, draw_scale_bar

#: From small to large needs, and more than was tried. The colors also differ in lightness.
_COLORS = ("#2c7bb6", "#7fc4e8", "#e6e6c8", "#f5923e", "#8b0a1a")
_AXIAL, _CORONAL = PLANES[0], PLANES[1]
#: The directions from which the surface is viewed.
_SIDES = {
    "from the front": _CORONAL,
    "from behind": Plane("coronal", -_CORONAL.right, _CORONAL.down, "LRSI"),
    "from below": _AXIAL,
}
_PIXELS = 420
_MARGIN_MM = 12.0


def border_legend(answer: BorderNeed) -> list[tuple[str, str]]:
    """The meaning of each color: text and color."""
    radii = answer.evidence["radii_mm"]
    words = [f"{radius:g} mm" for radius in radii] + [f"more than {radii[-1]:g} mm"]
    return list(zip(words, _COLORS, strict=True))


def border_pictures(analysis: Analysis, answer: BorderNeed) -> Iterator[tuple[str, Picture]]:
    """The surface from several sides, and an axial slice through the largest far place, each with its caption."""
    need = answer.volumes["need"]
    kji = np.argwhere(need.array)
    lps = need.grid.to_lps(kji[:, ::-1])
    colors = _colors(answer, need.array[tuple(kji.T)])
    for name, plane in _SIDES.items():
        yield f"surface, {name}", _surface(plane, lps, colors, 1.25 * max(need.spacing))
    far = answer.evidence["far"]
    center = np.array(far[0]["lps_mm"]) if far else lps.mean(axis=0)
    caption = "axial slice through the largest far place" if far else "axial slice through the middle"
    yield caption, _slice(analysis.volume, answer, _frame(_AXIAL, lps, center))


def _colors(answer: BorderNeed, values: np.ndarray) -> np.ndarray:
    """RGB (..., 3), 0 to 255, for the values of a map of needs."""
    number = np.searchsorted(answer.evidence["radii_mm"], values)
    table = np.array([[int(color[n : n + 2], 16) for n in (1, 3, 5)] for color in _COLORS])
    return table[number]


def _frame(plane: Plane, lps: np.ndarray, center: np.ndarray) -> View:
    """A view that contains all points, with a margin."""
    flat = plane.flat(lps)
    low, high = flat.min(axis=0) - _MARGIN_MM, flat.max(axis=0) + _MARGIN_MM
    return View(plane, center, low, high, float(high[0] - low[0]) / _PIXELS)


def _surface(plane: Plane, lps: np.ndarray, colors: np.ndarray, cell_mm: float) -> Picture:
    """The surface voxels that are nearest to a viewer looking along the plane's normal, shaded by their slope."""
    view = _frame(plane, lps, lps.mean(axis=0))
    _, rows, columns = view.grid.shape
    size = np.ceil((view.high - view.low) / cell_mm).astype(int) + 1
    column, row = ((plane.flat(lps) - view.low) / cell_mm).astype(int).T
    depth = -(lps @ plane.normal)
    order = np.argsort(depth, kind="stable")  # nearer voxels are painted last
    color = np.zeros((size[1], size[0], 3))
    height = np.full((size[1], size[0]), np.nan)
    color[row[order], column[order]] = colors[order]
    height[row[order], column[order]] = depth[order]
    seen = np.isfinite(height)
    slopes = np.gradient(np.where(seen, height, np.nanmin(height)), cell_mm)
    shade = 1 / np.sqrt(1 + 0.35 * np.minimum(slopes[0] ** 2 + slopes[1] ** 2, 6.0))
    painted = np.concatenate([color * shade[..., None], 255.0 * seen[..., None]], axis=2)
    cells = (np.arange(max(rows, columns)) + 0.5) * view.pixel_mm // cell_mm
    painted = painted[cells[:rows].astype(int)][:, cells[:columns].astype(int)]
    corner = (float(view.low[0]), float(view.low[1]))
    picture = Picture(np.full((rows, columns), WINDOW_HU[0]), WINDOW_HU, corner, view.pixel_mm, painted=painted)
    return _finished(picture, view)


def _slice(volume: Volume, answer: BorderNeed, view: View) -> Picture:
    """A slice of the CT with the border in the colors of its need."""
    need = answer.volumes["need"]
    picture = view.shown(volume, WINDOW_HU)
    _, rows, columns = view.grid.shape
    j, i = np.indices((rows, columns))
    kji = need.grid.nearest_voxel(view.grid.to_lps(np.stack([i, j, 0 * i], axis=-1)))
    there = ((kji >= 0) & (kji < need.shape)).all(axis=-1)
    values = np.zeros((rows, columns), np.int16)
    values[there] = need.array[tuple(kji[there].T)]
    painted = np.concatenate([_colors(answer, values), 255 * (values > 0)[..., None]], axis=2)
    return _finished(replace(picture, painted=painted.astype(float)), view)


def _finished(picture: Picture, view: View) -> Picture:
    draw_letters(picture, view)
    draw_scale_bar(picture)
    return picture
