# SPDX-License-Identifier: Apache-2.0
"""Of several series, the best CT of the abdomen is taken, the choice is reported, and another one can be picked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_body, geometry, write_series
from pydicom.dataset import Dataset

from LiverXAILib.errors import InputError
from LiverXAILib.volumes.dicom import SeriesInfo, rank
from LiverXAILib.volumes.dicom.headers import CtSlice, DicomFile
from LiverXAILib.volumes.dicom.series import arrange_series, arrange_slices
from LiverXAILib.volumes.io import list_series, read_volume

PLAIN = SeriesInfo(
    number=0,
    uid="1.2.3",
    series_number=5,
    modality="CT",
    description="Abdomen",
    kernel="B30f",
    image_type="ORIGINAL\\PRIMARY\\AXIAL",
    slices=100,
    size=(512, 512, 100),
    spacing=(0.8, 0.8, 3.0),
    axes="SPL",
)

WORSE = {
    "not usable": {"problem": "it is MR, not CT", "spacing": None, "axes": None, "size": None},
    "only usable after resampling": {"problem": "its slices are not evenly spaced", "can_be_resampled": True},
    "coronal": {"axes": "PIL", "slices": 300, "spacing": (0.8, 0.8, 1.0)},
    "too short": {"slices": 20, "spacing": (0.8, 0.8, 1.0)},
    "derived": {"image_type": "DERIVED\\SECONDARY\\AXIAL", "spacing": (0.8, 0.8, 1.25)},
    "lung in the description": {"description": "LUNG 1.25 mm", "spacing": (0.8, 0.8, 1.25)},
    "bone kernel": {"kernel": "BONEPLUS", "spacing": (0.8, 0.8, 1.25)},
    "Siemens sharp": {"kernel": "B70f", "spacing": (0.8, 0.8, 1.25)},
    "Siemens sharp, newer": {"kernel": "Br59d 3", "spacing": (0.8, 0.8, 1.25)},
    "Canon lung": {"kernel": "FC51", "spacing": (0.8, 0.8, 1.25)},
    "Philips sharp": {"kernel": "YB", "spacing": (0.8, 0.8, 1.25)},
    "thicker": {"spacing": (0.8, 0.8, 5.0)},
    "fewer slices": {"slices": 90},
    "later": {"series_number": 6},
    "without a number": {"series_number": None},
}


@pytest.mark.parametrize("change", WORSE.values(), ids=WORSE.keys())
def test_the_rule_prefers_the_plain_abdominal_series(change):
    assert rank(PLAIN) < rank(replace(PLAIN, **change))


@pytest.mark.parametrize("kernel", ["B30f", "Br38f 3", "I31f 2", "STANDARD", "SOFT", "FC08", "FC13", "B", "C", "STD+"])
def test_soft_kernels_are_not_taken_for_sharp_ones(kernel):
    assert rank(replace(PLAIN, kernel=kernel)) < rank(replace(PLAIN, kernel="LUNG"))


@pytest.mark.parametrize("name", ["Abdomen portal venous 5mm", "PV 5.0", "portalvenös", "Leber venous"])
def test_the_portal_venous_phase_is_preferred_even_if_thicker(name):
    assert rank(replace(PLAIN, description=name, spacing=(0.8, 0.8, 5.0))) < rank(PLAIN)
    assert rank(replace(PLAIN, description="Arterial 60s")) == rank(PLAIN)


def test_a_series_of_exactly_the_length_of_a_liver_is_long_enough_and_one_slice_less_is_not():
    thin = replace(PLAIN, slices=51, spacing=(0.8, 0.8, 2.0))
    assert rank(thin) < rank(PLAIN) < rank(replace(thin, slices=50))


def test_spacings_that_differ_by_rounding_do_not_decide_but_the_number_of_slices_does():
    assert rank(replace(PLAIN, spacing=(0.8, 0.8, 3.004), slices=101)) < rank(PLAIN)


@pytest.mark.parametrize(
    "better", [{"spacing": (0.8, 0.8, 2.9)}, {"slices": 101}, {"series_number": 4}, {"uid": "1.2"}]
)
def test_of_otherwise_equal_series_the_finer_longer_or_earlier_one_is_taken(better):
    assert rank(replace(PLAIN, **better)) < rank(PLAIN)


def test_of_series_with_a_problem_those_that_can_be_resampled_come_first():
    problem = replace(PLAIN, problem="1 of 5 slices are missing")
    assert rank(replace(problem, can_be_resampled=True, slices=90)) < rank(problem)


def one_slice(height: float, **options: object) -> CtSlice:
    fields = {"size": (16, 20), "position": np.array([0.0, 0.0, height]), "slope": 1.0, **options}
    fields.setdefault("orientation", np.array([1.0, 0, 0, 0, 1, 0]))
    fields.setdefault("pixel_spacing", np.array([0.9, 0.8]))
    return CtSlice(Path("slice"), 0, **fields)


@pytest.mark.parametrize(
    "directions", [[1.1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1.1, 0], [1, 0, 0, 0.1, 0.995, 0], [0, 0, 0, 0, 0, 0]]
)
def test_directions_that_are_not_of_length_one_and_perpendicular_are_refused(directions):
    slices = [one_slice(3.0 * k, orientation=np.array(directions, float)) for k in range(3)]
    assert arrange_slices(slices) == "its orientation or pixel size makes no sense"


@pytest.mark.parametrize("spacing", [[0.0, 0.8], [0.9, 0.0], [-0.9, 0.8]])
def test_a_pixel_size_that_is_not_positive_is_refused(spacing):
    slices = [one_slice(3.0 * k, pixel_spacing=np.array(spacing)) for k in range(3)]
    assert arrange_slices(slices) == "its orientation or pixel size makes no sense"


def test_the_list_tells_the_values_of_each_part_and_the_better_part_first():
    def file(number: int, kernel: str) -> DicomFile:
        slices = [one_slice(3.0 * k, instance=(10 * number + k, 0), identity={"kernel": kernel}) for k in range(4)]
        slices = tuple(replace(one, path=Path(kernel)) for one in slices)
        text = f"part {number}"
        return DicomFile(Path(kernel), "1.2.3", f"study {number}", number, "CT", text, kernel, text, None, slices)

    localizer = replace(file(3, ""), not_a_slice="it is a localizer (scout)", slices=())
    better, worse = arrange_series([file(1, "B70f"), file(2, "B30f"), localizer])
    assert (better.info.key, better.info.kernel, better.info.distinction) == ("0/1", "B30f", "kernel B30f")
    assert (worse.info.key, worse.info.kernel, worse.info.distinction) == ("0/2", "B70f", "kernel B70f")
    assert (better.info.series_number, better.info.description, better.info.image_type) == (2, "part 2", "part 2")
    assert (better.study, worse.study) == ("study 2", "study 1")
    assert better.files == {Path("B70f"), Path("B30f"), localizer.path}
    assert [(one.info.slices, one.info.size, one.info.n_skipped) for one in (better, worse)] == [
        (4, (20, 16, 4), 1)
    ] * 2
    assert (better.info.spacing, better.info.axes) == ((0.8, 0.9, 3.0), "SPL")
    np.testing.assert_allclose(better.stack.ijk_to_lps, np.diag([0.8, 0.9, 3.0, 1.0]))
    assert {(one.info.uid, one.info.modality) for one in (better, worse)} == {("1.2.3", "CT")}
    assert "uid" not in better.info.summary()


def test_a_series_of_pictures_alone_tells_what_they_are():
    paths = [Path("first"), Path("second")]
    files = [
        DicomFile(path, "1.2.3", "1.2.4", 5, "CT", "Scout", "B30f", "ORIGINAL", f"it is the {path}", ())
        for path in paths
    ]
    (series,) = arrange_series(files)
    assert (series.files, series.slices, series.study) == (set(paths), (), "1.2.4")
    info = series.info
    assert (info.uid, info.series_number, info.description, info.kernel) == ("1.2.3", 5, "Scout", "B30f")
    assert (info.slices, info.n_skipped, info.problem) == (0, 2, "it is the first")
    with pytest.raises(InputError, match=r"Scout.*it is the first"):
        _ = series.stack


def test_a_series_without_some_files_is_arranged_anew_and_warned_of_once():
    slices = [one_slice(2.0 * k, rescaled=False) for k in range(5)]
    slices = tuple(replace(one, path=Path(str(k))) for k, one in enumerate(slices))
    files = [
        DicomFile(one.path, "1.2.3", "1.2.4", 5, "CT", "Abdomen", "B30f", "ORIGINAL", None, (one,)) for one in slices
    ]
    (whole,) = arrange_series(files)
    (note,) = whole.notes
    assert "Hounsfield units" in note
    shorter = whole.without([Path("4")])
    assert shorter.info.slices == shorter.stack.count == 4
    assert shorter.info.problem is None
    assert shorter.files == {Path(str(k)) for k in range(4)}
    assert (shorter.study, shorter.notes) == ("1.2.4", whole.notes)
    gap = whole.without([Path("2")])
    assert "1 of 5 slices are missing" in gap.info.problem
    assert gap.info.can_be_resampled
    assert gap.without([Path("0"), Path("1")]).info.problem is None
    single = whole.without([Path(str(k)) for k in range(1, 5)])
    with pytest.raises(InputError, match="single slice"):
        _ = single.stack


def test_two_slices_are_a_stack():
    stack = arrange_slices([one_slice(0.0), one_slice(3.0)])
    assert not isinstance(stack, str)
    assert (stack.count, stack.spacing) == (2, 3.0)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("millimeters", [1e155, 1e300])
def test_positions_beyond_all_measure_are_a_problem_of_the_series_and_no_failure(millimeters):
    files = [
        DicomFile(Path(str(k)), "1.2.3", "", 5, "CT", "", "", "", None, (one_slice(millimeters * k),)) for k in range(3)
    ]
    (series,) = arrange_series(files)
    assert series.info.problem == "its orientation or pixel size makes no sense"
    assert series.arranged is None
    assert series.info.slices == series.places == 3


def test_the_choice_is_reported_and_another_series_can_be_picked(tmp_path):
    thin, thick = a_body((26, 64, 80), seed=1), a_body((11, 64, 80), seed=2)
    scout = write_series(
        tmp_path, a_body((2, 64, 80)), geometry(), names=["a0", "a1"], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    thick_uid = write_series(
        tmp_path, thick, geometry((0.8, 0.8, 10)), names=[f"b{k}" for k in range(11)], SeriesNumber=4
    )
    thin_uid = write_series(tmp_path, thin, geometry((0.8, 0.8, 4)), names=[f"c{k}" for k in range(26)], SeriesNumber=9)

    found = list_series(tmp_path)
    assert [one.uid for one in found] == [thin_uid, thick_uid, scout]
    assert [one.number for one in found] == [1, 2, 3]
    assert [one.slices for one in found] == [26, 11, 0]
    assert found[0].size == (80, 64, 26)
    assert found[0].spacing == pytest.approx((0.8, 0.8, 4))
    assert found[0].axes == "SPL"
    assert [one.problem for one in found] == [None, None, "it is a localizer (scout)"]

    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, thin)
    assert volume.metadata["series"]["series_number"] == 9
    assert [other["series_number"] for other in volume.metadata["other_series"]] == [4, 3]
    assert volume.metadata["other_series"][1]["problem"] == "it is a localizer (scout)"
    assert any("2 usable CT series" in warning for warning in volume.metadata["warnings"])

    for choice in (2, "2", thick_uid):
        picked = read_volume(tmp_path, series=choice)
        np.testing.assert_array_equal(picked.array, thick)
        assert picked.metadata["series_instance_uid"] == thick_uid
        assert not any("usable CT series" in warning for warning in picked.metadata["warnings"])


def test_an_unusable_series_is_passed_over_with_its_reason(tmp_path):
    good = a_body((5, 64, 80), seed=1)

    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0, float(k // 2)]

    write_series(tmp_path / "perfusion", a_body((8, 64, 80)), geometry(), edit=edit, SeriesDescription="Perfusion")
    write_series(tmp_path / "good", good, geometry())
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, good)
    assert any("Perfusion" in one and "duplicate positions" in one for one in volume.metadata["warnings"])


def test_a_pick_that_cannot_be_used_says_why_and_that_others_can(tmp_path):
    write_series(tmp_path / "a", a_body((1, 64, 80)), geometry(), SeriesDescription="Bolus")
    write_series(tmp_path / "b", a_body(), geometry())
    with pytest.raises(Exception, match=r'"Bolus".*single slice.*1 other series'):
        read_volume(tmp_path, series=2)


def test_the_choice_among_several_series_is_told_exactly(tmp_path):
    write_series(tmp_path / "a", a_body((6, 16, 20)), geometry(), SeriesNumber=1, SeriesDescription="A")
    write_series(tmp_path / "b", a_body((5, 16, 20)), geometry(), SeriesNumber=2, SeriesDescription="B")
    sides = [[0.0, 0.0, 0.0], [9.0, 0.0, 3.0], [0.0, 0.0, 6.0]]
    write_series(
        tmp_path / "c",
        a_body((3, 16, 20)),
        geometry(),
        edit=lambda dataset, k: setattr(dataset, "ImagePositionPatient", sides[k]),
        SeriesNumber=3,
        SeriesDescription="C",
    )
    # A bolus image of one slice is nothing that a user would look for.
    write_series(tmp_path / "d", a_body((1, 16, 20)), geometry(), SeriesNumber=4, SeriesDescription="D")
    chosen, passed_over = read_volume(tmp_path).metadata["warnings"]
    assert chosen == ('DICOM series 1 ("A") was chosen of 2 usable CT series; --series (series=) selects another.')
    assert passed_over.startswith('DICOM series 3 ("C"), 3 slices, was skipped: its slices are shifted sideways')
    assert read_volume(tmp_path, series=" 2 ").metadata["warnings"] == []
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path, series=3)
    assert str(caught.value).endswith("2 other series here can be read: choose one with --series (series=).")


def test_one_usable_series_needs_no_word_about_a_choice(tmp_path):
    write_series(tmp_path / "a", a_body((4, 16, 20)), geometry())
    write_series(tmp_path / "b", a_body((1, 16, 20)), geometry())
    volume = read_volume(tmp_path)
    assert volume.metadata["warnings"] == []
    assert [other["number"] for other in volume.metadata["other_series"]] == [2]
    assert volume.metadata["files"] == [str(tmp_path / "a" / f"{k:03d}.dcm") for k in range(4)]


def test_a_picked_part_is_read_without_a_word_about_its_siblings(tmp_path):
    options = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2.5"}
    for kernel in ("B70f", "B30f"):
        write_series(tmp_path / kernel, a_body((4, 16, 20)), geometry(), ConvolutionKernel=kernel, **options)
    told = read_volume(tmp_path).metadata["warnings"]
    part = 'The series holds 2 scans, of which DICOM series 3 ("Abdomen"), kernel B30f was chosen'
    assert told[0] == f"{part} (--series 1/2: kernel B70f)."
    assert read_volume(tmp_path, series=1).metadata["warnings"] == told[:1]
    for key in ("1/1", "1.2.3/1"):
        assert read_volume(tmp_path, series=key).metadata["warnings"] == []
