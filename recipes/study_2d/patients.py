# SPDX-License-Identifier: Apache-2.0
"""Many synthetic patients from few real ones: slabs of each anatomy, deformed, resynthesized and rescanned."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from LiverXAILib.context import RunContext
from LiverXAILib.errors import InputError
from LiverXAILib.progress import Progress
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.resample import resample
from LiverXAILib.volumes.volume import Volume

from ..default_model.sources import to_grid
from ..default_model.synthesis import Generator, Sample, Source, Tissue
from ..default_model.tissue_maps import tissues_by_hu
from ..real_ct import PATIENTS, Scan, read_scan

SPACING_MM = 2.0
#: Planes of a slab, of which every fourth is kept: eight slices 8 mm apart.
_PLANES, _STEP = 32, 4
#: Fields of view in voxels, and how often each is drawn: 300 to 560 mm.
_SIZES = tuple(
    ((_PLANES, n, n), weight)
    for n, weight in ((152, 0.15), (168, 0.2), (184, 0.2), (200, 0.2), (220, 0.15), (280, 0.1))
)
#: Fraction of slabs away from the liver, and of slabs with liver that get synthetic lesions.
_NEGATIVES, _LESIONS = 0.1, 0.5
#: Fraction of slabs whose intensities are synthesized; since training uses few slices, most keep real intensities.
_REDRAWN = 0.1
#: Smallest fraction of a slab that must be tissue: empty scans are of no use here.
_LEAST_BODY = 0.03


#: Each anatomy is left out in turn.
ANATOMIES = PATIENTS


def source(data: Path, scan: Scan) -> Source:
    """Prepare a scan for the generator; labeled tumors are *unknown* tissue, which the generator does not change."""
    volume, liver, tumor = read_scan(data, scan)
    ct, grid = to_grid(volume, SPACING_MM)
    liver, tumor = (resample(mask.astype(np.float32), volume.grid, grid).numpy() > 0.5 for mask in (liver, tumor))
    tissues = tissues_by_hu(ct)
    tissues[liver] = int(Tissue.LIVER)
    tissues[tumor] = int(Tissue.UNKNOWN)
    return Source(scan.name, ct, tissues, liver, False, 1.0)


def write_patients(data: Path, folder: Path, anatomy: str, count: int, seed: int) -> list[dict[str, str]]:
    """Write the missing synthetic patients of an anatomy; return the rows of all for a CSV data set.

    :param folder: folder for ``<anatomy>-<n>.nii.gz`` and its label map, and ``<anatomy>.json``, written last.
    """
    record = folder / f"{anatomy}.json"
    if record.is_file():
        rows: list[dict[str, str]] = json.loads(record.read_text(encoding="utf-8"))
        if len(rows) == count:
            return rows
    scans = ANATOMIES[anatomy]
    generators = [
        Generator(
            [source(data, scan)],
            spacing_mm=SPACING_MM,
            negative_fraction=_NEGATIVES,
            lesions=_LESIONS,
            sizes=_SIZES,
            redrawn=_REDRAWN,
        )
        for scan in scans
    ]
    rows = []
    for number in range(count):
        scan, generator = scans[number % len(scans)], generators[number % len(scans)]
        ct, truth = _patient(generator, scan, seed * 10_000_019 + number)
        name = f"{anatomy}-{number:03}"
        write_volume(ct, folder / f"{name}.nii.gz")
        write_volume(truth, folder / f"{name}-label.nii.gz")
        known = scan.tumors != "unknown"
        rows.append({"case": name, "image": f"patients/{name}.nii.gz"})
        rows[-1]["label" if known else "liver"] = f"patients/{name}-label.nii.gz"
    record.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def _patient(generator: Generator, scan: Scan, seed: int) -> tuple[Volume, Volume]:
    """Make a synthetic patient and labels: the seed's first sample that shows a body in several slices."""
    for attempt in range(100):
        sample = generator.sample(seed + 1000 * attempt)
        ct, truth = _slices(sample, scan)
        if len(ct.array) > 1 and (ct.array > -100).mean() > _LEAST_BODY:
            return ct, truth
    raise InputError(f"{scan.name} shows hardly any body.")


def _slices(sample: Sample, scan: Scan) -> tuple[Volume, Volume]:
    """Every fourth plane of a sample, without planes beyond the ends of the scan, and its labels."""
    tumor = sample.tumor
    if scan.tumors == "labeled" and ", real" in sample.kind:
        # A synthesized liver has liver HU everywhere; a real one keeps its tumors.
        tumor = tumor | (sample.liver & ~sample.known)
    labels = sample.liver.numpy().astype(np.uint8)
    labels[(tumor & sample.liver).numpy()] = 2
    planes = [k for k in range(_STEP // 2, _PLANES, _STEP) if float(sample.image[k].max()) > -900]
    planes = planes or [_PLANES // 2]
    matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM * _STEP, 1.0])
    image = sample.image.numpy()[planes].clip(-1024, 3071).round().astype(np.int16)
    return Volume(image, matrix, {"modality": "CT"}), Volume(labels[planes], matrix)


def validation_rows(data: Path, folder: Path, anatomy: str) -> list[dict[str, str]]:
    """Rows of a CSV data set for the real scans of an anatomy, all of their slices."""
    rows = []
    for scan in ANATOMIES[anatomy]:
        place = (data / "ct" / scan.name).resolve()
        row = {"case": scan.name, "image": str(place / "image.nii.gz"), "liver": str(place / "liver.nii.gz")}
        if scan.liver_value is not None:
            path = folder / f"{scan.name}-liver.nii.gz"
            if not path.is_file():
                volume, liver, _ = read_scan(data, scan)
                write_volume(volume.with_array(liver.astype(np.uint8)), path)
            row["liver"] = str(path.resolve())
        if scan.tumors == "labeled":
            row["tumor"] = str(place / "tumor.nii.gz")
        rows.append(row)
    return rows


def prepare(
    data: Path,
    output: Path,
    anatomies: Sequence[str],
    count: int,
    seed: int,
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[dict[str, list[dict[str, str]]], dict[str, list[dict[str, str]]]]:
    """Make synthetic patients for training and list real scans for validation, as rows by name of the anatomy.

    :param jobs: number of anatomies processed in parallel, each in its own process.
    """
    context = RunContext(progress)
    folder = output / "patients"
    folder.mkdir(parents=True, exist_ok=True)
    training, validation = {}, {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        # The seed of an anatomy does not depend on which others there are.
        seeds = {name: seed + 1 + list(ANATOMIES).index(name) for name in anatomies}
        written = {name: pool.submit(write_patients, data, folder, name, count, seeds[name]) for name in anatomies}
        for number, anatomy in enumerate(anatomies):
            context.report(f"Synthetic patients of {anatomy}", number / len(anatomies))
            training[anatomy] = written[anatomy].result()
            validation[anatomy] = validation_rows(data, folder, anatomy)
    context.report("Synthetic patients are ready", 1.0)
    return training, validation
