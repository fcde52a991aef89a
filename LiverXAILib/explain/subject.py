# SPDX-License-Identifier: Apache-2.0
"""What an explanation is about, in voxels, by which it is known again after other outlines have changed."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from ..inference.lesions import lesion_boxes, numbered_lesions
from ..inference.segmentation import Segmentation
from ..models.spec import ModelSpec
from ..volumes.box import Box, bounding_box
from .targets import LESION_LABEL, EmptyTargetError, Target


def subject_checksum(target: Target, segmentation: Segmentation, model: ModelSpec) -> str | None:
    """The checksum of the voxels on which the heat map of a target depends; None if there are none.

    For a lesion these are its own. For any other target they are those that the question is about and, where the
    channels of the model are mutually exclusive, their labels: those decide which channel is explained.
    """
    if target.lesion is not None:
        return lesion_checksums(segmentation).get(target.lesion)
    try:
        mask = target.resolve(segmentation).mask(segmentation)
    except EmptyTargetError:
        return None
    box = bounding_box(mask)
    assert box is not None  # an empty target raises
    voxels = mask[box]
    if model.stage_of(target.label).activation != "softmax":
        return _checksum(box, voxels)
    return _checksum(box, voxels, segmentation.labels.array[box][voxels].tobytes())


def lesion_checksums(segmentation: Segmentation) -> dict[int, str]:
    """The checksum of the voxels of each lesion, by its number."""
    whole, numbers = numbered_lesions(segmentation, LESION_LABEL)
    return {
        number: _checksum(box, numbers[box.relative_to(whole)] == number)
        for number, box in enumerate(lesion_boxes(segmentation, LESION_LABEL), start=1)
    }


def present_target(target: Target, subject: str, segmentation: Segmentation, model: ModelSpec) -> Target | None:
    """The target of a heat map under its number in `segmentation`; None if what it depends on is no longer the same.

    :param subject: the :func:`subject_checksum` when the heat map was computed.
    """
    if target.lesion is None:
        return target if subject_checksum(target, segmentation, model) == subject else None
    numbers = {checksum: number for number, checksum in lesion_checksums(segmentation).items()}
    return target.of_lesion(numbers[subject]) if subject in numbers else None


def _checksum(box: Box, voxels: np.ndarray, labels: bytes = b"") -> str:
    place = np.array((box.start, box.shape), dtype="<i8").tobytes()
    return sha256(place + np.packbits(voxels).tobytes() + labels).hexdigest()
