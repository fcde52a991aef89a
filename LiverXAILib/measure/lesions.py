# SPDX-License-Identifier: Apache-2.0
"""Descriptions of one lesion besides its size: enhancement relative to the liver, shape, location."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
from scipy.spatial import SphericalVoronoi

from ..volumes.volume import Grid, Volume
from .measurements import ContrastPhase

#: Lesions whose mean HU differs from the liver's by at most this are isoattenuating.
ISO_HU = 10.0
#: A segment that holds less than this fraction of a lesion is not named.
_LEAST_SHARE = 0.1


def enhancement(contrast_hu: float | None, phase: ContrastPhase | None) -> str | None:
    """A lesion's attenuation relative to the liver, as text; None where the phase is uncertain."""
    if contrast_hu is None or phase is None or not phase.certain:
        return None
    kind = "iso" if abs(contrast_hu) <= ISO_HU else "hyper" if contrast_hu > 0 else "hypo"
    return f"{kind}attenuating, {phase.phase}"


def sphericity(mask: np.ndarray, grid: Grid) -> float | None:
    """Surface of a sphere of the same volume over the surface of `mask` (Crofton's estimate), at most 1.

    :return: None on a sheared grid.
    """
    if grid.is_sheared:
        return None
    volume = np.count_nonzero(mask) * grid.voxel_volume_mm3
    return min(1.0, float(np.cbrt(np.pi * (6 * volume) ** 2)) / _surface_mm2(mask, grid))


def _surface_mm2(mask: np.ndarray, grid: Grid) -> float:
    """Crofton's estimate: the number of times that lines in 26 directions leave `mask`.

    A direction has the share of the sphere that is closest to it. ITK has the shares of cubic voxels only, with which
    the sphericity of a long lesion in slices of 2.5 mm is wrong by up to an eighth.
    """
    steps = np.array([step for step in product((-1, 0, 1), repeat=3) if any(step)])
    ways = steps[:, ::-1] @ grid.ijk_to_lps[:3, :3].T
    lengths = np.linalg.norm(ways, axis=1)
    shares = SphericalVoronoi(ways / lengths[:, None]).calculate_areas() / (4 * np.pi)
    padded = np.pad(mask, 1)
    left = [np.count_nonzero(padded & ~np.roll(padded, step, (0, 1, 2))) for step in steps]
    return float(4 * grid.voxel_volume_mm3 * (shares * left / lengths).sum())


def location(
    voxels: np.ndarray, segments: Mapping[str, np.ndarray], centroid_x: float, middle_x: float | None
) -> str | None:
    """The location of a lesion, as text.

    :param voxels: (n, 3) as (k, j, i).
    :param segments: masks of the hepatic segments, by roman numeral; may be empty.
    :param centroid_x: of the lesion, LPS mm.
    :param middle_x: of the body's midsagittal plane, LPS mm; None: unknown.
    """
    shares = {name: float(mask[tuple(voxels.T)].mean()) for name, mask in segments.items()}
    named = sorted((name for name in shares if shares[name] >= _LEAST_SHARE), key=lambda name: -shares[name])
    if named:
        listed = ", ".join(f"{name} ({100 * shares[name]:.0f} %)" for name in named)
        return f"segment{'s' if len(named) > 1 else ''} {listed}"
    if middle_x is None:
        return None
    side = "right" if centroid_x < middle_x else "left"
    return f"{side} of the body's midline (the model has no hepatic segments)"


def slice_instance_number(volume: Volume, slice_axis: str, slice_index: int) -> int | None:
    """The DICOM instance number of a slice; None unless each slice is a file of its own."""
    files = volume.metadata.get("files")
    if not files or slice_axis != "k" or len(files) != volume.shape[0]:
        return None
    import pydicom  # only images from DICOM need it

    header = pydicom.dcmread(files[slice_index], stop_before_pixels=True, specific_tags=["InstanceNumber"], force=True)
    number = header.get("InstanceNumber")
    return None if number is None else int(number)
