# SPDX-License-Identifier: Apache-2.0
"""Reading and writing images: NIfTI, NRRD, MetaImage and DICOM.

Whatever cannot be a CT volume is refused here, with the reason, so that no later code has to check again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..context import RunContext
from ..errors import InputError, UsageError
from ..files import replacing, require_path, require_size
from ..progress import CancelToken, Progress
from .formats import FILE_FORMATS, WRITABLE, format_of, image_ending, why_not_read
from .image_file import existing, read_image_file
from .intensities import to_smallest_dtype, validate_ct
from .itk import to_itk
from .metaimage import write_metaimage
from .nrrd import write_nrrd
from .stream import open_regular, reading
from .volume import Volume, require_volume_type

if TYPE_CHECKING:
    from .dicom import SeriesInfo


def read_volume(
    path: str | os.PathLike[str],
    *,
    series: str | int | None = None,
    allow_irregular: bool = False,
    force: bool = False,
    files: Sequence[Path] | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Volume:
    """Read a CT volume.

    :param path: a NIfTI (.nii, .nii.gz, .nii.bz2, .hdr), NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd) file;
        a folder with DICOM files, at any depth and of any name; or one DICOM file, which stands for its series.
    :param series: DICOM only: which series to read, by its number in :func:`list_series` (from 1) or its Series
        Instance UID. None takes the first of that list, which is the best according to
        :func:`LiverXAILib.volumes.dicom.rank`.
    :param allow_irregular: DICOM only: resample a series with irregular slice spacing linearly to regular spacing,
        with a warning in ``metadata["warnings"]``, instead of refusing it.
    :param force: accept a file without a modality whose intensities do not look like Hounsfield units. (A DICOM
        series states its modality; one that is MR is refused in any case.)
    :param files: DICOM only: read only these files, if it is known which ones belong to the series.
    :return: HU as int16 if they are whole numbers, else float32. ``metadata`` has "source_format", "modality"
        (None if the format has none), "warnings" (a list of sentences) and for DICOM "series" (the chosen one, as
        a dictionary), "other_series" (the alternatives, and why they are not usable), "series_instance_uid" and
        "files" (their paths; where each slice is a file of its own, in the order of the slices).
    :raises LiverXAILib.errors.InputError: it is not a readable, regular, three-dimensional CT; the message says why.
    :raises LiverXAILib.errors.UsageError: `series` names none of the series, or `path` is not DICOM.
    :raises LiverXAILib.errors.Cancelled: `cancel` was set.
    """
    path = existing(path)
    context = RunContext(progress, cancel)
    if _may_be_dicom(path):
        from . import dicom  # pydicom, which other formats do not need

        return dicom.read_dicom(path, context, series=series, allow_irregular=allow_irregular, files=files)
    if series is not None:
        raise UsageError(f"A series can only be chosen in a folder of DICOM files, and {path} is not one.")
    context.report("Reading the image", 0.0)
    image = read_image_file(path)
    if len(image.layers) > 1:
        raise InputError(
            f"{path} has {len(image.layers)} values in each voxel (colors or a vector); a CT image has one."
        )
    array = validate_ct(image.layers[0], image.grid, str(path), force=force)
    context.report("Reading the image", 1.0)
    metadata = {"source_format": format_of(path), "modality": None, "warnings": list(image.warnings)}
    return Volume(array, image.grid.ijk_to_lps, metadata)


def read_labels(path: str | os.PathLike[str]) -> Volume:
    """Read a label map (a manual segmentation, for example) from a NIfTI, NRRD or MetaImage file.

    :return: whole numbers as int16 (float32 if some are too large for that); may be empty or constant.
    :raises LiverXAILib.errors.InputError: it is not a readable three-dimensional label map.
    """
    path = existing(path)
    image = read_image_file(path)
    if len(image.layers) > 1:
        raise InputError(f"{path} holds {len(image.layers)} layers of labels; only one is supported here.")
    array = to_smallest_dtype(image.layers[0], str(path))
    if array.dtype.kind == "f" and not (array == np.rint(array)).all():
        raise InputError(f"{path} is not a label map: it holds fractions.")
    metadata = {"source_format": format_of(path), "warnings": list(image.warnings)}
    return Volume(array, image.grid.ijk_to_lps, metadata)


def require_writable_ending(path: Path) -> str:
    """The ending of `path`; raises :class:`~LiverXAILib.errors.UsageError` unless :func:`write_volume` can write it."""
    ending = image_ending(path)
    if ending not in WRITABLE:
        raise UsageError(f"Cannot write {path}: give it one of the endings {', '.join(WRITABLE)}.")
    return ending


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write a volume as .nii, .nii.gz, .nrrd or .mha (all but .nii compressed), replacing an older file atomically.

    A partly written file is never visible. NIfTI keeps seven digits of the geometry, the others all of them.

    :raises LiverXAILib.errors.UsageError: the name has another ending, or a sheared image (gantry tilt) would be
        written as NIfTI, which ITK and 3D Slicer could not read.
    :raises LiverXAILib.errors.InputError: the file cannot be written there.
    """
    require_volume_type(volume)
    require_path(path)
    path = Path(path)
    ending = require_writable_ending(path)
    if FILE_FORMATS[ending] == "NIfTI" and volume.grid.is_sheared:
        raise UsageError(f"Cannot write {path}: NIfTI cannot hold a sheared image (gantry tilt). Use .nrrd or .mha.")
    try:
        with replacing(path) as temporary:
            if FILE_FORMATS[ending] == "NIfTI":
                sitk.WriteImage(image := to_itk(volume), str(temporary), useCompression=True)
                require_size(temporary, 352 + image.GetNumberOfPixels() * image.GetSizeOfPixelComponent())
            else:
                with temporary.open("xb") as file:
                    write_nrrd(volume, file) if ending == ".nrrd" else write_metaimage(volume, file)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    except RuntimeError as error:
        raise InputError(f"Cannot write {path}: is the disk full?") from error


def list_series(
    path: str | os.PathLike[str], *, progress: Progress | None = None, cancel: CancelToken | None = None
) -> list[SeriesInfo]:
    """All DICOM series in a folder (at any depth) or in the folder of a DICOM file, the best first.

    :raises LiverXAILib.errors.InputError: there is no DICOM image.
    """
    path = existing(path)
    if not _may_be_dicom(path):
        raise InputError(f"{path} is a {format_of(path)} file, not a folder of DICOM files.")
    from . import dicom

    return dicom.list_series(path, RunContext(progress, cancel))


def _may_be_dicom(path: Path) -> bool:
    """True for folders and DICOM files, False for the other formats.

    :raises LiverXAILib.errors.InputError: the format is not known.
    """
    if path.is_dir():
        return True
    if format_of(path) is not None:
        return False
    if (reason := why_not_read(path)) is not None:
        raise InputError(f"{path} {reason}.")
    with reading(path), open_regular(path):
        pass  # refuse a pipe or device, which might never end
    from . import dicom

    if not dicom.is_dicom(path):
        raise InputError(f"{path} is neither DICOM nor a file that ends in {', '.join(FILE_FORMATS)}.")
    return True
