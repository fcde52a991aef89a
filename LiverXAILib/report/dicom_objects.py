# SPDX-License-Identifier: Apache-2.0
"""Common parts of all DICOM objects that LiverXAI writes: who made them, how, and that they are for research."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from .._version import __version__
from ..errors import InputError, UsageError
from ..files import replacing
from ..inference.segmentation import Segmentation
from ..labels.terminology import Code
from ..text import how_to_install
from ..volumes.dicom.headers import pydicom_warnings_hidden
from .dicom_source import DicomSource

if TYPE_CHECKING:
    import highdicom
    from highdicom.sr.coding import CodedConcept

#: Series numbers of the objects added to a study, well above those of scanners.
SERIES_NUMBERS = {"seg": 300, "sr": 301, "pm": 302, "sc": 303}


def require_dicom_extra() -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` if the extra ``dicom`` is not installed."""
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError(f"DICOM objects need highdicom: {how_to_install('dicom')}; or leave out --dicom.")


def save(make: Callable[[], Dataset], source: DicomSource, path: str | os.PathLike[str]) -> list[str]:
    """Make an object of a series and write it to `path`; returns what was repaired in, or left out of, the headers.

    :raises LiverXAILib.errors.UsageError: the extra ``dicom`` is not installed.
    :raises LiverXAILib.errors.InputError: the object cannot be made of the series.
    :raises OSError: the file cannot be written.
    """
    require_dicom_extra()
    with pydicom_warnings_hidden():
        try:
            dataset = make()
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"The DICOM object cannot be made of this series: {error}") from error
        with replacing(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
    return list(source.notes)


def made_by(what: str, series_number: int, instance_number: int = 1) -> dict[str, Any]:
    """The arguments of highdicom's objects that say who made a new instance of a new series."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(),
        "instance_number": instance_number,
        "manufacturer": "LiverXAI",
        "manufacturer_model_name": "LiverXAI",
        "software_versions": __version__,
        "device_serial_number": "none",
        "series_description": f"LiverXAI {what} (research only)",
    }


def code(concept: Code) -> CodedConcept:
    """A coded concept as a highdicom object."""
    from highdicom.sr.coding import CodedConcept

    scheme, value, meaning = concept
    return CodedConcept(value, scheme, meaning)


def algorithm(segmentation: Segmentation) -> highdicom.AlgorithmIdentificationSequence:
    """The model that made a segmentation."""
    import highdicom
    from pydicom.sr.codedict import codes

    model = segmentation.provenance.get("model", {})
    return highdicom.AlgorithmIdentificationSequence(
        name=f"LiverXAI {model.get('name', 'unknown')}"[:64],
        version=str(model.get("version", "unknown"))[:64],
        family=codes.DCM.ArtificialIntelligence,
    )


def tracking_of(source: DicomSource, name: str, mask: np.ndarray) -> dict[str, str]:
    """Identifier and UID by which the objects of one analysis refer to the same structure of one series."""
    digest = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
    uid = generate_uid(entropy_srcs=[source.first.SeriesInstanceUID, name, digest])
    return {"tracking_id": name, "tracking_uid": uid}


def without_references(dataset: Dataset) -> Dataset:
    """Remove the references to source images from an object, because its slices do not exist as stored images."""
    for keyword in ("ReferencedSeriesSequence", "SourceImageSequence"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for groups in (*dataset.get("PerFrameFunctionalGroupsSequence", ()), *dataset.SharedFunctionalGroupsSequence):
        if "DerivationImageSequence" in groups:
            del groups.DerivationImageSequence
    return dataset
