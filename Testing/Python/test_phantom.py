# SPDX-License-Identifier: Apache-2.0
"""The synthetic abdomen: correct anatomy on the correct side, matching ground truth, and reproducibility."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from LiverXAILib.errors import UsageError
from LiverXAILib.phantoms import PHASES, TISSUES, Phantom, make_phantom, write_phantom
from LiverXAILib.phantoms.canvas import LATTICE_MM, Canvas, smooth_noise
from LiverXAILib.phantoms.scanner import scanner_noise
from LiverXAILib.phantoms.shapes import capsule, ellipsoid, interpolation, rotation

COARSE = (4.0, 4.0, 4.0)
SEEDS = (0, 1, 2)


@lru_cache(maxsize=32)
def a_phantom(seed: int = 0, **options: object) -> Phantom:
    return make_phantom(seed, spacing_mm=COARSE, **options)  # type: ignore[arg-type]


def bare(seed: int) -> Phantom:
    """The patient without lesions and noise, in the phase in which they are drawn."""
    return a_phantom(seed, phase=a_phantom(seed).phase, lesions=False, noise=False)


def centroid(phantom: Phantom, *names: str) -> np.ndarray:
    """LPS mm of the mean voxel of the tissues."""
    found = np.argwhere(np.isin(phantom.tissues.array, [TISSUES[name] for name in names]))
    return phantom.tissues.grid.to_lps(found[:, ::-1].mean(axis=0))


def milliliters(phantom: Phantom, *names: str) -> float:
    count = np.isin(phantom.tissues.array, [TISSUES[name] for name in names]).sum()
    return float(count * phantom.tissues.grid.voxel_volume_mm3 / 1000)


# --- reproducible, and independent of irrelevant arguments --------------------------------------------------------


def test_the_same_seed_gives_the_same_voxels() -> None:
    first, second = a_phantom(0), make_phantom(0, spacing_mm=COARSE)
    for one, other in ((first.ct, second.ct), (first.truth, second.truth), (first.tissues, second.tissues)):
        assert np.array_equal(one.array, other.array)
        assert np.array_equal(one.ijk_to_lps, other.ijk_to_lps)
    assert first.lesions == second.lesions


def test_different_seeds_are_different_patients() -> None:
    volumes = [(a_phantom(seed).truth.array > 0).sum() for seed in SEEDS]
    assert len(set(volumes)) == len(SEEDS)
    assert len({a_phantom(seed).ct.array.tobytes() for seed in SEEDS}) == len(SEEDS)


def test_another_spacing_shows_the_same_patient() -> None:
    coarse, fine = bare(1), make_phantom(1, spacing_mm=(2.5, 2.5, 3.0), lesions=False)
    assert np.linalg.norm(centroid(coarse, "liver") - centroid(fine, "liver")) < 2
    assert milliliters(coarse, "liver") == pytest.approx(milliliters(fine, "liver"), rel=0.03)
    # the liver of one, looked up at the voxel centers of the other
    at = np.rint(coarse.truth.grid.to_ijk(fine.truth.grid.to_lps(np.argwhere(fine.truth.array > 0)[:, ::-1])))
    i, j, k = at.astype(int).T
    assert (coarse.truth.array[k, j, i] > 0).mean() > 0.93


def test_another_phase_shows_the_same_patient_with_other_contrast() -> None:
    native, arterial, portal = (a_phantom(2, phase=phase, lesions=False, noise=False) for phase in PHASES)
    assert np.array_equal(native.tissues.array, arterial.tissues.array)
    assert np.array_equal(native.truth.array, portal.truth.array)

    def mean(phantom: Phantom, name: str) -> float:
        return float(phantom.ct.array[phantom.tissues.array == TISSUES[name]].mean())

    assert mean(arterial, "aorta") > mean(portal, "aorta") + 50 > mean(native, "aorta") + 100
    assert mean(portal, "portal_vein") > mean(portal, "liver") + 15
    assert mean(portal, "liver") > mean(arterial, "liver") > mean(native, "liver")


def test_noise_changes_the_image_and_nothing_else() -> None:
    noisy, clean = a_phantom(2, lesions=False), bare(2)
    liver = clean.tissues.array == TISSUES["liver"]
    assert np.array_equal(noisy.tissues.array, clean.tissues.array)
    difference = noisy.ct.array[liver].astype(float) - clean.ct.array[liver]
    assert 2 < difference.std() < 40
    assert abs(difference.mean()) < 1


# --- anatomy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_lie_on_their_side(seed: int) -> None:
    phantom = a_phantom(seed)
    liver, spleen, spine = (centroid(phantom, n) for n in ("liver", "spleen", "spinal_canal"))
    kidneys = centroid(phantom, "kidney_cortex", "kidney_medulla")
    left, posterior, superior = 0, 1, 2
    assert liver[left] < spine[left] - 20 < spleen[left] - 60
    assert spine[posterior] > liver[posterior] + 40
    assert centroid(phantom, "aorta")[left] > centroid(phantom, "vena_cava")[left] + 10
    assert centroid(phantom, "lung")[superior] > liver[superior] > kidneys[superior]
    if milliliters(phantom, "gallbladder"):  # some have none, as after surgery
        assert centroid(phantom, "gallbladder")[left] < spine[left]
    assert centroid(phantom, "gut_gas")[posterior] < centroid(phantom, "gut_fluid", "gut_contrast")[posterior]


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_have_a_plausible_size(seed: int) -> None:
    phantom = a_phantom(seed)
    liver = (phantom.truth.array > 0).sum() * phantom.truth.grid.voxel_volume_mm3 / 1000
    assert 750 < liver < 2700
    assert 50 < milliliters(phantom, "spleen") < 700
    assert 130 < milliliters(phantom, "kidney_cortex", "kidney_medulla") < 600
    assert milliliters(phantom, "gallbladder") < 90


@pytest.mark.parametrize("seed", SEEDS)
def test_the_liver_is_one_piece_away_from_the_ends_of_the_scan(seed: int) -> None:
    liver = a_phantom(seed).truth.array > 0
    pieces, _ = ndimage.label(liver)
    sizes = np.bincount(pieces.ravel())[1:]
    assert sizes.max() > 0.99 * sizes.sum()
    assert not liver[0].any()
    assert not liver[-1].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_liver_touches_its_neighbors(seed: int) -> None:
    phantom = bare(seed)
    around = ndimage.binary_dilation(phantom.truth.array > 0, iterations=3)  # with up to 12 mm of fat in between
    near = set(np.unique(phantom.tissues.array[around]))
    assert {TISSUES[n] for n in ("muscle", "visceral_fat", "lung", "vena_cava", "kidney_cortex")} <= near


@pytest.mark.parametrize("seed", SEEDS)
def test_outside_the_body_there_is_only_air_and_the_table(seed: int) -> None:
    phantom = bare(seed)
    tissues, ct = phantom.tissues.array, phantom.ct.array
    outside = np.isin(tissues, (TISSUES["air"], TISSUES["table"]))
    _, pieces = ndimage.label(~outside)
    assert pieces == 1
    away = ~ndimage.binary_dilation(tissues != TISSUES["air"], iterations=2)
    assert (ct[away] <= -990).all()
    assert ct.min() >= -1024
    assert ct.max() <= 3071


# --- truth and lesions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_the_liver_has_the_density_of_its_phase(phase: str) -> None:
    low, high = {"native": (-10, 85), "arterial": (10, 110), "portal": (45, 150)}[phase]
    phantom = a_phantom(2, phase=phase, lesions=False, noise=False)
    assert low < phantom.ct.array[phantom.tissues.array == TISSUES["liver"]].mean() < high


@pytest.mark.parametrize("seed", SEEDS)
def test_the_truth_says_what_the_tissues_say(seed: int) -> None:
    phantom = a_phantom(seed)
    kinds = ("lesion", "lesion_rim", "lesion_core", "lesion_calcification", "cyst")
    assert np.array_equal(phantom.truth.array == 2, np.isin(phantom.tissues.array, [TISSUES[n] for n in kinds]))
    own = ("liver", "portal_vein", "hepatic_vein")
    assert np.isin(phantom.tissues.array[phantom.truth.array == 1], [TISSUES[n] for n in own]).all()
    assert (phantom.truth.array[phantom.tissues.array == TISSUES["liver"]] == 1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_lesions_lie_in_the_liver_of_the_same_patient_without_them(seed: int) -> None:
    with_lesions, without = a_phantom(seed), bare(seed)
    assert (with_lesions.truth.array == 2).any()
    assert not (without.truth.array == 2).any()
    assert np.array_equal(with_lesions.truth.array > 0, without.truth.array > 0)


def test_lesions_are_as_many_as_asked_for_and_what_the_list_says() -> None:
    for seed, asked in ((6, 5), (7, 1)):
        phantom = make_phantom(seed, spacing_mm=(3.0, 3.0, 3.0), lesions=asked, noise=False, phase="portal")
        pieces, count = ndimage.label(phantom.truth.array == 2, np.ones((3, 3, 3)))
        assert count == len(phantom.lesions) == asked
        ct = phantom.ct.array
        liver = ct[phantom.tissues.array == TISSUES["liver"]].mean()
        centers = ndimage.center_of_mass(pieces > 0, pieces, range(1, count + 1))
        found = phantom.truth.grid.to_lps(np.array(centers)[:, ::-1])
        for lesion in phantom.lesions:
            distance = np.linalg.norm(found - lesion.center_lps, axis=1)
            piece = pieces == int(distance.argmin()) + 1
            assert distance.min() < 0.01
            assert lesion.volume_ml == pytest.approx(piece.sum() * 0.027)
            assert lesion.mean_hu == pytest.approx(ct[piece].mean(), abs=0.6)  # the image is rounded
            if lesion.kind == "hyperdense":
                assert lesion.mean_hu > liver
            else:
                assert lesion.mean_hu < liver - 5


def test_there_is_at_least_one_lesion_unless_none_is_asked_for() -> None:
    assert all(len(a_phantom(seed).lesions) >= 1 for seed in SEEDS)
    assert not bare(0).lesions


# --- the grid and the files ---------------------------------------------------------------------------------------


def test_the_grid_is_as_asked() -> None:
    phantom = make_phantom(9, spacing_mm=(3.0, 3.5, 6.0), field_of_view_mm=300, noise=False)
    assert phantom.ct.spacing == (3.0, 3.5, 6.0)
    assert np.array_equal(phantom.ct.grid.direction, np.eye(3))
    k, j, i = phantom.ct.shape
    assert i * 3.0 == pytest.approx(300, abs=3)
    assert j * 3.5 == pytest.approx(300, abs=3.5)
    assert 180 < k * 6 < 400
    assert phantom.ct.array.dtype == np.int16
    assert phantom.truth.array.dtype == phantom.tissues.array.dtype == np.uint8
    assert phantom.ct.grid.matches(phantom.truth.grid)
    assert phantom.ct.grid.matches(phantom.tissues.grid)


@pytest.mark.parametrize("name", ["case.nii.gz", "case.nrrd", "a.b.mha"])
def test_image_and_truth_are_written_side_by_side(tmp_path: Path, name: str) -> None:
    phantom = a_phantom(0)
    image, truth = write_phantom(phantom, tmp_path / name)
    assert image == tmp_path / name
    assert truth.name == {"case.nii.gz": "case", "case.nrrd": "case", "a.b.mha": "a.b"}[name] + "-truth.nrrd"
    assert sorted(tmp_path.iterdir()) == sorted((image, truth))
    for path, volume in ((image, phantom.ct), (truth, phantom.truth)):
        read = sitk.ReadImage(str(path))
        assert np.array_equal(sitk.GetArrayFromImage(read), volume.array)
        assert np.allclose(read.GetOrigin(), volume.grid.origin, atol=1e-3)
        assert np.allclose(read.GetSpacing(), volume.spacing)
        assert np.allclose(read.GetDirection(), np.eye(3).ravel())


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"phase": "venous"}, {"spacing_mm": (0.1, 1, 1)}, {"field_of_view_mm": 20}, {"lesions": -1}]
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_phantom(**{"seed": 0} | wrong)  # type: ignore[arg-type]


# --- the parts ----------------------------------------------------------------------------------------------------


def test_a_capsule_is_as_far_as_its_nearest_sphere() -> None:
    rng = np.random.default_rng(0)
    a, b = np.array([0.0, 1, 2, 3]), np.array([10.0, -4, 8, 3])
    p = rng.uniform(-15, 20, (3, 50)).astype(np.float32)
    spheres = a[:3] + np.linspace(0, 1, 4001)[:, None] * (b - a)[:3]
    expected = np.linalg.norm(p.T[:, None] - spheres[None], axis=2).min(axis=1) - 3
    assert np.allclose(capsule((p[0], p[1], p[2]), a, b), expected, atol=1e-3)


def test_an_ellipsoid_is_zero_at_its_surface_with_slope_one() -> None:
    rng = np.random.default_rng(1)
    axes, radii, center = rotation((1, 2, 3), 40), np.array([10.0, 20, 30]), np.array([5.0, -3, 8])
    unit = rng.normal(size=(100, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    normal = (unit / radii) @ axes
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    for offset in (-0.1, 0.0, 0.1):
        x, y, z = ((unit * radii) @ axes + center + offset * normal).T
        assert np.allclose(ellipsoid((x, y, z), center, radii, axes), offset, atol=0.01)


def test_the_interpolation_reproduces_parabolas() -> None:
    samples = np.arange(-10, 12, 2.0)
    at = np.linspace(-7.9, 7.9, 57)
    matrix = interpolation(-10, 2, len(samples), at)
    assert np.allclose(matrix @ (samples**2 - 3 * samples + 1), at**2 - 3 * at + 1, atol=1e-3)


def test_smooth_noise_has_the_spread_it_promises() -> None:
    for scale in (8.0, 20.0):
        field = smooth_noise(np.random.default_rng(0), scale)
        assert abs(field.mean()) < 0.1
        assert field.std() == pytest.approx(1, abs=0.15)
        assert np.abs(np.diff(field, axis=0)).mean() < 3 * LATTICE_MM / scale


def test_atlas_positions_are_found_in_the_scanner() -> None:
    canvas = Canvas(np.random.default_rng(3))
    points = np.random.default_rng(4).uniform((-110, -80, -200), (110, 80, 20), (40, 3))
    found = canvas._to_scanner(np.concatenate([points, np.ones((40, 1))], axis=1))
    origin = [axis[0] for axis in canvas.lattice]
    at = ((found[:, :3] - origin) / LATTICE_MM)[:, ::-1].T
    back = [ndimage.map_coordinates(coordinate, at, order=1) for coordinate in canvas.atlas]
    assert np.abs(np.array(back).T - points).max() < 0.3


def test_scanner_noise_has_a_ramp_spectrum() -> None:
    noise = scanner_noise(np.random.default_rng(0), (20, 128, 128), (1.5, 1.5, 3.0), cutoff=0.3, streaks=0)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean(axis=0)
    f = np.hypot(np.fft.fftfreq(128, 1.5)[:, None], np.fft.rfftfreq(128, 1.5)[None, :])
    low, middle, high = (power[(f > a) & (f < b)].mean() for a, b in ((0.0, 0.03), (0.15, 0.2), (0.4, 0.5)))
    assert middle > 2 * low
    assert middle > 2 * high


def test_streaks_run_from_left_to_right() -> None:
    noise = scanner_noise(np.random.default_rng(0), (10, 128, 128), (1.5, 1.5, 3.0), cutoff=0.3, streaks=10)
    along = [np.mean(noise * np.roll(noise, 6, axis=axis)) for axis in (2, 1)]
    assert along[0] > 0.1 > abs(along[1])
