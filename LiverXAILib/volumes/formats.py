# SPDX-License-Identifier: Apache-2.0
"""Image file formats, told by the end of the name. DICOM files need none."""

from __future__ import annotations

from pathlib import Path

#: What can be read, by the end of the name, in any case of its letters.
FILE_FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
#: What can be written: the formats that are one file.
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")
#: Names of segmentations: files of a format above that say what their values mean.
SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr")


def image_ending(path: str | Path) -> str | None:
    """The longest known ending of a file's name, in lower case; None if it has none of :data:`FILE_FORMATS`."""
    name = str(path).lower()
    return max((ending for ending in FILE_FORMATS if name.endswith(ending)), key=len, default=None)


def is_segmentation(path: str | Path) -> bool:
    """Whether the name says that the file is a segmentation (``.seg.nrrd``)."""
    return str(path).lower().endswith(SEGMENTATIONS)


def without_ending(name: str) -> str:
    """A file's name without its image ending, for segmentations without ``.seg`` either."""
    ending = next((end for end in SEGMENTATIONS if name.lower().endswith(end)), image_ending(name)) or ""
    return name[: len(name) - len(ending)]
