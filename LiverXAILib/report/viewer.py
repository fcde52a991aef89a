# SPDX-License-Identifier: Apache-2.0
"""The data of the report's viewer: the CT around the liver, outlines and heat maps, small enough to be embedded.

The image is resampled to an axis-aligned grid, cropped to the liver and its surroundings, and stored in steps of 2 HU;
the viewer is for viewing, not for measuring.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import Analysis
from ..colors import HEAT_COLORS, VISIBLE_HEAT
from ..inference.lesions import numbered_candidates
from ..models.spec import LabelSpec
from ..volumes.box import Box
from ..volumes.resample import resample
from ..volumes.stream import fast_zlib
from ..volumes.volume import Grid

#: HU of the stored value 0, and HU per step: one byte covers -220 to 290 HU, which includes all presets.
LOWEST_HU, STEP_HU = -220.0, 2.0
#: Maximum number of embedded voxels. With 8 heat maps, a page with this many voxels stays under 10 MB.
MAX_VOXELS = 2_400_000
#: Compression level: files are a twentieth larger than with zlib's best level, in a twentieth of the time.
_LEVEL = 2
_MARGIN_MM = 25.0
_CANDIDATE_COLOR = (240, 220, 60)
_FINEST_MM = (1.0, 1.0, 1.5)
_AIR_HU = -1024.0


def viewer_data(analysis: Analysis) -> dict[str, Any]:
    """The data of the viewer, JSON-ready. Images are gzip-compressed bytes in base64, in the order (k, j, i).

    The grid is aligned with LPS: i runs to the patient's left, j to posterior, k to superior; ``origin`` is the center
    of the first voxel and ``spacing`` its size, (x, y, z) in mm.
    """
    grid = viewer_grid(analysis)
    volume, specs = analysis.volume, analysis.segmentation.specs
    hu = resample(volume.array, volume.grid, grid, fill=_AIR_HU).numpy()
    return {
        "shape": list(grid.shape),
        "spacing": list(grid.spacing),
        "origin": grid.origin.tolist(),
        "lowest_hu": LOWEST_HU,
        "step_hu": STEP_HU,
        "image": _packed(np.rint((hu - LOWEST_HU) / STEP_HU)),
        "labels": _packed(_labels_on(grid, analysis)),
        "names": {
            spec.value: {"name": spec.name, "color": list(spec.color), "values": sorted(_values_of(spec, specs))}
            for spec in specs
        },
        "maps": [
            {
                "title": explanation.target.describe()
                + ("" if explanation.is_about(analysis.segmentation) else ", before the changes"),
                "data": _packed(255 * resample(explanation.heatmap.array, volume.grid, grid).numpy()),
            }
            for explanation in analysis.explanations
        ],
        "edits": list(_edits(grid, analysis)),
        "lesions": {lesion.number: list(lesion.centroid_lps_mm) for lesion in analysis.measurements.lesions},
        "rejected": {one.number: list(one.place_lps_mm) for one in analysis.measurements.rejected},
        "candidates": {
            "data": None if (mask := _candidates_on(grid, analysis)) is None else _packed(mask),
            "color": list(_CANDIDATE_COLOR),
            "places": {one.number: list(one.place_lps_mm) for one in analysis.measurements.candidates},
        },
        "presets": presets(analysis),
        "heat_colors": [list(color) for color in HEAT_COLORS],
        "heat_threshold": VISIBLE_HEAT,
    }


def _edits(grid: Grid, analysis: Analysis) -> Iterator[dict[str, Any]]:
    """The parts of `grid` in which a lesion was replaced: first voxel and shape (k, j, i), and the stored values."""
    for answer in analysis.answers:
        changed = answer.volumes.get("without")
        if changed is None:
            continue
        box = Box.full(changed.shape).projected(changed.grid, grid)
        part = grid.cropped(box)
        hu = resample(changed.array, changed.grid, part, fill=_AIR_HU).numpy()
        # At the edge of the part that was kept of the changed CT, the CT itself is shown.
        whole = resample(np.ones(changed.shape, np.float32), changed.grid, part).numpy() > 0.9999
        before = resample(analysis.volume.array, analysis.volume.grid, part, fill=_AIR_HU).numpy()
        values = (np.where(whole, hu, before) - LOWEST_HU) / STEP_HU
        yield {
            "title": f"without {answer.target.describe()}",
            "start": list(box.start),
            "shape": list(box.shape),
            "data": _packed(np.rint(values)),
        }


def presets(analysis: Analysis) -> Mapping[str, tuple[float, float]]:
    """Display windows by name: level and width in HU. The narrow one is centered on this patient's liver."""
    chosen = {"Abdomen": (40.0, 400.0)}
    if analysis.measurements.liver_mean_hu is not None:
        chosen["Liver"] = (float(round(analysis.measurements.liver_mean_hu)), 150.0)
    return chosen


def viewer_grid(analysis: Analysis) -> Grid:
    """An axis-aligned grid of at most :data:`MAX_VOXELS` around what was found, or the whole image if nothing was."""
    grid = analysis.volume.grid
    image_low, image_high = _extent(grid, np.zeros(3), np.array(grid.shape) - 1)
    low, high = image_low, image_high
    if (box := analysis.segmentation.box) is not None:
        box_low, box_high = _extent(grid, np.array(box.start), np.array(box.stop) - 1)
        low, high = np.maximum(low, box_low - _MARGIN_MM), np.minimum(high, box_high + _MARGIN_MM)
    spacing = np.maximum(_FINEST_MM, np.abs(grid.ijk_to_lps[:3, :3]).max(axis=1))
    voxels = float(np.prod(np.ceil((high - low) / spacing)))
    spacing = spacing * max(1.0, (voxels / MAX_VOXELS) ** (1 / 3))
    size = np.maximum(1, np.floor((high - low) / spacing)).astype(int)
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = (low + high) / 2 - spacing * (size - 1) / 2
    i, j, k = (int(n) for n in size)
    return Grid((k, j, i), matrix)


def _labels_on(grid: Grid, analysis: Analysis) -> np.ndarray:
    """The label map on `grid`: in each voxel the value that fills the largest part of it."""
    labels = analysis.segmentation.labels
    found = analysis.segmentation.box
    result = np.zeros(grid.shape, np.uint8)
    if found is None:
        return result
    # Only where there may be labels, from the voxels within the filter's reach.
    reach = 2 * max(*grid.spacing, *labels.spacing)
    part = found.projected(labels.grid, grid, margin_mm=reach)
    own = grid.cropped(part)
    labels = labels.cropped(Box.full(own.shape).projected(own, labels.grid, margin_mm=reach))
    best = resample((labels.array == 0).astype(np.float32), labels.grid, own, fill=1.0).numpy()
    for spec in analysis.segmentation.specs:
        share = resample((labels.array == spec.value).astype(np.float32), labels.grid, own).numpy()
        result[part][share > best] = spec.value
        best = np.maximum(share, best)
    return result


def _candidates_on(grid: Grid, analysis: Analysis) -> np.ndarray | None:
    """The candidates that the reader has not accepted: 1 in voxels that lie mostly in one; None without candidates."""
    shown = [one.number for one in analysis.measurements.candidates if one.status != "accepted"]
    segmentation = (analysis.own or analysis).segmentation  # candidates are the model's
    box, numbers = numbered_candidates(segmentation)
    if not shown or not numbers.size:
        return None
    part = segmentation.labels.grid.cropped(box)
    share = resample(np.isin(numbers, shown).astype(np.float32), part, grid).numpy()
    return (share > 0.5).astype(np.uint8)


def _values_of(spec: LabelSpec, specs: Sequence[LabelSpec]) -> set[int]:
    """The values of a label and of the labels inside it."""
    parts = [_values_of(part, specs) for part in specs if part.parent == spec.name]
    return {spec.value}.union(*parts)


def _extent(grid: Grid, low_kji: np.ndarray, high_kji: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axis-aligned box in LPS mm around the voxels from `low_kji` to `high_kji`, including their faces."""
    (k0, j0, i0), (k1, j1, i1) = low_kji - 0.5, high_kji + 0.5
    corners = grid.to_lps(np.array([(i, j, k) for i in (i0, i1) for j in (j0, j1) for k in (k0, k1)]))
    return corners.min(axis=0), corners.max(axis=0)


def _packed(values: np.ndarray) -> str:
    data = np.clip(values, 0, 255).astype(np.uint8).tobytes()
    packer = fast_zlib.compressobj(_LEVEL, wbits=31)
    return base64.b64encode(packer.compress(data) + packer.flush()).decode("ascii")
