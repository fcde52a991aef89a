# SPDX-License-Identifier: Apache-2.0
"""DICOM series for the tests, in every form in which a scanner or an archive may store them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

INTERCEPT = -1024


def a_body(shape: tuple[int, int, int] = (5, 64, 80), seed: int = 0) -> np.ndarray:
    """(k, j, i) HU of a noisy cylinder in air; int16, different in each slice."""
    rng = np.random.default_rng(seed)
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    array = np.where(j**2 + i**2 < 0.7, 60 + 40 * k, -990) + rng.normal(0, 12, shape)
    array[(abs(j) < 0.2) & (i > 0.4) & (i < 0.6)] = -95
    return array.round().clip(-1024).astype(np.int16)


def geometry(
    spacing: Sequence[float] = (0.8, 0.9, 2.5), origin: Sequence[float] = (-30.0, -41.5, 812.25)
) -> np.ndarray:
    """ijk_to_lps of an upright axial scan."""
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = origin
    return matrix


def write_series(
    folder: Path,
    array: np.ndarray,
    ijk_to_lps: np.ndarray,
    *,
    syntax: str = ExplicitVRLittleEndian,
    slope: float = 1.0,
    intercept: float = INTERCEPT,
    signed: bool = False,
    names: Sequence[str] | None = None,
    instance_numbers: Sequence[int] | None = None,
    edit: Callable[[Dataset, int], None] | None = None,
    preamble: bool = True,
    **tags: object,
) -> str:
    """Write HU (k, j, i) on a grid as one file per slice and return the Series Instance UID.

    `edit` may change the data set of each slice before it is written; `tags` are set on all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    stored = np.rint((array - intercept) / slope).astype(np.int16 if signed else np.uint16)
    for k, pixels in enumerate(stored):
        dataset = a_slice(pixels, syntax, signed)
        dataset.StudyInstanceUID = study
        dataset.SeriesInstanceUID = series
        dataset.FrameOfReferenceUID = frame_of_reference
        dataset.InstanceNumber = instance_numbers[k] if instance_numbers else k + 1
        dataset.ImagePositionPatient = [float(f"{x:.9g}") for x in ijk_to_lps[:3, 3] + k * ijk_to_lps[:3, 2]]
        spacing = np.linalg.norm(ijk_to_lps[:3, :2], axis=0)
        dataset.ImageOrientationPatient = [float(f"{x:.9g}") for x in (ijk_to_lps[:3, :2] / spacing).T.ravel()]
        dataset.PixelSpacing = [float(f"{x:.9g}") for x in spacing[::-1]]
        dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        if edit:
            edit(dataset, k)
        path = folder / (names[k] if names else f"{k:03d}.dcm")
        implicit = dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        little = dataset.file_meta.TransferSyntaxUID != ExplicitVRBigEndian
        dataset.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=preamble)
    return series


def a_slice(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, signed: bool = False) -> Dataset:
    """A CT image with `pixels` (rows, columns) as stored values, without a position."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID = "Secret^Name", "secret-id"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesNumber, dataset.SeriesDescription, dataset.ConvolutionKernel = 3, "Abdomen", "B30f"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(signed)
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    encoder = ENCODERS.get(syntax)
    if encoder is None:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.add_new("PixelData", "OW", frames.astype(frames.dtype.newbyteorder(order)).tobytes())
    else:
        dataset.add_new("PixelData", "OB", encapsulate([encoder(np.ascontiguousarray(frame)) for frame in frames]))
        dataset["PixelData"].is_undefined_length = True
    return dataset


def _jpeg_2000(frame: np.ndarray) -> bytes:
    import openjpeg.utils

    return bytes(openjpeg.utils.encode_array(frame, bits_stored=16))


def _jpeg_ls(frame: np.ndarray) -> bytes:
    import jpeg_ls

    return bytes(jpeg_ls.encode_array(frame.view(np.uint16)))


def _rle(frame: np.ndarray) -> bytes:
    """The byte planes of a frame, most significant first, as literal runs (PS3.5 annex G)."""
    planes = frame.view(np.uint8).reshape(-1, 2).T[::-1]
    segments = []
    for plane in planes:
        data = plane.tobytes()
        runs = (data[start : start + 128] for start in range(0, len(data), 128))
        segments.append(b"".join(bytes([len(run) - 1]) + run for run in runs))
        segments[-1] += b"\x00" * (len(segments[-1]) % 2)
    offsets = [64, 64 + len(segments[0])]
    header = np.array([2, *offsets, *[0] * 13], dtype="<u4").tobytes()
    return header + b"".join(segments)


def _jpeg_lossless(frame: np.ndarray) -> bytes:
    """Encode as lossless JPEG (ITU-T T.81 annex H), predictor 1, with five-bit Huffman codes for all categories."""
    rows, columns = frame.shape
    values = frame.view(np.uint16).astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << 15
    differences = ((values - predicted + (1 << 15)) % (1 << 16)) - (1 << 15)

    def bits() -> Iterator[str]:
        for difference in differences.ravel().tolist():
            if difference == -(1 << 15):
                yield f"{16:05b}"
                continue
            size = abs(difference).bit_length()
            low = difference if difference >= 0 else difference + (1 << size) - 1
            yield f"{size:05b}" + (f"{low:0{size}b}" if size else "")

    stream = "".join(bits())
    stream += "1" * (-len(stream) % 8)
    scan = bytes(int(stream[start : start + 8], 2) for start in range(0, len(stream), 8)).replace(b"\xff", b"\xff\x00")
    frame_header = bytes([16, *rows.to_bytes(2, "big"), *columns.to_bytes(2, "big"), 1, 1, 0x11, 0])
    # All seventeen categories have codes of five bits, in ascending order.
    huffman = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    scan_header = bytes([1, 1, 0, 1, 0, 0])

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload

    data = b"\xff\xd8" + segment(0xC3, frame_header) + segment(0xC4, huffman) + segment(0xDA, scan_header)
    return data + scan + b"\xff\xd9"


#: Encoders that are independent of the decoder under test.
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    JPEG2000Lossless: _jpeg_2000,
    JPEGLSLossless: _jpeg_ls,
    JPEGLosslessSV1: _jpeg_lossless,
    RLELossless: _rle,
}


def write_enhanced(
    path: Path, array: np.ndarray, ijk_to_lps: np.ndarray, order: Sequence[int], syntax: str = ExplicitVRLittleEndian
) -> str:
    """Write HU (k, j, i) as one Enhanced CT file whose frames are stored in `order`, each with its own rescaling."""
    spacing = np.linalg.norm(ijk_to_lps[:3, :2], axis=0)
    intercepts = [INTERCEPT - 10 * n for n in range(len(order))]
    stored = np.stack([array[k] - intercepts[n] for n, k in enumerate(order)]).astype(np.uint16)
    dataset = a_slice(stored, syntax)
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.SeriesInstanceUID = generate_uid()
    dataset.NumberOfFrames = len(order)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [float(x) for x in spacing[::-1]]
    orientation.ImageOrientationPatient = [float(x) for x in (ijk_to_lps[:3, :2] / spacing).T.ravel()]
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PlaneOrientationSequence = DicomSequence([orientation])
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    frames = []
    for n, k in enumerate(order):
        position, rescale, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [float(x) for x in ijk_to_lps[:3, 3] + k * ijk_to_lps[:3, 2]]
        rescale.RescaleSlope, rescale.RescaleIntercept = "1", str(intercepts[n])
        frame.PlanePositionSequence = DicomSequence([position])
        frame.PixelValueTransformationSequence = DicomSequence([rescale])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return str(dataset.SeriesInstanceUID)
