# SPDX-License-Identifier: Apache-2.0
"""What becomes of a teacher's liver: its border, and what somebody saw to be wrong."""

from __future__ import annotations

import numpy as np

from recipes.default_model.sources import _apply_corrections, _refine_teacher, _Region, tissues_by_hu
from recipes.default_model.synthesis import Tissue

MM = 2.0
SIZE = (48, 60, 60)


def distance(center: tuple[float, float, float]) -> np.ndarray:
    """From `center`, in mm."""
    return np.linalg.norm(np.moveaxis(np.indices(SIZE), 0, -1) - np.array(center), axis=-1) * MM


def body(liver_hu: float, beside_hu: float) -> tuple[np.ndarray, np.ndarray]:
    """A ball of liver of 32 mm radius, its border 4 mm wide, in a body of `beside_hu`; and the radius of each voxel."""
    radius = distance((24, 30, 30))
    share = np.clip((32 - radius) / 4 + 0.5, 0, 1)
    ct = beside_hu + share * (liver_hu - beside_hu) + np.random.default_rng(0).normal(0, 8, SIZE)
    return ct.astype(np.int16), radius


def test_a_liver_cut_short_is_grown_and_its_visible_border_is_not_called_something_else() -> None:
    for beside in (-100, -800):  # fat and lung
        ct, radius = body(110, beside)
        liver, unknown = _refine_teacher(ct, radius < 28, tissues_by_hu(ct), MM)
        assert liver[radius < 28].all()
        assert not liver[radius > 32].any()
        # Where half of the step to fat is left, a reader draws the outline.
        visible = (radius < 33) & (ct > 20)
        assert (liver | unknown)[visible].mean() > 0.98
        assert not (liver | unknown)[radius > 40].any()


def test_what_is_brighter_than_liver_beside_it_is_known_not_to_be_liver() -> None:
    ct, radius = body(110, -100)
    cava = distance((24, 30, 48)) < 10
    ct[cava] = 190
    liver, unknown = _refine_teacher(ct, (radius < 30) | cava, tissues_by_hu(ct), MM)
    inner = distance((24, 30, 48)) < 6
    assert not (liver | unknown)[inner].any()


def test_fluid_is_told_from_liver_by_its_hu_and_the_rest_is_left_out() -> None:
    ct, radius = body(60, 12)
    liver, unknown = radius < 30, np.zeros(SIZE, dtype=bool)
    liver[:, 54:58] = True  # the teacher takes some of the fluid for liver
    tissues = tissues_by_hu(ct)
    region = _Region("fluid", posterior=(60, 9999))
    _apply_corrections([region], ct, tissues, liver, unknown, MM)
    behind = np.indices(SIZE)[1] >= 30
    fluid, inside = behind & (radius > 38), behind & (radius < 26)
    assert not (liver | unknown)[fluid].any()
    assert (tissues[fluid] == Tissue.FLUID).all()
    assert unknown[inside].all()
    assert (tissues[~behind] != Tissue.FLUID).all()
    assert not unknown[~behind].any()


def test_the_other_verdicts_leave_out_or_forbid() -> None:
    ct, radius = body(60, 12)
    for verdict in ("unknown", "no liver"):
        liver, unknown = radius < 30, radius < 34
        _apply_corrections([_Region(verdict, left=(60, 9999))], ct, tissues_by_hu(ct), liver, unknown, MM)
        right = np.indices(SIZE)[2] < 30
        assert unknown[~right].all() == (verdict == "unknown")
        assert liver[~right & (radius < 30)].all() == (verdict == "unknown")
        assert np.array_equal(unknown[right], (radius < 34)[right])
