# SPDX-License-Identifier: Apache-2.0
"""Cubes around what a model marks as tumor: lesions painted into real scans, real ones, phantoms' own, and false ones.

The model's probability in the cube is the network's previous output. Where a marked component overlaps no lesion, the
network must outline nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from LiverXAILib.inference import segment
from LiverXAILib.inference.masks import Mask
from LiverXAILib.inference.outlines import Marked
from LiverXAILib.models.model import Model
from LiverXAILib.training.random_fields import Rng
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.resample import resample

from ..real_ct import PATIENTS
from .samples import STORED, Cube, Scan, make_scan_phantom, painted, real_scans

#: Lesions painted into a scan at a time, and their diameters in mm.
_PAINTED, _DIAMETERS_MM = 10, (4.0, 45.0)
#: A component belongs to a lesion that covers at least this fraction of it, or that it covers by this fraction.
_LEAST_OVERLAP = 0.1
#: Probabilities above which components are used that the model does not mark: more of what the network must leave out.
_FAINT = (0.25, 0.12, 0.06)
#: One of so many faint components that belong to no lesion is used: there are many of them.
_FAINT_SHARE = 3


def marked_cubes(data: Path, names: Sequence[str], phantoms: range, rounds: int, model: Model) -> Iterator[Cube]:
    """Yield cubes from the scans in the folder `data`, with lesions painted anew in each round, and from phantoms.

    :param phantoms: their seeds.
    :param model: used without its outline network.
    """
    model = Model(dataclasses.replace(model.spec, outlines=None), model.networks)
    complete = {scan.name for scans in PATIENTS.values() for scan in scans if scan.tumors != "unknown"}
    for name in names:
        for scan in real_scans(data, (name,), whole=True):
            yield from _cubes(scan, model, known=name in complete)
            for number in range(rounds):
                rng = Rng(int(np.random.SeedSequence([number, *name.encode()]).generate_state(1)[0]))
                yield from _cubes(_with_lesions(scan, rng), model, known=False)
    for seed in phantoms:
        yield from _cubes(make_scan_phantom(seed, lesions=8), model, known=True)


def _with_lesions(scan: Scan, rng: Rng) -> Scan:
    """The scan with painted lesions, numbered from 1 after its own, which become part of the background."""
    array, lesions = np.array(scan.ct.array), np.zeros(scan.ct.shape, np.int32)
    occupied = scan.lesions > 0
    for number in range(1, _PAINTED + 1):
        free = np.argwhere(scan.liver & ~occupied)
        place = scan.ct.grid.to_lps(free[rng.integer(len(free))][::-1])
        diameter = rng.log_uniform(*_DIAMETERS_MM)
        current = dataclasses.replace(scan, ct=scan.ct.with_array(array), lesions=occupied.astype(np.int32))
        part, lesion, box = painted(current, rng, place, diameter, max(1.0, diameter / 24), alone=True)
        if (lesion & occupied[box]).any() or not lesion.any():
            continue
        array[box] = part
        lesions[box][lesion] = number
        occupied[box] |= lesion
    return dataclasses.replace(scan, ct=scan.ct.with_array(array), lesions=lesions)


def _cubes(scan: Scan, model: Model, *, known: bool) -> Iterator[Cube]:
    """Yield a cube for each component that the model marks.

    :param known: all lesions of the scan are in `scan.lesions`, so that other components are false.
    """
    segmentation = segment(scan.ct, model)
    probability = segmentation.probabilities.get("tumor")
    tissue = segmentation.mask("liver") & ~segmentation.mask("tumor")
    if probability is None or not tissue.any():
        return
    whole = Box.full(scan.ct.shape)
    organ, found = (Mask(whole, segmentation.mask(name)) for name in ("liver", "tumor"))
    marked = Marked(scan.ct, organ, found, probability, float(np.median(scan.ct.array[tissue])))
    counts = np.bincount(scan.lesions.ravel())
    lesions = scan.lesions[marked.box]
    for component in marked.components(_FAINT):
        own, _ = component.divided(Box.full(component.numbers.shape))
        shared = np.bincount(lesions[own], minlength=counts.size)
        least = _LEAST_OVERLAP * np.minimum(np.count_nonzero(own), counts)
        belonging = [number for number in range(1, counts.size) if shared[number] > max(0, least[number])]
        if not belonging and (shared[1:].any() or not known):
            continue
        is_faint = float(probability.array[component.numbers == component.number].max()) <= 0.5
        if is_faint and not belonging and component.number % _FAINT_SHARE:
            continue
        grid = component.cube(scan.ct.grid, STORED)
        hu, liver, before = marked.sampled(component, grid)
        lesion = resample(np.isin(scan.lesions, belonging).astype(np.float32), scan.ct.grid, grid) > 0.5
        yield Cube(
            hu.clamp(-1000, 1000).round().numpy().astype(np.int16),
            (liver > 0.5).numpy(),
            lesion.numpy(),
            component.scale_mm,
            before.numpy().astype(np.float16),
        )
