# SPDX-License-Identifier: Apache-2.0
"""A tiny model that segments by thresholds, tiny good and bad cases, and batches run from the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from forking import Process
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from LiverXAILib.models import LIVER, TUMOR, Intensity, LayerSpec, ModelSpec, StageSpec, save_model
from LiverXAILib.networks import UNet
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Volume

ROOT = Path(__file__).parents[2]
SHAPE, SPACING = (16, 32, 32), (4.0, 4.0, 6.0)


def write_model(folder: Path, *, liver_hu: float = 50.0) -> Path:
    """A U-Net whose weights are set by hand: brighter than `liver_hu` is liver, brighter than 150 HU is tumor."""
    torch.manual_seed(1)
    network = UNet(3, 1, 2, features=(2, 2), convolutions_per_stage=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.02)
        for norm in (network.encoder[0][1], network.bottleneck[1], network.decoder[0].convolutions[1]):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
        # The intensity passes unchanged through the skip connection to the head.
        network.encoder[0][0].weight[0, 0, 1, 1, 1] = 1.0
        network.decoder[0].convolutions[0].weight[0, 2, 1, 1, 1] = 1.0
        network.head.weight[:, 0] = 10.0
        network.head.bias[:] = torch.tensor([-10 * (liver_hu + 200) / 100, -35.0])
    stage = StageSpec(
        name="all",
        network="UNet",
        arguments={"out_channels": 2, "features": (2, 2), "convolutions_per_stage": 1},
        weights=("weights.safetensors",),
        sha256=("",),
        axes="SPL",
        spacing=(6.0, 4.0, 4.0),
        intensity=Intensity(-200, 300, -200, 100),
        divisor=(2, 2, 2),
        activation="sigmoid",
        channels=("liver", "tumor"),
        labels={"liver": ("liver",), "tumor": ("tumor",)},
        layers=(LayerSpec("bottleneck", (2, 2, 2)), LayerSpec("encoder.0", (1, 1, 1))),
        default_layer="bottleneck",
    )
    spec = ModelSpec("toy", "1", "A toy", "For tests", (LIVER, TUMOR), (stage,), "Apache-2.0")
    save_model(spec, {"all": [network.state_dict()]}, folder, half=False)
    return folder


def phantom(seed: int = 0, lesions: int = 1) -> Volume:
    """A body of water in air with a liver of 100 HU and lesions of 200 HU; the liver's size depends on the seed."""
    random = np.random.default_rng(seed)
    k, j, i = np.indices(SHAPE)
    place = np.stack([i * SPACING[0], j * SPACING[1], k * SPACING[2]], axis=-1) - (64.0, 64.0, 48.0)
    image = np.full(SHAPE, -1000, dtype=np.int16)
    image[np.linalg.norm(place * (1, 1, 0.1), axis=-1) < 58] = 0
    image[np.linalg.norm(place, axis=-1) < random.uniform(32, 40)] = 100
    for number in range(lesions):
        center = ((-16, 0, 0), (16, 0, 0), (0, 18, 0))[number]
        image[np.linalg.norm(place - center, axis=-1) < 9] = 200
    matrix = np.diag([*SPACING, 1.0])
    return Volume(image, matrix)


def write_good(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(phantom(seed), path)
    return path


def write_dicom(folder: Path, seed: int = 0, *, modality: str = "CT", slices: int = SHAPE[0], study: str = "") -> str:
    """Write a DICOM series and return its UID."""
    folder.mkdir(parents=True, exist_ok=True)
    series, volume = generate_uid(), phantom(seed)
    study, frame = study or generate_uid(), generate_uid()
    for number in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{series[-6:]}-{number:03}.dcm"
        data = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = modality, series, study
        data.FrameOfReferenceUID = frame
        data.SeriesNumber, data.ImageType = 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns, data.SamplesPerPixel = SHAPE[1], SHAPE[2], 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing, data.ImageOrientationPatient = [4, 4], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, 6 * number]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = np.ascontiguousarray(volume.array[number]).tobytes()
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    return series


#: Short enough to wait for, but longer than a good case takes on a busy machine.
COHORT_ARGUMENTS = ("--explain", "--no-report", "--time-limit", 12)
#: Label of each bad case: the kind of failure, and a word that the reason must contain.
BAD = {
    "truncated.nii.gz": ("input", "incomplete"),
    "scanner/mr [series 1]": ("input", "MR"),
    "nan.nrrd": ("input", "NaN"),
    "deep/er/empty.mha": ("input", "empty"),
    "flat.nrrd": ("input", "dimensions"),
    "no image at all.nii": ("input", "NIfTI"),
    "Bauch groß, Frau Müller (Kopie 2).nii.gz": ("input", "incomplete"),
    "scanner/one slice [series 1]": ("input", "single slice"),
    "patient 2/hang.nii.gz": ("time limit", "12 s"),
    "crash.nrrd": ("crash", "SIGSEGV"),
}


def make_tree(folder: Path, count: int) -> list[str]:
    """Write `count` good cases in several formats, and the bad ones; return the labels of the good ones."""
    good = []
    for number in range(count - 2):
        ending = (".nii.gz", ".nrrd", ".mha")[number % 3]
        name = f"patient {number // 10}/case{number:02}{ending}"
        write_good(folder / name, number)
        good.append(name)
    write_good(folder / "Größe ÄÖÜ.nii.gz", 48)
    write_dicom(folder / "scanner" / "ct", 49)
    good += ["Größe ÄÖÜ.nii.gz", "scanner/ct [series 1]"]

    whole = (folder / good[0]).read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_dicom(folder / "scanner" / "mr", modality="MR")
    write_dicom(folder / "scanner" / "one slice", slices=1)
    (folder / "deep" / "er").mkdir(parents=True)
    volume = phantom()
    broken = volume.array.astype(np.float32)
    broken[3, 4, 5] = np.nan
    write_volume(volume.with_array(broken), folder / "nan.nrrd")
    write_volume(Volume(np.zeros((8, 8, 8), np.int16), np.eye(4)), folder / "deep" / "er" / "empty.mha")
    sitk.WriteImage(sitk.Image(32, 32, sitk.sitkInt16), str(folder / "flat.nrrd"))
    (folder / "no image at all.nii").write_text("Dies ist kein Bild.")
    (folder / "Bauch groß, Frau Müller (Kopie 2).nii.gz").write_bytes(whole[:-20])
    write_good(folder / "patient 2" / "hang.nii.gz")
    write_good(folder / "crash.nrrd")
    (folder / "notes.txt").write_text("not a case")
    (folder / "._case00.nii.gz").write_bytes(b"hidden")
    return good


#: Put on the path of worker processes: reading a file with "crash" in its name ends the process with SIGSEGV, as a
#: damaged file may do in a C++ library; "slow" takes a second; "hang" takes forever, like a dead network drive, and
#: creates an empty file next to this one with the ids of the hanging process and its parent.
SABOTAGE = """
import ctypes, os, time
from pathlib import Path
from LiverXAILib.options import Options

read = Options.read

def sabotaged(self, path, files=None):
    name = Path(path).name
    if "crash" in name:
        ctypes.string_at(0)
    if "slow" in name:
        time.sleep(1.0)
    if "hang" in name:
        Path(__file__).with_name(f"hangs {os.getppid()} {os.getpid()}").touch()
        time.sleep(1e6)
    return read(self, path, files)

Options.read = sabotaged
"""


def environment(folder: Path) -> dict[str, str]:
    """Environment in which worker processes are sabotaged."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def batch_command(*arguments: Any) -> list[str]:
    """The command with cases named by their paths, which tests know; test_batch_names.py tests other names."""
    return [sys.executable, "-m", "LiverXAILib", "batch", "--keep-names", *map(str, arguments)]


def start_batch(*arguments: Any, env: dict[str, str], start: Any = Process) -> subprocess.Popen[str]:
    """Start a batch; with :class:`subprocess.Popen` as `start`, it and its workers import everything as for a user."""
    return start(
        batch_command(*arguments), env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run_batch(*arguments: Any, env: dict[str, str], timeout: float = 500) -> subprocess.CompletedProcess[str]:
    with start_batch(*arguments, env=env) as process:
        said = process.communicate(timeout=timeout)[0]
    return subprocess.CompletedProcess(process.args, process.returncode, said)


def manifest_lines(output: Path) -> list[dict[str, Any]]:
    """All lines of the manifest, read without the code under test; incomplete lines are left out."""
    lines = []
    for path in (output / "manifest").glob("*.jsonl"):
        for text in path.read_text(encoding="utf-8").split("\n"):
            if text.endswith("}"):
                lines.append(json.loads(text))
    return sorted(lines, key=lambda line: line["time"])


def final_states(output: Path) -> dict[str, dict[str, Any]]:
    """The last line about each case, by its label."""
    return {line["label"]: line for line in manifest_lines(output) if line["event"] == "case"}


def times_done(output: Path) -> Counter[str]:
    """How often each case was done, by its label."""
    return Counter(x["label"] for x in manifest_lines(output) if x["event"] == "case" and x["state"] == "done")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def wait_for(condition: Any, seconds: float = 300.0) -> None:
    """Wait until a condition holds; fail on timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def assert_whole(folder: Path, expected: Sequence[str] = ("segmentation.seg.nrrd", "measurements.json")) -> None:
    """Assert that a folder of results has all its files, and that they can be read."""
    for name in (*expected, "provenance.json", "case.json"):
        assert (folder / name).stat().st_size > 0, f"{folder / name} is missing or empty"
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


#: Contents of a finished case's folder, as far as summaries read them.
RESULT_RECORD = {
    "case": "ab",
    "run": "r",
    "times": {"reading": 1, "analyzing": 1, "writing": 1},
    "warnings": [],
    "model": {"name": "a", "version": "1"},
    "software": "1",
    "input": {"path": "p", "sha256": "s"},
}
RESULT_MEASUREMENTS = {
    "liver_volume_ml": 1500.0,
    "liver_complete": True,
    "liver_mean_hu": 100.0,
    "tumor_volume_ml": None,
    "tumor_burden_percent": None,
    "lesions": [{"axial": {"long_mm": 12.0}}],
}


def write_result_files(folder: Path) -> None:
    """Write the files of a finished case, except its record."""
    (folder / "measurements.json").write_text(json.dumps(RESULT_MEASUREMENTS), encoding="utf-8")
    (folder / "measurements.csv").write_text("structure,volume_ml\nliver,1500\nlesion,2\n", encoding="utf-8")
    check = {"passed": True, "sentence": "Good.", "curves": {"gain": 0.5}}
    provenance = {"explanations": [{"target": "liver", "faithfulness": check}, {}]}
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
