# SPDX-License-Identifier: Apache-2.0
"""Image file formats, recognized by the file name's ending. DICOM files need no ending."""

from __future__ import annotations

from pathlib import Path

#: Formats that can be read, by the ending of the name (upper or lower case).
FILE_FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nii.bz2": "NIfTI",
    ".hdr": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
#: Endings that can be written: formats that consist of a single file.
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
#: Files of voxels that belong to a header in the same folder; the header is the file to read.
VOXEL_FILES = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw")
#: Files that hold images but cannot be read, with the reason and what to do instead.
NOT_READ = (
    ((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar"), "is an archive: unpack it and name its content"),
    ((".dcm.gz", ".dcm.bz2", ".ima.gz"), "is a compressed DICOM file: unpack it (gunzip)"),
    ((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"), "is a picture: export the CT as DICOM or NIfTI"),
    ((".mgz", ".mgh", ".mnc", ".vtk", ".vti", ".npy", ".npz"), "has a format that cannot be read: convert it to NIfTI"),
    ((".nii.xz", ".nii.zst", ".nii.zip"), "is compressed in a way that cannot be read: unpack it or use .nii.gz"),
)
#: Endings of segmentations: files in one of the formats above that also describe what their values mean.
SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr")


def image_ending(path: str | Path) -> str | None:
    """The longest known ending of a file's name, in lower case; None if it has none of :data:`FILE_FORMATS`."""
    name = str(path).lower()
    return max((ending for ending in FILE_FORMATS if name.endswith(ending)), key=len, default=None)


def why_not_read(path: str | Path) -> str | None:
    """Why files with such a name cannot be read, as the predicate of a sentence; None for others."""
    name = str(path).lower()
    return next((reason for endings, reason in NOT_READ if name.endswith(endings)), None)


def format_of(path: str | Path) -> str | None:
    """The format's name; None for other files."""
    ending = image_ending(path)
    return FILE_FORMATS[ending] if ending else None


def is_segmentation(path: str | Path) -> bool:
    """Whether the name says that the file is a segmentation (``.seg.nrrd``)."""
    return str(path).lower().endswith(SEGMENTATIONS)


def without_ending(name: str) -> str:
    """A file's name without its image ending and, for segmentations, without ``.seg``."""
    ending = next((end for end in SEGMENTATIONS if name.lower().endswith(end)), image_ending(name)) or ""
    return name[: len(name) - len(ending)]
