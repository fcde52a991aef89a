# SPDX-License-Identifier: Apache-2.0
"""Image file formats, told by the end of the name. DICOM files need none."""

from __future__ import annotations

from pathlib import Path

#: What can be read, by the end of the name, in any case of its letters.
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
#: What can be written: the formats that are one file.
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
#: Files that belong to a header beside them, which is what is read.
VOXEL_FILES = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw")
#: What holds images but is not read, and what to do.
NOT_READ = (
    ((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar"), "is an archive: unpack it, name what is in it"),
    ((".dcm.gz", ".dcm.bz2", ".ima.gz"), "is a compressed DICOM file: unpack it (gunzip)"),
    ((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"), "is a picture: export the CT as DICOM or NIfTI"),
    ((".mgz", ".mgh", ".mnc", ".vtk", ".vti", ".npy", ".npz"), "is of a format that is not read: convert it to NIfTI"),
    ((".nii.xz", ".nii.zst", ".nii.zip"), "is packed in a way that is not read: unpack it or use .nii.gz"),
)
#: Names of segmentations: files of a format above that say what their values mean.
SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr")


def image_ending(path: str | Path) -> str | None:
    """The longest known ending of a file's name, in lower case; None if it has none of :data:`FILE_FORMATS`."""
    name = str(path).lower()
    return max((ending for ending in FILE_FORMATS if name.endswith(ending)), key=len, default=None)


def why_not_read(path: str | Path) -> str | None:
    """Why files with such a name are not read, as the rest of a sentence; None for others."""
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
    """A file's name without its image ending, for segmentations without ``.seg`` either."""
    ending = next((end for end in SEGMENTATIONS if name.lower().endswith(end)), image_ending(name)) or ""
    return name[: len(name) - len(ending)]
