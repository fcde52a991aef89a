# SPDX-License-Identifier: Apache-2.0
"""Slicer's views: every pixel has the blended color of CT and heat map at its position."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forking import Process
from mrml_toys import ball_analysis
from slicerhost.rendering import can_render

from LiverXAILib.colors import heat_color
from LiverXAILib.models import LIVER, TUMOR

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """Pictures by case and view."""
    if not can_render():
        pytest.skip("off-screen rendering needs EGL or OSMesa (Debian: libegl1 libgl1-mesa-dri)")
    path = tmp_path_factory.mktemp("views") / "views.npz"
    command = [sys.executable, "-m", "render_views", str(path)]
    paths = [str(HERE), str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    return dict(np.load(path))


def places(views, name):
    """The patient position (RAS mm) of each pixel's center, (row, column, 3); the first row is the top one."""
    height, width, _ = views[f"{name}|picture"].shape
    row, column = np.mgrid[:height, :width]
    xyz1 = np.stack([column, height - 1 - row, np.zeros_like(row), np.ones_like(row)], axis=-1)
    return (xyz1 @ views[f"{name}|xy_to_ras"].T)[..., :3]


def expected_colors(ras, opacity):
    """CT in its intensity window, and the heat map's color over it above the threshold; 0 to 255."""
    from render_views import THRESHOLD, heat, hounsfield

    gray = np.repeat(np.clip((hounsfield(ras) + 160) / 400, 0, 1)[..., None], 3, axis=-1)
    color = heat_color(heat(ras)) / 255
    alpha = np.where(heat(ras) >= THRESHOLD, opacity, 0.0)[..., None]
    return 255 * ((1 - alpha) * gray + alpha * color)


def check_pixels(views, name, opacity):
    from render_views import THRESHOLD, heat

    ras = places(views, name)
    picture = views[f"{name}|picture"].astype(float)
    # At the threshold, colors depend on interpolation; elsewhere all pixels must agree.
    sure = np.abs(heat(ras) - THRESHOLD) > 0.02
    sure &= np.abs(ras - places(views, name)[128, 128]).max(axis=-1) < 28  # well inside the volume
    assert sure.sum() > 5000
    difference = np.abs(picture - expected_colors(ras, opacity))[sure]
    # Colors are rounded to 1/256, gray twice.
    assert difference.max() < 4
    assert difference.mean() < 1


@pytest.mark.parametrize("orientation", ["Axial", "Coronal", "Sagittal"])
@pytest.mark.parametrize("case", ["axis-aligned", "oblique", "oblique left-handed", "sheared", "transformed"])
def test_each_pixel_blends_ct_and_heat_map_at_its_place(views, case, orientation):
    from render_views import OPACITY

    check_pixels(views, f"{case}|{orientation}", OPACITY)


def test_a_slice_at_an_angle_shows_the_same_patient(views):
    from render_views import OPACITY

    check_pixels(views, "transformed|turned", OPACITY)
    check_pixels(views, "CT alone|turned", 0.0)


def test_outlines_run_along_the_borders_of_liver_and_lesion_and_nothing_is_filled(views):
    picture = views["outlines|Axial|picture"].astype(float)
    lps = places(views, "outlines|Axial") * (-1, -1, 1)
    grid = ball_analysis().volume.grid
    center = grid.to_lps((np.array(grid.shape[::-1]) - 1) / 2)
    for spec, middle, radius in ((LIVER, center, 45.0), (TUMOR, center + np.array([20.0, 10.0, 15.0]), 12.0)):
        drawn = np.linalg.norm(picture - spec.color, axis=-1) < 40
        assert drawn.sum() > 60
        distance = np.abs(np.linalg.norm(lps[drawn] - middle, axis=-1) - radius)
        # Voxels of 1.9 × 2.2 × 2.6 mm, labels within one of them, a line of 2 pixels.
        assert distance.max() < 6.5
        assert distance.mean() < 2.0
    inside = np.linalg.norm(lps - center, axis=-1) < 30
    gray = np.ptp(picture, axis=-1) < 4
    assert gray[inside].mean() > 0.7


def test_the_lesion_is_seen_through_the_liver_where_it_lies(views):
    picture = views["surfaces|picture"].astype(float)
    green = picture[..., 1] > picture[..., 0] + 12
    green &= picture[..., 1] > picture[..., 2] + 12
    assert green.sum() > 50
    row, column = np.argwhere(green).mean(axis=0)
    np.testing.assert_allclose((row, column), views["surfaces|lesion_xy"], atol=4)
