# SPDX-License-Identifier: Apache-2.0
"""Small livers with lesions that change between studies."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np

from LiverXAILib.analysis import Analysis
from LiverXAILib.followup.matching import Region
from LiverXAILib.followup.studies import Identity, Study, study_of
from LiverXAILib.inference import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.models import LIVER, TUMOR, registry
from LiverXAILib.volumes.volume import Volume

#: Center (LPS mm, relative to the liver) and radius in mm.
Ball = tuple[tuple[float, float, float], float]


def liver_analysis(
    lesions: Sequence[Ball],
    shift: tuple[float, float, float] = (0, 0, 0),
    radii: tuple[float, float, float] = (38, 30, 34),
    spacing: tuple[float, float, float] = (4, 4, 4),
) -> Analysis:
    """An ellipsoid of 110 HU around `shift` (LPS mm) with balls of 60 HU, without noise."""
    counts = [round(112 / size) for size in spacing]
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = [-(count - 1) / 2 * size for count, size in zip(counts, spacing, strict=True)]
    k, j, i = np.indices(counts[::-1])
    points = np.stack([i, j, k], axis=-1) @ matrix[:3, :3] + matrix[:3, 3] - shift
    labels = (((points / radii) ** 2).sum(axis=-1) < 1).astype(np.uint8)
    for center, radius in lesions:
        labels[(((points - center) ** 2).sum(axis=-1) < radius**2) & (labels > 0)] = 2
    hu = np.array([-60, 110, 60], np.int16)[labels]
    volume = Volume(hu, matrix)
    segmentation = Segmentation(Volume(labels, matrix), (LIVER, TUMOR), provenance={"warnings": []})
    return Analysis(volume, registry()["default"].spec(), segmentation, (), measure(volume, segmentation), _PROVENANCE)


_PROVENANCE = {"warnings": [], "input": {"metadata": {}}}


def study(name: str, *lesions: Ball, date: str | None = None, patient: str = "", **place) -> Study:
    """The same as :func:`liver_analysis`, as a study of a follow-up."""
    made = study_of(liver_analysis(lesions, **place), name)
    day = None if date is None else datetime.date.fromisoformat(date)
    return Study(**{**vars(made), "date": day, "identity": Identity(patient)})


def ball(number, center, diameter):
    """A ball on a grid of 1.5 mm."""
    steps = np.arange(-40, 40.1, 1.5)
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = points[np.linalg.norm(points, axis=1) <= diameter / 2]
    return Region(number, inside + np.array(center, float), len(inside) * 1.5**3 / 1000, 1.3)


def balls(*where):
    """Regions of (center, diameter), numbered from 1."""
    return [ball(number, *one) for number, one in enumerate(where, start=1)]
