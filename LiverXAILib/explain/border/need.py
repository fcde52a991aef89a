# SPDX-License-Identifier: Apache-2.0
"""How much of the surroundings the network needs to draw an organ's border where it drew it.

A heat map of a whole organ says little, because the whole organ contributes to its recognition. Its border, in
contrast, is decided locally. Everything farther than a radius from a point of the surface is replaced, the network
runs again, and the border near the point is compared with that in the whole image. The *need* of a point is the
radius of :data:`RADII_MM` at which the border stays where it was, while at the next smaller radius it does not. Each
pass tests the whole border within :data:`~LiverXAILib.explain.border.probe.COMPARED_MM` of its point.

Passes with the neighborhoods of several points in one image would be cheaper and were tried, but at one point in
five the result then changes with the neighborhoods next to it. Each point therefore has a crop of its own; the
network processes many crops in one batch.

Related: minimal sufficient inputs (Carter et al., AISTATS 2019, "What made you do this?", https://arxiv.org/abs/1810.03805)
and preservation by a mask (Fong and Vedaldi, ICCV 2017, https://arxiv.org/abs/1704.03296), here one point at a time.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ...context import RunContext
from ...errors import UsageError, own_errors
from ...inference.device import select_device
from ...inference.segmentation import Segmentation
from ...models.model import Model
from ...progress import CancelToken, Progress
from ...volumes.box import bounding_box
from ...volumes.volume import Volume
from ..answers import BorderNeed
from ..stage_context import StageContext, StageContexts, require_explainable
from ..targets import EmptyTargetError, Target
from .probe import COMPARED_MM, BorderProbe
from .replacements import REPLACEMENTS
from .surface import spread, surface_of

#: Radii that are tried. A border that needs more depends on far context.
RADII_MM = (8.0, 12.0, 16.0, 24.0)
#: The value that a map shows for each need: the radius; where no radius suffices, 1.5 times the largest.
_SHOWN_MM = np.array([*RADII_MM, 1.5 * RADII_MM[-1]]).astype(np.int16)
#: The minimum number of surface points that are examined: on request; and by default, so that an analysis stays fast.
POINTS, ROUTINE_POINTS = 200, 64
#: The replacement that contains nothing from beyond the radius and disturbs the network least.
REPLACEMENT = "reflected"
#: Points with far context that are no farther apart than this belong to one place.
_TOGETHER_MM = 30.0


@own_errors("The border cannot be examined")
def explain_border(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    target: str | Target = "liver",
    *,
    points: int = POINTS,
    replacement: str = REPLACEMENT,
    prepared: StageContexts | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> BorderNeed:
    """Measure how much of the surroundings the network needs to draw the border of an organ where it drew it.

    Points at which the segmentation's border is not the network's own (because postprocessing moved it), or which
    lie at the edge of the image, are not examined.

    :param volume: the CT in HU from which `segmentation` was made.
    :param target: a label.
    :param points: the minimum number of surface points that are examined, if the surface has that many voxels.
    :param replacement: what replaces the surroundings, a name of
        :data:`~LiverXAILib.explain.border.replacements.REPLACEMENTS`.
    :param prepared: the stages on this CT, shared with other questions about it; None: they are prepared now.
    :return: the border need, which is deterministic.
    :raises LiverXAILib.explain.targets.EmptyTargetError: nothing of the label was found, or none of its border is the
        network's own.
    :raises LiverXAILib.errors.UsageError: unknown label or replacement, or the target is not a label.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    started = time.perf_counter()
    require_explainable(volume, model, segmentation)
    target = Target.parse(target)
    if not target.is_whole_label:
        raise UsageError(f"The border of {target.describe()} cannot be examined: name a label, as in 'liver'.")
    if replacement not in REPLACEMENTS:
        raise UsageError(f"There is no replacement {replacement!r}. Choose one of: {', '.join(REPLACEMENTS)}.")
    target.mask(segmentation)
    torch_device = select_device(device)
    context = RunContext(progress, cancel, torch_device)
    model.to(torch_device)
    stage = model.spec.stage_of(target.label)
    run = (prepared or StageContexts(volume, model, segmentation, torch_device)).of(stage)
    probe = BorderProbe(run, target.label, model, REPLACEMENTS[replacement], context)
    chosen = spread(probe.own_border(target.label), points, run.spacing)
    if not len(chosen):
        raise EmptyTargetError(f"The border of the {target.label} is not the network's own anywhere in the image.")
    need = needs(probe, chosen, context)
    context.report("Border examined", 1.0)
    provenance = {
        "stage": stage.name,
        "model": model.provenance,
        "backend": run.backend,
        "voxels_read": probe.voxels,
        "device": str(run.device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    evidence = _evidence(run, chosen, need, replacement)
    return BorderNeed(target, evidence, {"need": surface_map(run, probe, chosen, need)}, (), provenance)


def needs(probe: BorderProbe, points: np.ndarray, context: RunContext) -> np.ndarray:
    """The index into :data:`RADII_MM` that each point (n, 3) needs; the number of radii where none suffices."""
    low, high = np.zeros(len(points), int), np.full(len(points), len(RADII_MM))
    done = 0.0
    while (undecided := low < high).any():
        tried = (low + high) // 2
        number = int(tried[undecided].max())
        asked = np.flatnonzero(undecided & (tried == number))
        # Each step halves the remaining work, roughly.
        stays = probe.stays(points[asked], RADII_MM[number], context.part(done, done := (1 + done) / 2))
        high[asked[stays]] = number
        low[asked[~stays]] = number + 1
    return low


def _evidence(run: StageContext, points: np.ndarray, need: np.ndarray, replacement: str) -> dict[str, Any]:
    counts = np.bincount(need, minlength=len(RADII_MM) + 1)
    return {
        "points": len(points),
        "radii_mm": list(RADII_MM),
        "counts": counts.tolist(),
        "tolerance_mm": round(max(run.spacing), 2),
        "compared_within_mm": COMPARED_MM,
        "replaced_by": replacement,
        "far": _far_places(run.grid.to_lps(points[:, ::-1]), need),
    }


def _far_places(points_lps: np.ndarray, need: np.ndarray) -> list[dict[str, Any]]:
    """Groups of points with far context that lie near each other, the largest first."""
    far = np.flatnonzero(need == len(RADII_MM))
    if not len(far):
        return []
    low, high = points_lps.min(axis=0), points_lps.max(axis=0)
    tree = cKDTree(points_lps[far])
    groups = np.arange(len(far))
    for first, second in sorted(tree.query_pairs(_TOGETHER_MM)):
        groups[groups == groups[second]] = groups[first]
    places = []
    for group in np.unique(groups):
        members = far[groups == group]
        center = points_lps[members].mean(axis=0)
        nearest = members[np.linalg.norm(points_lps[members] - center, axis=1).argmin()]
        places.append(
            {
                "lps_mm": [round(float(value), 1) for value in points_lps[nearest]],
                "points": len(members),
                "where": _in_words(center, low, high),
            }
        )
    return sorted(places, key=lambda place: -place["points"])


def _in_words(center: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Where a place lies on the organ: the two directions in which it is farthest from the center of its box."""
    names = (("on the right", "on the left"), ("in front", "at the back"), ("at the top", "at the bottom"))
    relative = (center - (low + high) / 2) / np.maximum((high - low) / 2, 1e-6)
    relative[2] *= -1  # S is up
    order = np.argsort(-np.abs(relative), kind="stable")[:2]
    words = [names[axis][int(relative[axis] > 0)] for axis in sorted(order) if abs(relative[axis]) > 0.25]
    return " ".join(words) or "near the middle"


def surface_map(run: StageContext, probe: BorderProbe, points: np.ndarray, need: np.ndarray) -> Volume:
    """The needs on the organ's surface: int16 mm on the network's grid, cropped to the surface, 0 off it."""
    surface = surface_of(probe.reference.numpy())
    kji = np.argwhere(surface)
    spacing = np.array(run.spacing)
    _, nearest = cKDTree(points * spacing).query(kji * spacing)
    values = np.zeros(surface.shape, np.int16)
    values[tuple(kji.T)] = _SHOWN_MM[need][nearest]
    box = bounding_box(surface)
    assert box is not None
    return Volume(values[box], run.grid.cropped(box).ijk_to_lps)
