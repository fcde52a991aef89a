# SPDX-License-Identifier: Apache-2.0
"""Volume: voxels and their position in the patient.

Conventions, everywhere in LiverXAI:

* arrays are indexed ``(k, j, i)``: the last axis runs fastest, as in NumPy views of ITK and VTK images;
* ``ijk_to_lps`` is a 4x4 matrix that maps the *center* of voxel ``(i, j, k, 1)`` to millimeters in the DICOM
  patient system **LPS** (x to the patient's left, y to posterior, z to superior);
* the matrix may be oblique, left-handed or sheared (gantry tilt).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from ..errors import InputError, require_type
from .box import Box

#: Multiplying a homogeneous point or a matrix by this from the left converts LPS to RAS and back.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def lps_to_ras(point: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """A point in LPS mm, in RAS mm (3D Slicer's world)."""
    x, y, z = (float(value) for value in point)
    return -x, -y, z


def ras_to_lps(point: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """A point in RAS mm (3D Slicer's world), in LPS mm."""
    return lps_to_ras(point)  # half a turn about z is its own inverse


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie, without the image.

    `shape` is (k, j, i) in voxels; `ijk_to_lps` is 4x4 in mm.
    """

    shape: tuple[int, int, int]
    ijk_to_lps: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.array(self.ijk_to_lps, dtype=np.float64)
        if matrix.shape != (4, 4) or not (matrix[3].tolist() == [0, 0, 0, 1] or np.allclose(matrix[3], (0, 0, 0, 1))):
            raise ValueError(f"ijk_to_lps must be a 4x4 affine matrix, got {matrix!r}")
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ValueError("ijk_to_lps must be finite and invertible")
        matrix.setflags(write=False)
        object.__setattr__(self, "ijk_to_lps", matrix)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    def __repr__(self) -> str:
        origin = ", ".join(f"{mm:.3g}" for mm in self.origin)
        return f"Grid({self.summary()}, from LPS ({origin}) mm)"

    def summary(self) -> str:
        """The size and spacing along (i, j, k), as text."""
        size = " x ".join(str(n) for n in self.shape[::-1])
        return f"{size} voxels of {' x '.join(f'{mm:.3g}' for mm in self.spacing)} mm"

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighboring voxel centers along (i, j, k)."""
        i, j, k = np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def origin(self) -> np.ndarray:
        """LPS position in mm of the center of voxel (0, 0, 0)."""
        return self.ijk_to_lps[:3, 3].copy()

    @property
    def direction(self) -> np.ndarray:
        """3x3, columns are the unit vectors of the i, j and k axes in LPS (not orthogonal if sheared)."""
        return self.ijk_to_lps[:3, :3] / np.array(self.spacing)

    @property
    def ijk_to_ras(self) -> np.ndarray:
        """4x4, as Slicer's ``vtkMRMLVolumeNode::GetIJKToRASMatrix``."""
        return LPS_TO_RAS @ self.ijk_to_lps

    @property
    def is_sheared(self) -> bool:
        """The axes are not at right angles to each other (gantry tilt)."""
        return not np.allclose(self.direction.T @ self.direction, np.eye(3), atol=1e-4)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel in mm³ (the absolute determinant, so shear is accounted for)."""
        return float(abs(np.linalg.det(self.ijk_to_lps[:3, :3])))

    def to_lps(self, ijk: np.ndarray) -> np.ndarray:
        """Voxel coordinates (..., 3) in (i, j, k) order → LPS mm."""
        return np.asarray(ijk, dtype=np.float64) @ self.ijk_to_lps[:3, :3].T + self.ijk_to_lps[:3, 3]

    def to_ijk(self, lps: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) → continuous voxel coordinates in (i, j, k) order."""
        return (np.asarray(lps, dtype=np.float64) - self.ijk_to_lps[:3, 3]) @ np.linalg.inv(self.ijk_to_lps[:3, :3]).T

    def nearest_voxel(self, lps: Sequence[float] | np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) → the voxels (..., 3) as (k, j, i) with the nearest centers, which may lie outside."""
        return np.rint(self.to_ijk(np.asarray(lps))).astype(int)[..., ::-1]

    def box_of(self, part: Grid) -> Box:
        """The box of this grid that `part` covers: ``grid.box_of(grid.cropped(box)) == box``.

        :param part: a grid with the same axes and spacing, whose voxels coincide with voxels of this grid (which it may
            exceed).
        """
        return Box.full(part.shape).shifted(self.nearest_voxel(part.origin))

    def cropped(self, box: Box) -> Grid:
        """The grid of ``array[box]``."""
        matrix = self.ijk_to_lps.copy()
        matrix[:3, 3] = self.to_lps(np.array(box.start[::-1]))
        return Grid(box.shape, matrix)

    def matches(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Same shape, and no voxel center further than `tolerance_mm` from its counterpart."""
        if self.shape != other.shape:
            return False
        k, j, i = (n - 1 for n in self.shape)
        corners = np.array([(x, y, z) for x in (0, i) for y in (0, j) for z in (0, k)])
        distance = np.linalg.norm(self.to_lps(corners) - other.to_lps(corners), axis=1)
        return bool(distance.max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a :class:`Grid`. Immutable: the array is made read-only.

    `array` is (k, j, i), and `grid` its geometry. `metadata` holds information from the reader that a report may show
    (modality, series, warnings) and "files" (the paths of DICOM slices, which no report shows); never a patient's name
    or identifier.
    """

    array: np.ndarray
    ijk_to_lps: np.ndarray
    metadata: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 3:
            raise ValueError(f"a volume has three axes (k, j, i), got shape {array.shape}")
        view = array.view()
        view.setflags(write=False)
        object.__setattr__(self, "array", view)
        object.__setattr__(self, "grid", Grid(array.shape, self.ijk_to_lps))
        object.__setattr__(self, "ijk_to_lps", self.grid.ijk_to_lps)

    def __repr__(self) -> str:
        return f"Volume({self.grid.summary()}, {self.array.dtype})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, j, i) in voxels."""
        return self.grid.shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(i, j, k) in mm."""
        return self.grid.spacing

    @property
    def sha256(self) -> str:
        """Checksum of the voxels in (k, j, i) order; it identifies a CT.

        Half a gigabyte takes a third of a second.
        """
        values = np.ascontiguousarray(self.array, dtype=self.array.dtype.newbyteorder("<"))
        return sha256(values.data).hexdigest()

    def summary(self) -> str:
        """The source, size and spacing of the image, as one line of text."""
        source = (self.metadata.get("series") or {}).get("name") or self.metadata.get("source_format") or "in memory"
        return f"{source}, {self.grid.summary()}"

    def with_array(self, array: np.ndarray) -> Volume:
        """A volume with the same geometry and metadata but other voxels (of the same shape)."""
        if array.shape != self.array.shape:
            raise ValueError(f"expected shape {self.array.shape}, got {array.shape}")
        return Volume(array, self.ijk_to_lps, self.metadata)

    def cropped(self, box: Box) -> Volume:
        """The part of the image in `box`."""
        return Volume(self.array[box], self.grid.cropped(box).ijk_to_lps, self.metadata)


def require_volume_type(value: object) -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` unless `value` is a :class:`Volume`, of whatever voxels."""
    require_type(value, Volume, "An image", "read it first, with read_volume({})")


def require_volume(value: Volume) -> None:
    """Raise an error of :mod:`LiverXAILib.errors` unless `value` is a :class:`Volume` of finite numbers."""
    require_volume_type(value)
    if value.array.dtype.kind not in "iuf" or not value.array.size:
        raise InputError(
            f"The image must hold voxels that are numbers, not {value.array.dtype} of {value.array.shape}."
        )
    if value.array.dtype.kind == "f" and not np.isfinite(value.array).all():
        raise InputError(
            "The image holds values that are not finite numbers (NaN or infinity); replace them, for example with air."
        )
