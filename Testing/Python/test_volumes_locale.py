# SPDX-License-Identifier: Apache-2.0
"""Headers are read and written identically if the decimal separator is a comma, also inside a Qt application."""

from __future__ import annotations

import locale
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import a_body

from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Volume

MATRIX = np.array([[0.75, 0, 0, -12.5], [0, 0.8125, 0, 33.25], [0, 0, 2.5, 870.125], [0, 0, 0, 1]])
ENDINGS = (".nrrd", ".mha", ".nii.gz")

#: Reads the parent's files and writes them again, in a process whose C library has a decimal comma.
PROGRAM = """
import locale, sys
import numpy as np
from pathlib import Path
if sys.argv[2] == "qt":
    from PySide6.QtCore import QCoreApplication
    application = QCoreApplication([])
assert locale.setlocale(locale.LC_ALL, "de_DE.UTF-8") and locale.localeconv()["decimal_point"] == ","
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.report import write_segmentation_file
from LiverXAILib.volumes.io import read_labels, read_volume, write_volume
folder = Path(sys.argv[1])
for path in sorted(folder.glob("in.*")):
    volume = read_volume(path)
    assert not volume.metadata["warnings"], volume.metadata
    np.save(folder / (path.name + ".npy"), volume.ijk_to_lps)
    write_volume(volume, folder / path.name.replace("in.", "out."))
labels = volume.with_array((volume.array > 0).astype(np.uint8))
provenance = {"model": {"name": "m", "version": "0", "sha256": []}, "warnings": []}
write_segmentation_file(Segmentation(labels, (LIVER, TUMOR), provenance=provenance), folder / "out.seg.nrrd")
np.save(folder / "labels.npy", read_labels(folder / "out.seg.nrrd").ijk_to_lps)
"""


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with the locale de_DE.UTF-8, which is created if the system lacks it."""
    folder = tmp_path_factory.mktemp("locales")
    environment = {**os.environ, "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "QT_QPA_PLATFORM": "offscreen"}
    if shutil.which("localedef"):
        made = subprocess.run(
            ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")], capture_output=True, check=False
        )
        if made.returncode == 0:
            return {**environment, "LOCPATH": str(folder)}
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
    except locale.Error:
        pytest.skip("this system has no locale with a decimal comma and no localedef to make one")
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)
    return environment


@pytest.mark.parametrize("application", ["plain", "qt"])
def test_a_decimal_comma_changes_nothing(german, application, tmp_path):
    if application == "qt":
        pytest.importorskip("PySide6.QtCore")
    for ending in ENDINGS:
        write_volume(Volume(a_body(), MATRIX), tmp_path / f"in{ending}")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), application],
        env=german, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    files: list[Path] = [tmp_path / f"out{ending}" for ending in ENDINGS] + [tmp_path / "out.seg.nrrd"]
    for path in files:
        image = sitk.ReadImage(str(path))
        np.testing.assert_allclose(image.GetSpacing(), (0.75, 0.8125, 2.5), atol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), MATRIX[:3, 3], atol=1e-4)
    for path in tmp_path.glob("*.npy"):
        np.testing.assert_allclose(np.load(path), MATRIX, atol=1e-4)
