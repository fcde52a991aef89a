# SPDX-License-Identifier: Apache-2.0
"""Registration of the liver in a prior CT with the current one: rigid, affine, then deformable inside the liver.

The livers are resampled to axis-aligned grids of :data:`SPACING_MM`. Rigid and affine steps and a first, smooth
deformation align the distance maps of the livers' surfaces, which do not depend on the contrast phase. If both CTs are
available, a second, finer deformation maximizes the mutual information of the HU inside the livers, excluding the
lesions: a lesion that has grown must not be shrunk to its former size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from scipy.spatial import cKDTree

from ..context import RunContext
from ..errors import LiverXAIError
from ..inference.segmentation import Segmentation
from ..volumes.box import bounding_box
from ..volumes.itk import to_itk
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume

#: Spacing of the grids on which livers are registered, and the margin around the liver.
SPACING_MM, _MARGIN_MM = 4.0, 28.0
#: Distances to the surface are clamped to this value.
_FAR_MM = 25.0
#: Standard deviation of the Gaussian that smooths the first deformation's field, and the number of iterations.
_STIFFNESS_MM, _DEMONS_STEPS = 9.0, 25
#: Random seed of the points at which the second deformation compares HU.
_SEED = 1
#: Spacing of the second deformation's control points, its number of iterations, and the fraction of voxels sampled.
_MESH_MM, _SPLINE_STEPS, _SAMPLED = 45.0, 20, 0.2
#: Width of the rim around lesions that is excluded, because the HU there carry no information about position.
_LESION_RIM_MM = 5.0
#: HU are clipped to this distance from the liver's median, and smoothed by a Gaussian of this width.
_WINDOW_HU, _SMOOTHING_MM = 120.0, 1.5
#: Limits beyond which a registration is refused: the Dice coefficient of the livers, the mean distance between their
#: surfaces, the factor by which the affine step scales volumes, and the factors by which the deformation changes them.
LEAST_DICE, MOST_SURFACE_MM, LEAST_SCALE, LEAST_JACOBIAN, MOST_JACOBIAN = 0.85, 4.0, 0.6, 0.1, 6.0
#: Livers of one person have at least this Dice coefficient after the rigid step.
ALIKE_DICE = 0.88
#: SimpleITK's messages when no HU can be compared: nothing overlaps, no voxel is in the mask, or all HU are equal.
_NOTHING_TO_COMPARE = ("map outside moving image buffer", "must have 1 or more points", "Refusing to change spacing")
#: Each step reduces the error by a factor given by the deformation's gradient.
_INVERSION_STEPS = 12

_Linear = TypeVar("_Linear", sitk.Euler3DTransform, sitk.AffineTransform)


@dataclass(frozen=True)
class Quality:
    """How well two livers were registered, within the region that both images show.

    :param dice: Dice coefficient of the current liver and the warped prior one.
    :param surface_mm: symmetric mean distance between their surfaces; None if one has no surface there.
    :param surface_p95_mm: the 95th percentile of these distances.
    :param jacobian_min, jacobian_max: range of the factors by which the deformation changes volumes locally in the
        liver; at 0 or below, it folds.
    :param scale: the factor by which the affine step changes volumes.
    :param used_hu: whether the HU inside the livers were used; otherwise only their surfaces were.
    :param rigid_dice: the Dice coefficient before any deformation, a measure of the livers' similarity in shape.
    """

    dice: float
    surface_mm: float | None
    surface_p95_mm: float | None
    jacobian_min: float
    jacobian_max: float
    scale: float
    used_hu: bool
    rigid_dice: float

    @property
    def alike(self) -> bool:
        """Whether the livers are as similar as those of one person."""
        return self.rigid_dice >= ALIKE_DICE


@dataclass(frozen=True, eq=False)
class Registration:
    """A mapping of points from the current CT to the prior one (LPS mm), with its quality.

    :param transform: the SimpleITK transform from current to prior: first the deformations, then `linear`.
    """

    transform: sitk.Transform
    linear: sitk.AffineTransform
    quality: Quality

    def to_prior(self, points: np.ndarray) -> np.ndarray:
        """Map points (n, 3) in the current CT to points in the prior one, LPS mm."""
        return np.array([self.transform.TransformPoint(point) for point in np.asarray(points, float).tolist()])

    def to_current(self, points: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_prior`, computed iteratively."""
        points = np.asarray(points, float)
        back = self.linear.GetInverse()
        matrix = np.array(back.GetMatrix()).reshape(3, 3)
        found = np.array([back.TransformPoint(point) for point in points.tolist()])
        for _ in range(_INVERSION_STEPS):
            found = found + (points - self.to_prior(found)) @ matrix.T
        return found


class RegistrationRefused(LiverXAIError):
    """Two livers could not be registered; the message says why.

    :param quality: quality of the registration that was found; None if none was found.
    """

    def __init__(self, reason: str, quality: Quality | None = None) -> None:
        super().__init__(reason)
        self.quality = quality


@dataclass(frozen=True, eq=False)
class Subject:
    """The data of a study that are used for registration.

    :param volume: the CT in HU; None: only the liver's surface is known.
    """

    segmentation: Segmentation
    volume: Volume | None = None


@dataclass(frozen=True, eq=False)
class _Liver:
    """A liver on an axis-aligned grid: distance to its surface, HU, and the masks within which they are valid."""

    mask: sitk.Image
    distance: sitk.Image
    seen: sitk.Image
    hu: sitk.Image | None
    hu_seen: sitk.Image
    center: np.ndarray


def register(current: Subject, prior: Subject, context: RunContext) -> Registration:
    """Register the prior liver with the current one.

    :raises RegistrationRefused: there is no liver, or the livers do not match, so positions cannot be compared.
    """
    context.report("Registering: preparing", 0.0)
    use_hu = current.volume is not None and prior.volume is not None
    fixed, moving = (_liver(subject, use_hu) for subject in (current, prior))
    context.check()
    context.report("Registering: rigid", 0.05)
    start = sitk.Euler3DTransform()
    start.SetCenter(fixed.center.tolist())
    start.SetTranslation((moving.center - fixed.center).tolist())
    rigid = _optimize(start, fixed, moving, 2.0)
    context.check()
    context.report("Registering: affine", 0.2)
    stretch = sitk.AffineTransform(3)
    stretch.SetCenter(rigid.GetCenter())
    stretch.SetMatrix(rigid.GetMatrix())
    stretch.SetTranslation(rigid.GetTranslation())
    affine = _optimize(stretch, fixed, moving, 1.0)
    scale = float(np.linalg.det(np.array(affine.GetMatrix()).reshape(3, 3)))
    rigid_dice = _dice(*_overlap(fixed, moving, rigid)[:2])
    context.check()
    context.report("Registering: surfaces", 0.35)
    whole = sitk.CompositeTransform([affine])
    whole.AddTransform(_bend_surface(fixed, moving, whole))
    context.check()
    quality = _quality(fixed, moving, whole, scale, rigid_dice, used_hu=False)
    _check(quality)
    if use_hu:
        context.report("Registering: inside the liver", 0.6)
        if (bend := _bend_inside(fixed, moving, whole)) is not None:
            whole.AddTransform(bend)
            quality = _quality(fixed, moving, whole, scale, rigid_dice, used_hu=True)
            _check(quality)
        context.check()
    return Registration(whole, affine, quality)


def _check(quality: Quality) -> None:
    """Refuse a registration that is not good enough to match lesions."""
    reasons = []
    if quality.dice < LEAST_DICE:
        reasons.append(f"the livers overlap by a Dice coefficient of only {quality.dice:.2f}")
    if quality.surface_mm is None:
        reasons.append("one of them shows no surface where both images overlap")
    elif quality.surface_mm > MOST_SURFACE_MM:
        reasons.append(f"their surfaces are {quality.surface_mm:.1f} mm apart on average")
    if not LEAST_SCALE <= quality.scale <= 1 / LEAST_SCALE:
        reasons.append(f"one would have to be scaled by {quality.scale:.2f} in volume")
    if quality.jacobian_min < LEAST_JACOBIAN or quality.jacobian_max > MOST_JACOBIAN:
        reasons.append(
            f"the deformation is too strong (volumes change by factors of {quality.jacobian_min:.2f} to "
            f"{quality.jacobian_max:.2f})"
        )
    if reasons:
        raise RegistrationRefused(
            f"The livers do not match: {'; '.join(reasons)}. Are both complete and of the same patient, without a "
            "resection in between?",
            quality,
        )


def _liver(subject: Subject, use_hu: bool) -> _Liver:
    segmentation = subject.segmentation
    source = segmentation.labels.grid
    liver = segmentation.mask("liver")
    if not liver.any():
        raise RegistrationRefused("One of the studies shows no liver.")
    grid = _upright(source, liver)
    mask = resample(liver.view(np.uint8), source, grid).numpy() > 0.5
    if not mask.any():
        raise RegistrationRefused(f"The liver of one study is thinner than {SPACING_MM:g} mm, too small to be matched.")
    seen = resample(np.ones(source.shape, np.uint8), source, grid).numpy() > 0.99
    lesions = np.zeros(source.shape, bool)
    if any(spec.is_lesion for spec in segmentation.specs):
        lesions = segmentation.mask("tumor")
    lesion = resample(lesions.view(np.uint8), source, grid).numpy() > 0.05
    image = _image(mask.astype(np.uint8), grid)
    distance = sitk.SignedMaurerDistanceMap(image, False, False, True)
    distance = sitk.Clamp(distance, sitk.sitkFloat32, -_FAR_MM, _FAR_MM)
    hu = None
    if use_hu and subject.volume is not None:
        smooth = resample(subject.volume.array, source, grid, fill=-1024.0).numpy()
        middle = float(np.median(smooth[mask & ~lesion])) if (mask & ~lesion).any() else 0.0
        smooth = np.clip(smooth, middle - _WINDOW_HU, middle + _WINDOW_HU)
        smooth[~mask] = middle - _WINDOW_HU
        hu = sitk.DiscreteGaussian(_image(smooth.astype(np.float32), grid), _SMOOTHING_MM**2)
    radius = round(_LESION_RIM_MM / SPACING_MM)
    near = sitk.BinaryDilate(image, [radius] * 3)
    rim = sitk.BinaryDilate(_image(lesion.astype(np.uint8), grid), [radius] * 3)
    inside = _image(seen.astype(np.uint8), grid)
    center = grid.to_lps(np.argwhere(mask).mean(axis=0)[::-1])
    return _Liver(image, distance, inside, hu, sitk.And(sitk.And(near, inside), sitk.Not(rim)), center)


def _upright(source: Grid, liver: np.ndarray) -> Grid:
    """A grid of :data:`SPACING_MM` along the patient's axes around the liver, limited to the image."""
    box = bounding_box(liver)
    assert box is not None
    low, high = _extent(source.cropped(box))
    image_low, image_high = _extent(source)
    low, high = np.maximum(low - _MARGIN_MM, image_low), np.minimum(high + _MARGIN_MM, image_high)
    sizes = np.maximum(np.ceil((high - low) / SPACING_MM), 4).astype(int)
    matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    matrix[:3, 3] = low + SPACING_MM / 2
    i, j, k = (int(size) for size in sizes)
    return Grid((k, j, i), matrix)


def _extent(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The axis-aligned box in LPS mm around a grid, up to the outer edges of its voxels."""
    ends = [(-0.5, size - 0.5) for size in grid.shape[::-1]]
    corners = grid.to_lps(np.array([(i, j, k) for i in ends[0] for j in ends[1] for k in ends[2]]))
    return corners.min(axis=0), corners.max(axis=0)


def _image(array: np.ndarray, grid: Grid) -> sitk.Image:
    return to_itk(Volume(array, grid.ijk_to_lps))


def _optimize(transform: _Linear, fixed: _Liver, moving: _Liver, step_mm: float) -> _Linear:
    """Align the distance maps by a linear transform, starting from `transform`; the result is never worse than that.

    :param step_mm: distance by which points move in the first step.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(fixed.seen)
    method.SetMetricMovingMask(moving.seen)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(step_mm, 0.02, 60, 0.6, 1e-5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([3, 2])
    method.SetSmoothingSigmasPerLevel([0, 0])
    found = type(transform)(transform)
    method.SetInitialTransform(found, inPlace=True)
    before = method.MetricEvaluate(fixed.distance, moving.distance)
    method.Execute(fixed.distance, moving.distance)
    after = method.MetricEvaluate(fixed.distance, moving.distance)
    return found if after < before else transform


def _bend_surface(fixed: _Liver, moving: _Liver, before: sitk.Transform) -> sitk.Transform:
    """A smooth deformation, applied before `before`, that aligns the livers' surfaces (diffeomorphic demons)."""
    warped = sitk.Resample(moving.distance, fixed.distance, before, sitk.sitkLinear, _FAR_MM)
    seen = sitk.And(sitk.Resample(moving.seen, fixed.mask, before, sitk.sitkNearestNeighbor, 0), fixed.seen)
    # Regions that one of the images does not show must not exert a force.
    part = sitk.Cast(seen, sitk.sitkFloat32)
    warped = warped * part + fixed.distance * (1.0 - part)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(_DEMONS_STEPS)
    demons.SetStandardDeviations(_STIFFNESS_MM / SPACING_MM)
    field = demons.Execute(fixed.distance, warped)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def _bend_inside(fixed: _Liver, moving: _Liver, before: sitk.Transform) -> sitk.Transform | None:
    """A cubic B-spline, applied before `before`, that maximizes the mutual information of the HU inside the livers.

    None if there is nothing to compare: the liver consists of lesions only, or all HU are equal.
    """
    warped = sitk.Resample(moving.hu, fixed.mask, before, sitk.sitkLinear, 0.0)
    warped_seen = sitk.Resample(moving.hu_seen, fixed.mask, before, sitk.sitkNearestNeighbor, 0)
    size = np.array(fixed.mask.GetSize()) * SPACING_MM
    mesh = [max(1, round(float(length) / _MESH_MM)) for length in size]
    spline = sitk.BSplineTransformInitializer(fixed.mask, mesh)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(24)
    method.SetMetricFixedMask(fixed.hu_seen)
    method.SetMetricMovingMask(warped_seen)
    method.SetMetricSamplingStrategy(method.REGULAR)
    # Without a seed, the jitter of the sampling grid would depend on the clock, and runs would not be reproducible.
    method.SetMetricSamplingPercentage(_SAMPLED, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGSB(1e-4, _SPLINE_STEPS, 5, 2 * _SPLINE_STEPS, 1e7)
    method.SetInitialTransform(spline, inPlace=True)
    try:
        method.Execute(fixed.hu, warped)
    except RuntimeError as error:  # SimpleITK raises no other type, even if memory runs out
        if any(words in str(error) for words in _NOTHING_TO_COMPARE):
            return None
        raise
    return spline


def _overlap(fixed: _Liver, moving: _Liver, transform: sitk.Transform) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fixed liver and the warped moving one within the region that both images show, and that region."""
    warped = sitk.Resample(moving.mask, fixed.mask, transform, sitk.sitkNearestNeighbor, 0)
    seen = sitk.And(sitk.Resample(moving.seen, fixed.mask, transform, sitk.sitkNearestNeighbor, 0), fixed.seen)
    common = sitk.GetArrayFromImage(seen) > 0
    one, other = (sitk.GetArrayFromImage(image) > 0 for image in (fixed.mask, warped))
    return one & common, other & common, common


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else 0.0


def _quality(
    fixed: _Liver, moving: _Liver, transform: sitk.Transform, scale: float, rigid_dice: float, *, used_hu: bool
) -> Quality:
    one, other, common = _overlap(fixed, moving, transform)
    surfaces = [np.argwhere(_surface(mask, common)) * SPACING_MM for mask in (one, other)]
    distances = None
    if all(len(surface) for surface in surfaces):
        distances = np.concatenate(
            [cKDTree(surfaces[0]).query(surfaces[1])[0], cKDTree(surfaces[1]).query(surfaces[0])[0]]
        )
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, fixed.mask.GetSize(), fixed.mask.GetOrigin(), fixed.mask.GetSpacing()
    )
    jacobian = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))[one]
    return Quality(
        dice=_dice(one, other),
        surface_mm=None if distances is None else float(distances.mean()),
        surface_p95_mm=None if distances is None else float(np.percentile(distances, 95)),
        jacobian_min=float(jacobian.min()) if jacobian.size else 0.0,
        jacobian_max=float(jacobian.max()) if jacobian.size else 0.0,
        scale=scale,
        used_hu=used_hu,
        rigid_dice=rigid_dice,
    )


def _surface(mask: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The voxels of a mask that are adjacent to a visible voxel outside the mask."""
    from scipy import ndimage

    return mask & ndimage.binary_dilation(seen & ~mask)
