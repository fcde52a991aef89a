# SPDX-License-Identifier: Apache-2.0
"""The network that outlines lesions from clicks: its files, its input, its recipe, its benchmark."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from toys import ball_phantom, dice, threshold_model

from LiverXAILib.benchmarks.clicks import SIZES, click_rows, gain, table
from LiverXAILib.errors import ModelError, UsageError
from LiverXAILib.inference import outline_network as outlines
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.volumes.volume import Grid, Volume
from recipes.outlines import marked
from recipes.outlines.samples import STORED, Scan, make_cube
from recipes.outlines.train import _drawn, _stored, correct, evaluate, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scan():
    """A noisy ball of liver in fat, with voxels of 1.2 × 1.2 × 2.5 mm."""
    shape, spacing = (28, 56, 56), (2.5, 1.2, 1.2)
    axes = [(np.arange(n) - n / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    inside = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 < 31**2
    hu = np.where(inside, 110, -80) + np.random.default_rng(0).normal(0, 8, shape)
    ct = Volume(hu.astype(np.float32), np.diag([1.2, 1.2, 2.5, 1]))
    return Scan("ball", ct, inside, np.zeros(shape, np.int32))


def test_a_damaged_network_is_refused(tmp_path):
    folder = tmp_path / "outlines"
    shutil.copytree(outlines.OUTLINES, folder)
    weights = folder / outlines.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="not the file that its model card describes"):
        outlines.outline_network(folder)


@pytest.mark.parametrize(
    "card",
    [None, "", "{", "[]", "{}", '"text"', "\udcff", '{"sha256": 1}', '{"sha256": "0", "arguments": 3}'],
    ids=lambda text: repr(text)[:12],
)
def test_a_damaged_card_is_refused_in_words(card, tmp_path, monkeypatch):
    if card is not None:
        (tmp_path / outlines.CARD).write_bytes(card.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match="Reinstall LiverXAI"):
        outlines.outline_network(tmp_path)


def test_a_card_whose_arguments_do_not_fit_its_weights_is_refused_in_words(tmp_path, monkeypatch):
    folder = tmp_path / "outlines"
    shutil.copytree(outlines.OUTLINES, folder)
    card = json.loads((folder / outlines.CARD).read_text(encoding="utf-8"))
    for arguments in ({}, {"nonsense": 1}, {**card["arguments"], "features": "many"}):
        (folder / outlines.CARD).write_text(json.dumps({**card, "arguments": arguments}), encoding="utf-8")
        with pytest.raises(ModelError):
            outlines.outline_network(folder)


@pytest.mark.parametrize("folder", [outlines.OUTLINES, outlines.CLICKS], ids=["outlines", "clicks"])
def test_the_card_tells_what_the_network_was_trained_on(folder):
    card = json.loads((folder / outlines.CARD).read_text(encoding="utf-8"))
    assert any(run["marked"] for run in card["training"]["runs"]) == (folder == outlines.OUTLINES)
    assert len(card["training"]["data"]) == 4
    assert card["license"] == "Apache-2.0"
    assert not set(card["training"]["scans"]) & set(card["training"]["held_out"])
    assert not {"chaos03", "ircad01"} & set(card["training"]["scans"])


def test_the_cube_lies_around_the_click_along_the_patients_axes():
    oblique = np.diag([0.7, 0.7, 3.0, 1.0])
    oblique[:3, 3] = (-100, -50, 20)
    grid = Grid((20, 40, 40), oblique)
    cube = outlines.cube_grid(grid, (-90.0, -40.0, 44.0), 2.0)
    np.testing.assert_allclose(cube.spacing, 2.0)
    np.testing.assert_allclose(cube.to_lps(np.full(3, outlines.SIZE // 2)), (-90, -40, 44))
    turned = outlines.cube_grid(Grid((40, 40, 20), oblique[:, [2, 1, 0, 3]]), (-90.0, -40.0, 44.0), 2.0)
    np.testing.assert_allclose(turned.ijk_to_lps, cube.ijk_to_lps, atol=1e-9)


def test_clicks_are_spots_in_channels_of_their_own():
    zero = torch.zeros(8, 8, 8)
    channels = outlines.network_input(zero + 400, zero > 1, [(4, 4, 4)], [(1, 2, 3), (6, 6, 6)], zero)
    assert channels.shape == (outlines.CHANNELS, 8, 8, 8)
    assert channels[0].max() == 3
    assert (channels[2] == 1).nonzero().tolist() == [[4, 4, 4]]
    assert (channels[3] == 1).nonzero().tolist() == [[1, 2, 3], [6, 6, 6]]


def test_the_network_is_trained_from_painted_lesions(scan, tmp_path, monkeypatch):
    made = (make_cube(scan, seed, scale_mm=1.0, diameter_mm=9.0) for seed in range(40))
    inner = (cube for cube in made if cube is not None and cube.lesion[6:-6, 6:-6, 6:-6].any())
    cubes = list(itertools.islice(inner, 4))
    assert {cube.hu.shape for cube in cubes} == {(STORED,) * 3}
    assert all(5 < (6 * cube.lesion.sum() / np.pi) ** (1 / 3) < 12 for cube in cubes)
    contrasts = [abs(cube.hu[cube.lesion].mean() - np.median(cube.hu[cube.liver & ~cube.lesion])) for cube in cubes]
    assert max(contrasts) > 10
    again = make_cube(scan, 3, scale_mm=1.0, diameter_mm=9.0)
    np.testing.assert_array_equal(again.hu, make_cube(scan, 3, scale_mm=1.0, diameter_mm=9.0).hu)
    network = train(cubes, cubes[:1], 1, 0, tmp_path)
    loaded = outlines.outline_network(tmp_path)
    image = torch.zeros(1, outlines.CHANNELS, *(outlines.SIZE,) * 3)
    with torch.inference_mode():
        difference = (loaded(image) - network.eval()(image)).abs().max()
    assert float(difference) < 1e-2  # half precision


@pytest.fixture(scope="module")
def bright(scan):
    """The ball with two bright balls in it, of which only the first is a lesion."""
    k, j, i = np.indices(scan.ct.shape)
    first, second = (
        (2.5 * (k - a)) ** 2 + (1.2 * (j - b)) ** 2 + (1.2 * (i - 28)) ** 2 < 36 for a, b in ((14, 20), (14, 38))
    )
    hu = np.where(first | second, 230, scan.ct.array).astype(np.float32)
    return dataclasses.replace(scan, ct=scan.ct.with_array(hu), lesions=first.astype(np.int32))


def test_what_a_model_marks_becomes_a_cube_with_its_probability(bright):
    true, false = marked._cubes(bright, threshold_model(), known=True)
    assert {true.hu.shape, true.liver.shape, true.lesion.shape, true.before.shape} == {(STORED,) * 3}
    assert true.scale_mm == 1
    assert dice(true.before > 0.5, true.lesion) > 0.8
    assert true.lesion[STORED // 2, STORED // 2, STORED // 2]
    assert not false.lesion.any()
    assert false.before.max() > 0.9
    # Where lesions are not all known, what the model marks besides them may be one.
    (only,) = marked._cubes(bright, threshold_model(), known=False)
    np.testing.assert_array_equal(only.lesion, true.lesion)


def test_lesions_are_painted_beside_each_other_and_the_same_again(scan):
    one, two = (marked._with_lesions(scan, Rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one.ct.array, two.ct.array)
    assert one.lesions.max() >= 3
    assert (one.ct.array != scan.ct.array)[one.lesions > 0].mean() > 0.9
    assert not one.lesions[~scan.liver].any()


def test_the_network_is_trained_on_what_a_model_marks_without_clicks(bright, tmp_path):
    cubes = list(marked._cubes(bright, threshold_model(), known=True))
    sample = _drawn(cubes[0], np.random.default_rng(0))
    assert sample.input().shape == (outlines.CHANNELS, *(outlines.SIZE,) * 3)
    assert not sample.input()[2:4].any()
    assert sample.before.max() > 0.9
    stored = _stored(tmp_path / "cubes.npz", lambda: cubes)
    again = _stored(tmp_path / "cubes.npz", lambda: [])
    for one, two, three in zip(cubes, stored, again, strict=True):
        for name in ("hu", "liver", "lesion", "before", "scale_mm"):
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
            np.testing.assert_array_equal(getattr(three, name), getattr(one, name))
    network = train(cubes, cubes, 2, 0, tmp_path)
    words = evaluate(network, cubes)
    assert "marked 10-20 mm (1)" in words
    assert "no lesion (1)" in words
    assert "clicks" not in words


def test_a_reader_clicks_in_the_middle_of_the_largest_mistake():
    from recipes.outlines.train import _Sample

    truth = torch.zeros(16, 16, 16, dtype=torch.bool)
    truth[4:9, 4:9, 4:9] = True
    zero = torch.zeros(16, 16, 16)
    missed = _Sample(zero, zero > 1, truth, [(6, 6, 6)], [], zero)
    correct(missed, zero)
    assert missed.inside == [(6, 6, 6), (6, 6, 6)]
    leaked = _Sample(zero, zero > 1, truth, [(6, 6, 6)], [], zero)
    found = truth.float()
    found[10:15, 10:15, 10:15] = 1
    correct(leaked, found)
    assert leaked.outside == [(12, 12, 12)]
    assert leaked.before is found
    perfect = _Sample(zero, zero > 1, truth, [(6, 6, 6)], [], zero)
    correct(perfect, truth.float())
    assert (perfect.inside, perfect.outside) == ([(6, 6, 6)], [])


def test_the_benchmarks_table_has_a_row_for_each_method_and_a_column_for_each_size():
    rows = [
        {"method": name, "diameter_mm": size, "dice": dice, "seconds": 0.1}
        for name, dice in (("LiverXAI", 0.5), ("LiverXAI, after a corrective click", 0.7))
        for size in (8.0, 15.0)
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert len(SIZES) == 3
    assert lines[2] == "| LiverXAI | 0.50 (1) | 0.50 (1) | – | 0.10 |"
    assert gain(rows) == pytest.approx(0.2)


def test_with_a_model_the_benchmark_outlines_as_after_an_analysis(monkeypatch):
    ct, truth = ball_phantom(Grid((48, 48, 48), np.diag([2.0, 2.0, 2.0, 1.0])), organ_mm=42.0)
    asked = []

    def outlined(ct, segmentation, place, *, by="corrected"):
        asked.append((by, "tumor" in segmentation.probabilities, segmentation.mask("tumor").any()))
        raise UsageError("nothing there")

    monkeypatch.setattr("LiverXAILib.benchmarks.clicks.outline_lesion", outlined)
    for model in (None, threshold_model()):
        click_rows(ct, truth.array > 0, truth.array == 2, seed=0, model=model)
    alone, after = asked[:6], asked[6:]
    assert alone == [("best", False, False), ("corrected", False, False), ("contrast", False, False)] * 2
    known = [("best", True, False), ("corrected", True, False), ("contrast", False, False)]
    assert after == [*known, ("probability", True, False)] * 2


def test_lesions_of_a_phantom_are_as_large_as_asked_for():
    phantom = make_phantom(900, spacing_mm=(3.0, 3.0, 4.0), lesions=4, lesion_mm=(14.0, 18.0))
    assert len(phantom.lesions) >= 2
    for lesion in phantom.lesions:
        assert 10 < (6 * lesion.volume_ml * 1000 / np.pi) ** (1 / 3) < 22
