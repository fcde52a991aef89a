# SPDX-License-Identifier: Apache-2.0
"""Segmentation files that name their segments: 3D Slicer's ``.seg.nrrd``, DICOM SEG, and NIfTI with a label table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..volumes.image_file import read_image_fields, read_image_file
from ..volumes.volume import Grid
from .terminology import Code, parse_terminology_entry

#: A label in the table that TotalSegmentator and the Connectome Workbench write into a NIfTI header.
_NIFTI_LABEL = re.compile(r'<Label\s[^>]*?Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>', re.DOTALL)


@dataclass(frozen=True, eq=False)
class NamedMask:
    """One segment of a file: its name, its codes, and its mask (bool (k, j, i)).

    `place` is the layer and the label value in an NRRD header, as text.
    """

    name: str
    mask: np.ndarray = field(repr=False)
    category: Code | None = None
    kind: Code | None = None
    regions: tuple[Code, ...] = ()
    place: tuple[str | None, str | None] = (None, None)


def nrrd_segments(path: Path) -> tuple[Grid, list[NamedMask]] | None:
    """The segments named in an NRRD file's header, in one layer or several; None if it names none.

    Files written by Slicer before 4.11 have no label values: each segment is a separate layer.

    :raises LiverXAILib.errors.InputError: the file is damaged, or has voxels that belong to no segment.
    """
    descriptions = nrrd_segment_names(path)
    if descriptions is None:
        return None
    image = read_image_file(path)
    layers = image.layers
    segments = []
    explained = layers == 0
    for number, description in enumerate(descriptions):
        layer, value = _place(description, number, len(layers), path)
        mask = layers[layer] == value
        explained[layer] |= mask
        segments.append(replace(description, mask=mask))
    if not explained.all():
        raise InputError(
            f"{path} has voxels with the value {layers[~explained][0]:g}, which belongs to none of its segments. Save "
            "the segmentation again with 3D Slicer."
        )
    return image.grid, segments


def nrrd_segment_names(path: Path) -> list[NamedMask] | None:
    """The segments named in an NRRD file's header, without their voxels; None if it names none.

    :raises LiverXAILib.errors.InputError: the header is damaged.
    """
    found: dict[int, dict[str, str]] = {}
    for key, value in read_image_fields(path).items():
        if match := re.fullmatch(r"Segment(\d{1,6})_(\w+)", key):
            found.setdefault(int(match[1]), {})[match[2]] = value
    segments = []
    for number, fields in sorted(found.items()):
        tag = re.search(r"(?:^|\|)TerminologyEntry:([^|]*)", fields.get("Tags", ""))
        category, kind, region = parse_terminology_entry(tag[1] if tag else "")
        name = fields.get("Name") or fields.get("ID") or f"Segment {number + 1}"
        place = (fields.get("Layer"), fields.get("LabelValue"))
        segments.append(NamedMask(name, np.zeros((0, 0, 0), bool), category, kind, (region,) if region else (), place))
    return segments or None


def _place(segment: NamedMask, number: int, count: int, path: Path) -> tuple[int, int]:
    """The layer and the label value of the segment with this number."""
    layer_text, value_text = segment.place
    try:
        layer, value = (number, 1) if value_text is None else (int(layer_text or 0), int(value_text))
    except ValueError as error:
        raise InputError(
            f"{path} has a segment {segment.name!r} without a valid value. Save it again with 3D Slicer."
        ) from error
    if not 0 <= layer < count:
        raise InputError(
            f"{path} does not say which of its values belongs to {segment.name!r}. Save the segmentation again with a "
            "newer version of 3D Slicer."
        )
    return layer, value


def nifti_label_names(path: Path) -> dict[int, str]:
    """The names of label values in an extension of a NIfTI header (Connectome Workbench's ``LabelTable``)."""
    import nibabel

    try:
        extensions = nibabel.load(path).header.extensions  # type: ignore[attr-defined]
        texts = [extension.get_content() for extension in extensions]
    except (OSError, ValueError, AttributeError, nibabel.filebasedimages.ImageFileError):
        return {}  # reading the voxels reports what is wrong
    names: dict[int, str] = {}
    for content in texts:
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content)
        names |= {int(key): (quoted or plain).strip() for key, quoted, plain in _NIFTI_LABEL.findall(text)}
    return names


def dicom_segments(path: Path, grid: Grid | None) -> tuple[Grid, list[NamedMask]]:
    """The segments of a DICOM SEG on `grid`; None: on its own grid.

    :raises LiverXAILib.errors.LiverXAIError: see :func:`LiverXAILib.volumes.dicom_seg.read_segment_masks`.
    """
    # Imported here, because resampling needs torch and label maps on their image's grid do not.
    from ..volumes.dicom_seg import read_segment_masks, read_segments, segmentation_grid

    grid = grid or segmentation_grid(path)
    masks = read_segment_masks(path, grid)
    return grid, [
        NamedMask(segment.label, masks[segment.number], segment.category, segment.type, segment.regions)
        for segment in read_segments(path)
        if segment.number in masks
    ]
