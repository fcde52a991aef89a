# SPDX-License-Identifier: Apache-2.0
"""read_segmentation(): contours from another source, to be measured and explained as if they were the model's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, require_several
from ..files import require_path
from ..labels.label_map import Values, read_structures
from ..models.spec import LIVER, TUMOR
from ..volumes.volume import Volume, require_volume_type
from .segmentation import Segmentation

_ADVICE = "Say what it is by --liver-label and --tumor-label, or that others are background (--ignore-other-labels)."

#: The source of such a segmentation in its provenance.
GIVEN = "given contours"


def read_segmentation(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    volume: Volume,
    labels: Values | None = None,
    *,
    others: bool = False,
) -> Segmentation:
    """Read contours of the liver, and perhaps of its tumors, that belong to `volume`.

    :param path: a label map, a ``.seg.nrrd``, a DICOM SEG, or several files ("liver.nii.gz" and "tumor.nii.gz") that
        are combined. :mod:`LiverXAILib.labels` interprets their values, names and codes.
    :param volume: the CT on which they were drawn.
    :param labels: values of "liver" and "tumor" in label maps; None: as described in the files.
    :param others: values without a known meaning are background.
    :return: labels on the CT's grid, without probabilities; with "tumor" only if the files describe tumors.
    :raises LiverXAILib.errors.InputError: they do not lie on the CT's voxels, hold values without a known meaning, or
        contain no liver.
    """
    require_volume_type(volume)
    paths = [path] if isinstance(path, str | os.PathLike) else path
    require_several(paths, "paths")
    several = list(paths)
    for one in several:
        require_path(one)
    found = read_structures([Path(one) for one in several], volume.grid, labels, others=others, advice=_ADVICE)
    names = ", ".join(Path(one).name for one in several)
    if "liver" not in found.structures:
        raise InputError(
            f"{names}: there is no liver, but tumors are measured within one. Give its contour too, with a label "
            "'liver' or as a further file."
        )
    if not found.mask("liver").any():
        raise InputError(f"{names}: nothing is drawn in it.")
    specs = (LIVER, TUMOR) if "tumor" in found.structures else (LIVER,)
    warning = "The contours were given, not made by the model: explanations show how the model sees them."
    return Segmentation(found.volume, specs, provenance={"source": GIVEN, "warnings": [warning]})
