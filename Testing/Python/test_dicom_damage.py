# SPDX-License-Identifier: Apache-2.0
"""A damaged DICOM file is named and skipped: the folder is still listed, and the rest is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_series import a_body, geometry, write_series
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from LiverXAILib.context import UNATTENDED
from LiverXAILib.errors import Cancelled, InputError
from LiverXAILib.progress import CancelToken
from LiverXAILib.volumes.dicom import FoundSeries, find_series
from LiverXAILib.volumes.dicom.finding import series_at
from LiverXAILib.volumes.io import list_series, read_volume

INTERCEPT_TAG = b"\x28\x00\x52\x10DS"


def with_bytes(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def with_value(tag: bytes, value: bytes) -> Callable[[bytes], bytes]:
    """Replace the value of an element with a short length (tag and VR as bytes) by other bytes."""

    def change(data: bytes) -> bytes:
        at = data.index(tag)
        length = int.from_bytes(data[at + 6 : at + 8], "little")
        padded = value + b" " * (len(value) % 2)
        return data[: at + 6] + len(padded).to_bytes(2, "little") + padded + data[at + 8 + length :]

    return change


def inserted(element: bytes) -> Callable[[bytes], bytes]:
    """Insert an element before Rescale Intercept."""
    return with_bytes(INTERCEPT_TAG, element + INTERCEPT_TAG)


#: Damage to attributes that affect voxels: the file is skipped.
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty"),
    "cut in the header": (lambda data: data[:300], "header"),
    "cut in the pixels": (lambda data: data[:-100], "incomplete"),
    "no pixels": (lambda data: data[: data.index(b"\xe0\x7f\x10\x00")], "incomplete"),
    "overwritten": (lambda data: b"\x00" * len(data), "does not start like DICOM"),
    "unknown VR of the rescaling": (with_bytes(INTERCEPT_TAG, INTERCEPT_TAG[:4] + b"D\x13"), "header"),
    "text as rescaling": (with_value(INTERCEPT_TAG, b"much"), "header"),
    "rescaling not finite": (with_value(INTERCEPT_TAG, b"nan"), "not a number"),
    "text as position": (with_value(b"\x20\x00\x32\x00DS", b"left\\0\\0"), "header"),
    "no rows": (with_value(b"\x28\x00\x10\x00US", b"\x00\x00"), "size makes no sense"),
    "65535 rows": (with_value(b"\x28\x00\x10\x00US", b"\xff\xff"), "size makes no sense"),
    "too many rows": (with_value(b"\x28\x00\x10\x00US", b"\x00\x10"), "incomplete"),
    "fewer rows than pixels": (with_value(b"\x28\x00\x10\x00US", b"\x20\x00"), "incomplete"),
    "seven bits": (with_value(b"\x28\x00\x00\x01US", b"\x07\x00"), "size makes no sense"),
    "absurd number of frames": (inserted(b"\x28\x00\x08\x00IS\x0a\x002147483647"), "incomplete"),
    "negative number of frames": (inserted(b"\x28\x00\x08\x00IS\x02\x00-1"), "size makes no sense"),
    "text as number of frames": (inserted(b"\x28\x00\x08\x00IS\x02\x00xx"), "header"),
}


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(("change", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_named_and_passed_over(tmp_path, change, reason):
    write_series(tmp_path, a_body((6, 64, 80)), geometry())
    damage(tmp_path / "005.dcm", change)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, a_body((6, 64, 80))[:5])
    (note,) = [warning for warning in volume.metadata["warnings"] if "005.dcm" in warning]
    assert reason in note


@pytest.mark.parametrize(("change", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_series_with_a_gap_where_a_file_is_damaged_is_refused_with_its_name(tmp_path, change, reason):
    write_series(tmp_path, a_body((6, 64, 80)), geometry())
    damage(tmp_path / "002.dcm", change)
    with pytest.raises(InputError, match=r"1 of 6 slices are missing|Copy or export") as caught:
        read_volume(tmp_path)
    assert "002.dcm" in str(caught.value)
    assert reason in str(caught.value)
    assert read_volume(tmp_path, allow_irregular=True).shape == (6, 64, 80)


def test_series_of_damaged_files_do_not_hide_the_others(tmp_path):
    for name, (change, _) in DAMAGE.items():
        write_series(tmp_path / name, a_body((2, 64, 80)), geometry())
        for path in (tmp_path / name).iterdir():
            damage(path, change)
    good = write_series(tmp_path / "good", a_body(), geometry())
    assert list_series(tmp_path)[0].uid == good
    volume = read_volume(tmp_path)
    assert volume.shape == (5, 64, 80)
    assert f"{2 * len(DAMAGE)} damaged DICOM files" in volume.metadata["warnings"][0]


#: Damage to attributes that only describe: the series is read.
ODD: dict[str, Callable[[bytes], bytes]] = {
    **{f"series number {value!r}": with_value(b"\x20\x00\x11\x00IS", value) for value in (b"CT1A", b"1\\2", b"nan")},
    "instance number": with_value(b"\x20\x00\x13\x00IS", b"last"),
    "unknown VR of the description": with_bytes(b"\x08\x00\x3e\x10LO", b"\x08\x00\x3e\x10L\x13"),
    "two padding values": inserted(b"\x28\x00\x20\x01US\x04\x00\x30\xf8\x30\xf8"),
    "padding value as bytes": inserted(b"\x28\x00\x20\x01OW\x00\x00\x02\x00\x00\x00\x30\xf8"),
    "padding value as text": inserted(b"\x28\x00\x20\x01SH\x04\x00none"),
    "acquisition time": inserted(b"\x08\x00\x32\x00TM\x04\x00noon"),
    "character set": inserted(b"\x08\x00\x05\x00CS\x0c\x00ISO_IR_100x "),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_odd_values_that_only_describe_do_not_matter(tmp_path, change, caplog):
    write_series(tmp_path, a_body(), geometry())
    for path in tmp_path.iterdir():
        damage(path, change)
    np.testing.assert_array_equal(read_volume(tmp_path).array, a_body())
    assert not caplog.records


def test_two_padding_values_are_both_set_to_air(tmp_path):
    array = a_body()
    array[:, 0, 0], array[:, 0, 1] = 2976, 2977

    def edit(dataset: Dataset, k: int) -> None:
        dataset.add_new("PixelPaddingValue", "US", [4000, 4001])

    write_series(tmp_path, array, geometry(), edit=edit)
    volume = read_volume(tmp_path)
    assert (volume.array[:, 0, :2] == -1024).all()
    np.testing.assert_array_equal(volume.array[:, 1:], array[:, 1:])


def test_a_series_that_does_not_say_how_to_get_hounsfield_units_is_read_with_a_warning(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    write_series(tmp_path, a_body(), geometry(), signed=True, intercept=0, edit=edit)
    assert any("Hounsfield" in warning for warning in read_volume(tmp_path).metadata["warnings"])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_compressed_file_that_cannot_be_unpacked_is_passed_over(tmp_path, syntax):
    write_series(tmp_path, a_body((6, 64, 80)), geometry(), syntax=syntax)
    whole = (tmp_path / "005.dcm").read_bytes()
    (tmp_path / "005.dcm").write_bytes(whole[: len(whole) * 2 // 3])
    volume = read_volume(tmp_path)
    assert volume.shape == (5, 64, 80)
    assert any("005.dcm" in warning for warning in volume.metadata["warnings"])


@pytest.mark.parametrize("cut", [1, 100, 3000])
def test_deflated_files_are_exact_in_length(tmp_path, cut):
    def edit(dataset: Dataset, k: int) -> None:
        if k == 5:
            dataset.PixelData = dataset.PixelData[:-cut] if cut > 1 else dataset.PixelData + b"\x00\x00"

    write_series(tmp_path, a_body((6, 64, 80)), geometry(), syntax=DeflatedExplicitVRLittleEndian, edit=edit)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, a_body((6, 64, 80))[:5])
    assert any("005.dcm" in warning for warning in volume.metadata["warnings"])


def test_damage_at_any_byte_of_a_deflated_file_is_found_or_does_no_harm(tmp_path):
    array = a_body((3, 16, 20))
    write_series(tmp_path, array, geometry(), syntax=DeflatedExplicitVRLittleEndian)
    whole = (tmp_path / "002.dcm").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(np.arange(400, len(whole)), 40, replace=False):
        (tmp_path / "002.dcm").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        volume = read_volume(tmp_path)
        assert volume.shape[0] in (2, 3)


def test_the_search_says_which_files_are_damaged(tmp_path):
    write_series(tmp_path, a_body(), geometry(), syntax=ExplicitVRLittleEndian)
    damage(tmp_path / "001.dcm", lambda data: data[:300])
    found = find_series(sorted(tmp_path.iterdir()))
    assert [path.name for path, _ in found.damaged] == ["001.dcm"]
    assert [one.info.slices for one in found.series] == [4]


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "1 damaged DICOM file was skipped (0: odd)."),
        (3, "3 damaged DICOM files were skipped (0: odd; 1: odd; 2: odd)."),
        (4, "4 damaged DICOM files were skipped (0: odd; 1: odd; 2: odd; and 1 more)."),
    ],
)
def test_up_to_three_damaged_files_are_named_and_the_others_counted(count, sentence):
    damaged = tuple((Path("folder") / str(k), "odd") for k in range(count))
    assert FoundSeries((), damaged).notes() == [sentence]
    assert FoundSeries((), ()).notes() == []


def test_only_files_that_are_called_dicom_are_damaged_if_they_are_not(tmp_path):
    names = {"a.DCM": b"", "b.dicom": b"text", "c.ima": b"text", "d": b"text", "e.txt": b""}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    found = find_series(sorted(tmp_path.iterdir()))
    assert found.series == ()
    assert {path.name: reason for path, reason in found.damaged} == {
        "a.DCM": "it is empty",
        "b.dicom": "it does not start like DICOM",
        "c.ima": "it does not start like DICOM",
    }


def test_a_damaged_file_that_is_named_itself_is_refused_with_its_damage(tmp_path):
    write_series(tmp_path, a_body((4, 16, 20)), geometry())
    damage(tmp_path / "003.dcm", lambda data: data[:-100])
    with pytest.raises(InputError, match=r"003\.dcm is damaged: its pixels are incomplete.*export it again"):
        read_volume(tmp_path / "003.dcm")
    assert read_volume(tmp_path / "002.dcm").shape == (3, 16, 20)


def test_a_file_without_an_image_is_told_apart_from_the_series_beside_it(tmp_path):
    write_series(tmp_path, a_body((4, 16, 20)), geometry())
    (tmp_path / "empty").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(InputError, match="empty does not hold an image"):
        read_volume(tmp_path / "empty")


def test_the_search_reports_its_progress_and_can_be_cancelled(tmp_path):
    write_series(tmp_path, a_body((4, 16, 20)), geometry())
    seen: list[float] = []
    token = CancelToken()
    assert len(list_series(tmp_path, progress=lambda step, fraction: seen.append(fraction), cancel=token)) == 1
    assert seen == [0.0, 0.25, 0.5, 0.75]
    token.cancel()
    with pytest.raises(Cancelled):
        list_series(tmp_path, cancel=token)


def test_files_without_series_belong_together_if_they_share_a_folder(tmp_path):
    for name in ("a", "b"):
        write_series(tmp_path / name, a_body((4, 16, 20)), geometry(), SeriesInstanceUID="")
    found = find_series(sorted(tmp_path.rglob("*.dcm")))
    assert [(one.info.number, one.info.slices, one.info.problem) for one in found.series] == [
        (1, 4, None),
        (2, 4, None),
    ]


@pytest.mark.parametrize(("name", "slices"), [("001.dcm", 3), ("DICOMDIR", 7), ("dicomdir", 7)])
def test_a_file_stands_for_its_folder_and_a_directory_for_those_below_it_too(tmp_path, name, slices):
    write_series(tmp_path, a_body((3, 16, 20)), geometry())
    write_series(tmp_path / "below", a_body((4, 16, 20)), geometry())
    (tmp_path / name).touch()
    assert sum(one.info.slices for one in series_at(tmp_path / name, None, UNATTENDED).series) == slices


def test_run_lengths_overwritten_with_zeros_are_read_past_if_the_rest_is_a_volume(tmp_path):
    write_series(tmp_path, a_body((5, 16, 20)), geometry(), syntax=RLELossless)
    for name in ("003.dcm", "004.dcm"):
        whole = (tmp_path / name).read_bytes()
        # The number of planes, by which GDCM divides.
        at = whole.rindex(b"\x02\x00\x00\x00\x40\x00\x00\x00")
        (tmp_path / name).write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, a_body((5, 16, 20))[:3])
    assert volume.metadata["files"] == [str(tmp_path / f"{k:03d}.dcm") for k in range(3)]
    (note,) = volume.metadata["warnings"]
    assert note.startswith("2 damaged DICOM files were skipped (003.dcm: its pixels are damaged")
