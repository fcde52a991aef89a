# SPDX-License-Identifier: Apache-2.0
"""``--segmentation``: contours from elsewhere are measured and explained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from LiverXAILib import cli
from LiverXAILib.errors import InputError
from LiverXAILib.inference import read_segmentation
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.models.spec import LIVER, TUMOR
from LiverXAILib.report import write_segmentation_file
from LiverXAILib.volumes.io import read_volume, write_volume
from LiverXAILib.volumes.orientation import reorient
from LiverXAILib.volumes.volume import Volume

SHAPE = (24, 40, 44)
MATRIX = np.diag([3.0, 3.0, 4.0, 1.0])
TRUTH = np.zeros(SHAPE, np.uint8)
TRUTH[4:20, 8:32, 8:36] = 1
TRUTH[8:13, 14:20, 12:18] = 2
TRUTH[14:16, 24:28, 26:31] = 2
CT = Volume(np.where(TRUTH == 2, 60, np.where(TRUTH == 1, 110, -900)).astype(np.int16), MATRIX)


def _forms(folder: Path) -> dict[str, list[Path]]:
    """The same contours as different programs store them."""
    write_volume(Volume(TRUTH, MATRIX), folder / "map.nii.gz")
    write_volume(reorient(Volume(TRUTH, MATRIX), "LAI"), folder / "turned.nrrd")
    write_volume(Volume((TRUTH > 0).astype(np.uint8), MATRIX), folder / "liver.nii.gz")
    write_volume(Volume((TRUTH == 2) * np.uint8(255), MATRIX), folder / "tumor.nii.gz")
    write_segmentation_file(Segmentation(Volume(TRUTH, MATRIX), (LIVER, TUMOR)), folder / "drawn.seg.nrrd")
    return {
        "label map": [folder / "map.nii.gz"],
        "other order of axes": [folder / "turned.nrrd"],
        "liver and tumor apart": [folder / "liver.nii.gz", folder / "tumor.nii.gz"],
        "seg.nrrd": [folder / "drawn.seg.nrrd"],
    }


@pytest.mark.parametrize("form", ["label map", "other order of axes", "liver and tumor apart", "seg.nrrd"])
def test_contours_in_any_form_are_measured_alike(form: str, tmp_path: Path) -> None:
    given = read_segmentation(_forms(tmp_path)[form], CT)
    np.testing.assert_array_equal(given.labels.array, TRUTH)
    measured = measure(CT, given)
    assert measured.liver_volume_ml == pytest.approx(np.count_nonzero(TRUTH) * 0.036)
    assert measured.lesion_count == 2
    assert measured.lesions[0].contrast_hu == pytest.approx(-50)


def test_values_can_be_given_a_meaning_and_others_be_left_out(tmp_path: Path) -> None:
    odd = np.select([TRUTH == 2, TRUTH == 1], [7, 5], 0).astype(np.uint8)
    odd[0, 0, :5] = 9
    write_volume(Volume(odd, MATRIX), tmp_path / "odd.nii.gz")
    meaning = {"liver": 5, "tumor": 7}
    given = read_segmentation(str(tmp_path / "odd.nii.gz"), CT, meaning, others=True)
    np.testing.assert_array_equal(given.labels.array, TRUTH)
    assert given.specs == (LIVER, TUMOR)
    assert given.provenance["source"] == "given contours"
    assert [text for text in given.provenance["warnings"] if "not made by the model" in text]
    with pytest.raises(InputError, match=r"--liver-label and --tumor-label.*--ignore-other-labels"):
        read_segmentation(tmp_path / "odd.nii.gz", CT, meaning)
    only_liver = read_segmentation([tmp_path / "odd.nii.gz"], CT, {"liver": (5, 7)}, others=True)
    assert only_liver.specs == (LIVER,)
    np.testing.assert_array_equal(only_liver.mask("liver"), TRUTH > 0)


def test_contours_without_tumors_say_nothing_of_tumors(tmp_path: Path) -> None:
    _forms(tmp_path)
    measured = measure(CT, read_segmentation(tmp_path / "liver.nii.gz", CT))
    assert (measured.tumor_volume_ml, measured.lesion_count) == (None, None)


def test_contours_without_a_liver_or_of_another_image_are_refused(tmp_path: Path) -> None:
    _forms(tmp_path)
    write_volume(Volume((TRUTH == 2) * np.uint8(2), MATRIX), tmp_path / "only.nii.gz")
    with pytest.raises(InputError, match=r"^only\.nii\.gz: there is no liver"):
        read_segmentation(tmp_path / "only.nii.gz", CT)
    with pytest.raises(InputError, match=r"^tumor\.nii\.gz, only\.nii\.gz: there is no liver"):
        read_segmentation([tmp_path / "tumor.nii.gz", tmp_path / "only.nii.gz"], CT)
    write_volume(Volume(TRUTH * 0, MATRIX), tmp_path / "empty.nii.gz")
    with pytest.raises(InputError, match="nothing is drawn"):
        read_segmentation(tmp_path / "empty.nii.gz", CT)
    moved = MATRIX.copy()
    moved[0, 3] = 40
    with pytest.raises(InputError, match="different places"):
        read_segmentation(tmp_path / "map.nii.gz", Volume(CT.array, moved))
    write_volume(Volume(TRUTH * np.uint8(100), MATRIX), tmp_path / "odd.nii.gz")
    with pytest.raises(InputError, match="neither liver nor tumor"):
        read_segmentation(tmp_path / "odd.nii.gz", CT)


@pytest.mark.parametrize(
    ("names", "culprit"),
    [
        (["tumor.nii.gz"], "tumor.nii.gz"),
        (["Lesions.nrrd"], "Lesions.nrrd"),
        (["liver_a.nii.gz", "tumor_a.nii.gz"], "tumor_a.nii.gz"),
        (["liver.nii.gz", "tumor_a.nii.gz"], "tumor_a.nii.gz"),
        (["tumor_a.nii.gz", "liver.nii.gz"], "tumor_a.nii.gz"),
        (["drawn.seg.nrrd", "tumor_a.nii.gz"], "tumor_a.nii.gz"),
    ],
)
def test_a_mask_that_may_show_tumors_is_never_taken_for_the_liver(
    names: list[str], culprit: str, tmp_path: Path
) -> None:
    _forms(tmp_path)
    for name in (name for name in names if not (tmp_path / name).exists() or name == "tumor.nii.gz"):
        drawn = TRUTH > 0 if "liver" in name else TRUTH == 2
        write_volume(Volume(drawn.astype(np.uint8), MATRIX), tmp_path / name)
    paths = [tmp_path / name for name in names]
    with pytest.raises(InputError, match=rf"^{culprit}: nothing says .*'liver' and 'tumor'.*--liver-label"):
        read_segmentation(paths, CT)
    read_segmentation(paths, CT, {"liver": 1}, others=True)  # the user's word


def test_a_mask_without_a_name_is_the_liver_if_nothing_else_is(tmp_path: Path) -> None:
    _forms(tmp_path)
    (tmp_path / "liver.nii.gz").rename(tmp_path / "patient7.nii.gz")
    given = read_segmentation([tmp_path / "tumor.nii.gz", tmp_path / "patient7.nii.gz"], CT)
    np.testing.assert_array_equal(given.labels.array, TRUTH)
    (tmp_path / "map.nii.gz").rename(tmp_path / "tumors.nii.gz")  # with both values, it is clear
    np.testing.assert_array_equal(read_segmentation(tmp_path / "tumors.nii.gz", CT).labels.array, TRUTH)


def test_the_command_measures_and_explains_given_contours(
    tmp_path: Path, toy_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _forms(tmp_path)["liver and tumor apart"]
    write_volume(CT, tmp_path / "ct.nii.gz")
    command = ["analyze", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out"), "--model", toy_model, "--no-report"]
    options = ["--height", "170", "--weight", "70", "--recist-targets", "2", "--explain", "tumor"]
    assert cli.main([*command, "--segmentation", *map(str, files), *options]) == 0
    assert "contours were given" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "measurements.json").read_text(encoding="utf-8"))
    assert content["lesion_count"] == 2
    assert content["recist"]["targets"] == [2]
    assert content["standard_volume_ml"] > 1000
    np.testing.assert_array_equal(read_segmentation(tmp_path / "out" / "segmentation.seg.nrrd", CT).labels.array, TRUTH)
    assert (tmp_path / "out" / "heatmap-tumor.nrrd").is_file()
    assert cli.main([*command, "--liver-label", "1"]) == 2
    assert "need --segmentation" in capsys.readouterr().err
    # Options about a model's output do not apply here.
    for option, words in (
        (["--sensitivity", "specific"], "sensitivity"),
        (["--min-lesion-ml", "1"], "these contours were given"),
        (["--no-postprocessing"], "these contours were given"),
    ):
        assert cli.main([*command, "--segmentation", *map(str, files), *option]) == 2
        assert words in capsys.readouterr().err
    words = ["--image", str(tmp_path / "ct.nii.gz"), "--reject", "1", "--model", toy_model]
    assert cli.main(["refine", str(tmp_path / "out"), *words]) == 2
    assert "made from given contours" in capsys.readouterr().err
    # With a value for the tumor alone, the tumor would be the whole liver.
    assert cli.main([*command, "--segmentation", str(files[0]), "--tumor-label", "1"]) == 2
    assert "Give both values" in capsys.readouterr().err


def test_the_manual_contours_of_a_real_case_give_its_known_volumes() -> None:
    root = os.environ.get("LIVERXAI_TEST_DATA")
    if root is None:
        pytest.skip("LIVERXAI_TEST_DATA is not set")
    folder = Path(root) / "ct" / "ircad01"
    volume = read_volume(folder / "image.nii.gz")
    measured = measure(volume, read_segmentation([folder / "liver.nii.gz", folder / "tumor.nii.gz"], volume))
    assert measured.liver_volume_ml == pytest.approx(1489, abs=1)
    assert measured.tumor_volume_ml == pytest.approx(111, abs=1)
    assert measured.lesion_count == 8
    assert measured.plausible
    assert measured.phase is not None
    assert measured.phase.phase == "portal venous"
