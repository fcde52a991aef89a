# SPDX-License-Identifier: Apache-2.0
"""CT series from DICOM files: finding, choosing and decoding them.

Headers are read with pydicom. Uncompressed pixels are pydicom's too; compressed ones (JPEG, JPEG-LS, JPEG 2000, RLE)
are unpacked by the GDCM in SimpleITK, which needs no plugins. Positions and intensities always come from the header:
see :mod:`LiverXAILib.volumes.stack` for the geometry.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import InputError, UsageError
from ..progress import CancelToken, Progress, check_cancel, report_progress
from .formats import image_ending
from .intensities import PADDING_HU, checked, compact, looks_like_hu
from .itk import itk_warnings_hidden
from .orientation import axis_codes
from .stack import Stack, arrange, resample_to_regular
from .volume import Grid, Volume

_logger = logging.getLogger(__name__)

#: CT Image, Enhanced CT Image and Legacy Converted Enhanced CT Image Storage.
_CT_CLASSES = {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
#: Any number of gray frames and nothing else: the wrapping in which GDCM unpacks pixels without interpreting them.
_GRAY_FRAMES_CLASS = UID("1.2.840.10008.5.1.4.1.1.7.3")
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
#: Values of Image Type of pictures that are no slices of a scan.
_NO_SLICE_TYPES = {"LOCALIZER", "SCREEN SAVE", "CT_SOM5 PROT", "DOSE", "DOSE_INFO"}
#: Values of Rescale Type under which a CT holds Hounsfield units ("US" is unspecified).
_HU_TYPES = {"", "HU", "HU_MOD", "US"}
#: A padding value that means soft tissue would punch holes into organs: it is not believed.
_TISSUE_HU = (-200.0, 300.0)
#: Cosines, and relative pixel spacings, that differ by less than this are the same.
_SAME_DIRECTION, _SAME_SPACING = 1e-3, 1e-3
#: A series at least this long may show a whole liver.
_LIVER_MM = 100.0

_HEADER_TAGS = [
    "SOPClassUID",
    "StudyInstanceUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ConvolutionKernel",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

_SHARP_WORDS = re.compile(r"lung|bone|edge|sharp|inner ?ear", re.IGNORECASE)
#: Siemens B50f and Br59 upward, Canon FC30 upward, and the sharp ones of Philips.
_SHARP_KERNEL = re.compile(r"\b[a-z]{1,2}[5-9]\d(?!\d)|\bfc[3-9]\d|^(d|e|l|y[a-d])$", re.IGNORECASE)
_PORTAL_VENOUS = re.compile(r"portal|ven(ous|ös|oes|eus|ose)|(?<![a-z])(pv|pvp)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class SeriesInfo:
    """What a list of series shows; nothing in it identifies the patient.

    `number` counts from 1, the best first, and is what ``series=`` takes. `size` is voxels along (i, j, k), `spacing`
    mm. `axes` is where the array's axes (k, j, i) run. `left_out` counts pictures of the series that are no slices.
    `problem` says in words why the series cannot be read as CT; `bridgeable` that ``allow_irregular=True`` reads it
    anyway.
    """

    number: int
    uid: str
    series_number: int | None
    modality: str
    description: str
    kernel: str
    image_type: str
    slices: int
    left_out: int = 0
    size: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    axes: str | None = None
    tilt_degrees: float = 0.0
    problem: str | None = None
    bridgeable: bool = False

    @property
    def name(self) -> str:
        """What a message calls the series."""
        number = f"series {self.series_number}" if self.series_number is not None else "series without a number"
        return f'DICOM {number} ("{self.description}")' if self.description else f"DICOM {number}"

    def summary(self) -> dict[str, Any]:
        """For :attr:`Volume.metadata`: everything but the UID."""
        return {"name": self.name, **{name: value for name, value in asdict(self).items() if name != "uid"}}


def rank(info: SeriesInfo) -> tuple[Any, ...]:
    """The rule by which the best CT series is chosen; the smallest tuple wins.

    1. It can be read (a series that needs ``allow_irregular`` comes after those that do not).
    2. Its slices are axial, rather than coronal or sagittal.
    3. It is long enough for a liver (100 mm).
    4. It is an original reconstruction, not derived from another one.
    5. Its kernel is for soft tissue, rather than for lung or bone.
    6. Its description says portal venous, the phase in which liver and lesions differ most.
    7. Its slices are closer together; then, it has more of them.
    8. It has the lower series number, at last the lower UID.
    """
    length = (info.slices - 1) * info.spacing[2] if info.spacing else 0.0
    return (
        info.problem is not None,
        not info.bridgeable,
        not (info.axes or "").startswith(("S", "I")),
        length < _LIVER_MM,
        not info.image_type.startswith("ORIGINAL"),
        bool(_SHARP_WORDS.search(f"{info.kernel} {info.description}") or _SHARP_KERNEL.search(info.kernel)),
        not _PORTAL_VENOUS.search(info.description),
        round(info.spacing[2], 2) if info.spacing else np.inf,
        -info.slices,
        info.series_number if info.series_number is not None else np.inf,
        info.uid,
    )


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, with or without the 128 bytes of preamble."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    # Without preamble, a data set starts with an element of group 0002 or 0008 and a low element number.
    return start[128:] == b"DICM" or (len(start) >= 8 and start[0] in (2, 8) and start[1] == 0 and start[3] == 0)


def list_series(path: Path, *, progress: Progress | None = None, cancel: CancelToken | None = None) -> list[SeriesInfo]:
    """All series in a folder, at any depth, or in the folder of a file; the best CT first, as :func:`rank` says.

    :raises LiverXAILib.errors.InputError: there is no DICOM image.
    """
    return [series.info for series in _find_series(path, None, progress, cancel)[0]]


def find_series(
    files: Sequence[Path], *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> list[Series]:
    """All series among `files`, with the files of each; the best CT first, as :func:`rank` says. May be empty."""
    return _series_among(files, progress, cancel)[0]


def read_dicom(
    path: Path,
    *,
    series: str | int | None = None,
    allow_irregular: bool = False,
    files: Sequence[Path] | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Volume:
    """Read a CT series; see :func:`LiverXAILib.volumes.io.read_volume`."""
    found, notes = _find_series(path, files, progress, cancel)
    if series is None and path.is_file() and path.name.upper() != "DICOMDIR":
        chosen = next((one for one in found if path in one.files), None)
        if chosen is None:
            raise InputError(f"{path} holds no image.")
    else:
        chosen = _choose(found, series, path)
    info = chosen.info
    if info.problem and not (allow_irregular and info.bridgeable):
        others = sum(one.info.problem is None for one in found)
        hint = " It can be resampled to even spacing: --allow-irregular (allow_irregular=True)." * info.bridgeable
        hint += f" {others} other series here can be read: choose one with --series (series=)." * bool(others)
        raise InputError(f"Cannot use {info.name}: {info.problem}.{hint}")
    _logger.info("Reading DICOM series %d of %d: %d slices", info.number, len(found), info.slices)
    array, pixel_notes = chosen.read(progress, cancel)
    stack = chosen.stack
    if stack.problem:
        array = resample_to_regular(array, stack)
        notes.append(
            f"Resampled along the slices to an even {stack.spacing:.2f} mm, because {stack.problem}. Sizes along this "
            "direction are less certain."
        )
    notes += pixel_notes
    array = checked(array, info.name)
    if not looks_like_hu(array):
        notes.append("The intensities do not look like Hounsfield units, although the series says that it is CT.")
    if info.left_out:
        notes.append(
            f"{info.left_out} files of the series are no slices (localizers, saved screens) and were left out."
        )
    if series is None:
        notes += _choice_notes(chosen, found)
    metadata: dict[str, Any] = {
        "source_format": "DICOM",
        "modality": info.modality,
        "series": info.summary(),
        "other_series": [one.info.summary() for one in found if one is not chosen],
        "series_instance_uid": info.uid or None,
        "warnings": notes,
    }
    paths = [str(chosen.slices[index].path) for index in stack.order]
    if stack.problem is None and len(set(paths)) == len(array):
        metadata["files"] = paths
    return Volume(array, stack.ijk_to_lps, metadata)


def _choice_notes(chosen: Series, found: list[Series]) -> list[str]:
    """What the user should know about the series that were not taken."""
    notes = []
    usable = sum(one.info.problem is None for one in found)
    if usable > 1:
        notes.append(f"{chosen.info.name} was chosen of {usable} usable CT series; --series (series=) takes another.")
    for one in found:
        if one is not chosen and one.info.problem and len(one.slices) > 1:
            notes.append(f"{one.info.name}, {one.info.slices} slices, was passed over: {one.info.problem}.")
    return notes


def _choose(found: list[Series], series: str | int | None, path: Path) -> Series:
    """The series named by the user, or the best.

    :raises LiverXAILib.errors.UsageError: none is named so.
    """
    if series is None:
        return found[0]
    wanted = str(series).strip()
    for one in found:
        if wanted in (str(one.info.number), one.info.uid):
            return one
    listed = "; ".join(f"{one.info.number}: {one.info.name}" for one in found)
    raise UsageError(f"There is no series {wanted} in {path}. There are {listed}.")


@dataclass(frozen=True, eq=False)
class _Slice:
    """One frame of one file; geometry is None where the header has none."""

    path: Path
    frame: int
    size: tuple[int, int]
    position: np.ndarray | None
    orientation: np.ndarray | None
    pixel_spacing: np.ndarray | None
    slope: float
    intercept: float


@dataclass(frozen=True, eq=False)
class Series:
    """The files of a series, arranged as far as possible.

    :param study: Study Instance UID; "" if there is none.
    """

    files: frozenset[Path]
    slices: tuple[_Slice, ...]
    arranged: Stack | None
    info: SeriesInfo
    study: str = ""

    @property
    def places(self) -> int:
        """How many different places its CT slices show (to 0.1 mm), as far as they say where they are."""
        known = {tuple(np.round(one.position, 1)) for one in self.slices if one.position is not None}
        return len(known) + sum(one.position is None for one in self.slices)

    @property
    def stack(self) -> Stack:
        if self.arranged is None:
            raise InputError(f"Cannot use {self.info.name}: {self.info.problem}.")
        return self.arranged

    def read(self, progress: Progress | None, cancel: CancelToken | None) -> tuple[np.ndarray, list[str]]:
        """Voxels in HU (n, j, i) in the order of the stack, and notes for the user."""
        images: list[np.ndarray] = []
        distrusted = False
        opened: _Pixels | None = None
        for done, index in enumerate(self.stack.order):
            check_cancel(cancel)
            report_progress(progress, "Reading the image", done / len(self.slices))
            one = self.slices[index]
            if opened is None or opened.path != one.path:
                opened = _Pixels(one.path)
            image, ignored_padding = opened.hounsfield(one)
            distrusted |= ignored_padding
            images.append(compact(image, self.info.name))
        report_progress(progress, "Reading the image", 1.0)
        notes = ["The padding value of the series lies within soft tissue and was ignored."] * distrusted
        return np.stack(images), notes


class _Pixels:
    """The stored values of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with _pydicom_warnings_hidden():
                self._dataset = pydicom.dcmread(path, force=True)
        except Exception as error:
            raise InputError(f"{path} is damaged and cannot be read. Copy or export it again.") from error

    @cached_property
    def _frames(self) -> np.ndarray:
        """(frames, rows, columns), before rescaling."""
        dataset = self._dataset
        if "TransferSyntaxUID" not in dataset.file_meta:
            # A file without meta header is uncompressed; pydicom found out how its elements are encoded.
            implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        syntax = dataset.file_meta.TransferSyntaxUID
        try:
            with _pydicom_warnings_hidden(), itk_warnings_hidden():
                frames = _unpacked_by_gdcm(dataset, syntax) if syntax.is_encapsulated else dataset.pixel_array
                return frames.reshape(-1, dataset.Rows, dataset.Columns)
        except Exception as error:  # the two libraries raise nearly every kind
            raise InputError(
                f"The pixels of {self.path} are damaged, incomplete or compressed in an unknown way. Copy or export "
                "the series again."
            ) from error

    def hounsfield(self, one: _Slice) -> tuple[np.ndarray, bool]:
        """A slice in HU with its padding set to air, and whether its padding value was distrusted instead."""
        if one.frame >= len(self._frames):
            raise InputError(f"The pixels of {self.path} are incomplete. Copy or export the series again.")
        stored = self._frames[one.frame]
        image = stored * one.slope + one.intercept
        padding = self._padding()
        if padding is None:
            return image, False
        low, high = sorted(value * one.slope + one.intercept for value in padding)
        if high >= _TISSUE_HU[0] and low <= _TISSUE_HU[1]:
            return image, True
        image[(stored >= padding[0]) & (stored <= padding[1])] = PADDING_HU
        return image, False

    def _padding(self) -> tuple[int, int] | None:
        """Lowest and highest stored value that mean padding."""
        first = self._stored_number("PixelPaddingValue")
        if first is None:
            return None
        limit = self._stored_number("PixelPaddingRangeLimit")
        last = first if limit is None else limit
        return min(first, last), max(first, last)

    def _stored_number(self, keyword: str) -> int | None:
        value = self._dataset.get(keyword)
        if value is None or value == "":
            return None
        # The header may hold a signed value as unsigned, as in 63536 for -2000.
        bits, signed = int(self._dataset.BitsAllocated), bool(self._dataset.PixelRepresentation)
        number = int(value) % (1 << bits)
        return number - (1 << bits) if signed and number >= 1 << (bits - 1) else number


def _unpacked_by_gdcm(dataset: Dataset, syntax: UID) -> np.ndarray:
    """The stored values of compressed pixels, by way of a temporary file that holds nothing else."""
    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.SOPClassUID = bare.file_meta.MediaStorageSOPClassUID = _GRAY_FRAMES_CLASS
    bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    bare.Modality = "OT"
    bare.PhotometricInterpretation = "MONOCHROME2"
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
        bare[keyword] = dataset[keyword]
    bare.SamplesPerPixel = 1
    bare.NumberOfFrames = dataset.get("NumberOfFrames") or 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.dcm"
        bare.save_as(path, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))


def _find_series(
    path: Path, files: Sequence[Path] | None, progress: Progress | None, cancel: CancelToken | None
) -> tuple[list[Series], list[str]]:
    """All series in a folder, or in that of a file, or among `files`; numbered, the best first, and notes for the user.

    :raises LiverXAILib.errors.InputError: there is none.
    """
    if files is None:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif path.name.upper() == "DICOMDIR":
            files = sorted(file for file in path.parent.rglob("*") if file.is_file())
        else:
            files = sorted(file for file in path.parent.iterdir() if file.is_file())
    found, notes = _series_among(files, progress, cancel)
    if not found:
        raise InputError(_nothing_found(path, files))
    return found, notes


def _series_among(
    files: Sequence[Path], progress: Progress | None, cancel: CancelToken | None
) -> tuple[list[Series], list[str]]:
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    unreadable = 0
    with _pydicom_warnings_hidden():
        for done, file in enumerate(files):
            check_cancel(cancel)
            report_progress(progress, "Looking for DICOM series", done / len(files))
            if not is_dicom(file):
                continue
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_HEADER_TAGS)
                if _sop_class(header) == _DIRECTORY_CLASS or not (_sop_class(header) or header.get("Modality")):
                    continue
                if "SeriesInstanceUID" not in header and "Rows" not in header:
                    unreadable += 1
                    continue
                # Files without a UID belong together if they lie together.
                key = str(header.get("SeriesInstanceUID") or "") or f"without UID in {file.parent}"
                groups.setdefault(key, []).append((file, header))
            except Exception:  # pydicom raises nearly every kind; one damaged file must not hide the others
                unreadable += 1
        found = [_arrange_series(members) for members in groups.values()]
    found.sort(key=lambda series: rank(series.info))
    found = [replace(one, info=replace(one.info, number=number)) for number, one in enumerate(found, start=1)]
    notes = [f"{unreadable} damaged DICOM files were passed over."] if unreadable else []
    return found, notes


def _nothing_found(path: Path, files: Sequence[Path]) -> str:
    other = [file.name for file in files if image_ending(file)]
    if other:
        return f"There are no DICOM images in {path}. To read {other[0]}, name the file itself."
    return f"There are no DICOM images in {path}."


def _arrange_series(members: list[tuple[Path, Dataset]]) -> Series:
    """Describe a series and arrange its slices; localizers and the like among them are left out."""
    reasons = [_no_ct_slice(header) for _, header in members]
    kept = [member for member, reason in zip(members, reasons, strict=True) if reason is None]
    first = (kept or members)[0][1]
    info = SeriesInfo(
        number=0,
        uid=str(first.get("SeriesInstanceUID") or ""),
        series_number=_integer(first.get("SeriesNumber")),
        modality=str(first.get("Modality") or "CT"),
        description=_text(first.get("SeriesDescription")),
        kernel=_text(first.get("ConvolutionKernel")),
        image_type="\\".join(_strings(first.get("ImageType"))),
        slices=len(kept),
        left_out=len(members) - len(kept),
    )
    files = frozenset(path for path, _ in members)
    study = str(members[0][1].get("StudyInstanceUID") or "")
    if not kept:
        return Series(files, (), None, replace(info, problem=reasons[0]), study)
    try:
        slices = tuple(one for path, header in kept for one in _slices(path, header))
        stack = _arrange_slices(slices)
    except (ValueError, TypeError, AttributeError):
        return Series(files, (), None, replace(info, problem="its headers are damaged"), study)
    info = replace(info, slices=len(slices))
    if isinstance(stack, str):
        return Series(files, slices, None, replace(info, problem=stack), study)
    rows, columns = slices[0].size
    grid = Grid((stack.count, rows, columns), stack.ijk_to_lps)
    info = replace(
        info,
        size=(columns, rows, stack.count),
        spacing=grid.spacing,
        axes=axis_codes(grid),
        tilt_degrees=round(stack.tilt_degrees, 2),
        problem=stack.problem,
        bridgeable=stack.bridgeable,
    )
    return Series(files, slices, stack, info, study)


def _no_ct_slice(header: Dataset) -> str | None:
    """Why a file is no slice of a CT scan, in words; None if it is one."""
    modality, sop_class = str(header.get("Modality") or ""), _sop_class(header)
    if modality not in ("CT", ""):
        return f"it is {modality}, not CT"
    if sop_class and sop_class not in _CT_CLASSES:
        return f"it is no CT image ({UID(sop_class).name})"
    kinds = {kind.upper() for kind in _strings(header.get("ImageType"))}
    if "LOCALIZER" in kinds:
        return "it is a localizer (scout)"
    if kinds & _NO_SLICE_TYPES:
        return "it is a saved screen, not a slice"
    if "Rows" not in header or "Columns" not in header:
        return "it holds no image"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "it is a color picture"
    rescale_type = _text(header.get("RescaleType")).upper()
    if rescale_type not in _HU_TYPES:
        return f"its values are {rescale_type}, not Hounsfield units"
    return None


def _slices(path: Path, header: Dataset) -> Iterator[_Slice]:
    """The frames of a file with what their functional groups say, or its only frame."""
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), Dataset())
    frames = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * int(header.get("NumberOfFrames") or 1)

    def value(frame: Dataset, group: str, keyword: str) -> Any:
        for source in (frame, shared):
            for item in source.get(group) or []:
                if keyword in item:
                    return item[keyword].value
        return header.get(keyword)

    for index, frame in enumerate(frames):
        slope = value(frame, "PixelValueTransformationSequence", "RescaleSlope")
        intercept = value(frame, "PixelValueTransformationSequence", "RescaleIntercept")
        yield _Slice(
            path=path,
            frame=index,
            size=(int(header.Rows), int(header.Columns)),
            position=_numbers(value(frame, "PlanePositionSequence", "ImagePositionPatient"), 3),
            orientation=_numbers(value(frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            pixel_spacing=_numbers(value(frame, "PixelMeasuresSequence", "PixelSpacing"), 2),
            # A slope of 0 would wipe out the image; it stands for "none".
            slope=float(slope or 1.0),
            intercept=float(intercept or 0.0),
        )


def _arrange_slices(slices: tuple[_Slice, ...]) -> Stack | str:
    """The stack of slices that agree in size, orientation and pixel spacing; or why there is none, in words."""
    sizes = {one.size for one in slices}
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for rows, columns in sorted(sizes))
        return f"its slices differ in size ({listed})"
    positions = [one.position for one in slices if one.position is not None]
    orientations = [one.orientation for one in slices if one.orientation is not None]
    spacings = [one.pixel_spacing for one in slices if one.pixel_spacing is not None]
    if min(len(positions), len(orientations), len(spacings)) < len(slices):
        return "its slices lack a position, an orientation or a pixel size"
    if len(slices) < 2:
        return "it is a single slice; a CT volume is needed"
    row, column = orientations[0][:3], orientations[0][3:]
    skew = abs(row @ column) + abs(np.linalg.norm(row) - 1) + abs(np.linalg.norm(column) - 1)
    if not skew < 0.01 or not (spacings[0] > 0).all():
        return "its orientation or pixel size makes no sense"
    if np.abs(np.array(orientations) - orientations[0]).max() > _SAME_DIRECTION:
        return "its slices differ in orientation"
    if np.abs(np.array(spacings) / spacings[0] - 1).max() > _SAME_SPACING:
        return "its slices differ in pixel size"
    return arrange(np.array(positions), row * spacings[0][1], column * spacings[0][0])


def _sop_class(header: Dataset) -> str:
    """The SOP class, from the file's meta header where the data set lost it."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """`count` finite numbers, or None."""
    if value is None or value == "" or len(value) != count:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if np.isfinite(numbers).all() else None


def _integer(value: Any) -> int | None:
    return None if value is None or value == "" else int(value)


def _strings(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _text(value: Any) -> str:
    return " ".join(_strings(value)).strip()


@contextmanager
def _pydicom_warnings_hidden() -> Iterator[None]:
    """Keep pydicom from warning about deviations from the standard that do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
