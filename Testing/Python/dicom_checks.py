# SPDX-License-Identifier: Apache-2.0
"""Independent checks of written DICOM objects: dciodvfy (dicom3tools) and highdicom."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dicom3tools is not installed (see .ci/install-system-packages)"
)


def errors_of(path: Path) -> list[str]:
    """The errors that dciodvfy reports for a DICOM file."""
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace", check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert lines, "dciodvfy did not say what it checked"
    return [line for line in lines if line.startswith("Error")]


def masks_by_highdicom(path: Path, files: Sequence[str]) -> dict[str, np.ndarray]:
    """The segments of a SEG by label as highdicom reads them for the slices in `files`: bool (k, j, i)."""
    segmentation = highdicom.seg.segread(path)
    numbers = segmentation.segment_numbers
    array = segmentation.get_pixels_by_source_instance(
        [pydicom.dcmread(name, stop_before_pixels=True).SOPInstanceUID for name in files],
        segment_numbers=numbers,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    labels = [segmentation.get_segment_description(number).segment_label for number in numbers]
    return {label: array[..., n] > 0 for n, label in enumerate(labels)}
