# SPDX-License-Identifier: Apache-2.0
"""The diffs of docs/extending.md apply to the current library, and the additions work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), flags=re.DOTALL)

#: Runs in a separate process, with the extended copy of the library on its path.
USE = """
import json, sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from toys import ball_phantom, threshold_model

import LiverXAILib as lx
from LiverXAILib.explain.catalog import CATALOG
from LiverXAILib.networks import UNet
from LiverXAILib.options import Options
from LiverXAILib.volumes.volume import Grid

assert Path(lx.__file__).is_relative_to(sys.argv[1])
folder = Path(sys.argv[1])

image, truth = ball_phantom(Grid((40, 44, 44), np.diag([3.0, 3.0, 3.5, 1.0])))
model = threshold_model()
segmentation = lx.segment(image, model, device="cpu")
assert CATALOG["seg-xgrad-cam"].title == "Seg-XGrad-CAM"
explanation = lx.explain(image, model, segmentation, "rim:1", "seg-xgrad-cam", device="cpu")
assert str(explanation.target) == "rim:1"
lesion, rim = (lx.Target.parse(text).mask(segmentation) for text in ("lesion:1", "rim:1"))
assert rim.any() and (rim <= lesion).all() and rim.sum() < lesion.sum()
assert explanation.heatmap.array.max() > 0

analysis = lx.analyze(image, model, targets=["rim:1"], method="seg-xgrad-cam", device="cpu")
Options(write=("nifti",)).save(analysis, folder / "result")
labels = lx.read_volume(folder / "result" / "labels.nii.gz", force=True)
assert (labels.array == analysis.segmentation.labels.array).all()

arguments = {"features": [4, 6], "norm": "batch"}
slab = folder / "slab"
slab.mkdir()
torch.manual_seed(0)
save_file(UNet(3, 1, 1, **arguments).state_dict(), slab / "slab.safetensors")
(slab / "slab.json").write_text(json.dumps({"spacing": [2, 2, 4], "unet": arguments}))
loaded = lx.load_model(slab)
assert [spec.name for spec in loaded.spec.labels] == ["liver"]
assert lx.segment(image, loaded, device="cpu").labels.array.shape == image.shape
print("extended")
"""


def _apply(diff: str, folder: Path, *options: str) -> None:
    done = subprocess.run(
        ["git", "apply", *options, "-"], cwd=folder, input=diff, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, f"The diff does not apply any more:\n{diff[:200]}\n{done.stderr}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "extended"
    folder.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "LiverXAILib", folder / "LiverXAILib", ignore=skipped)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def test_each_diff_applies_by_itself(copy: Path) -> None:
    assert len(DIFFS) == 4
    for diff in DIFFS:
        _apply(diff, copy, "--check")


def test_a_method_an_output_a_format_and_a_target_are_added_by_their_diffs_alone(copy: Path) -> None:
    for diff in DIFFS:
        _apply(diff, copy)
    paths = os.pathsep.join([str(copy), str(ROOT / "Testing"), str(ROOT / "Testing" / "Python")])
    done = subprocess.run(
        [sys.executable, "-c", USE, str(copy)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("extended"), done.stderr
