# SPDX-License-Identifier: Apache-2.0
"""From cases to training samples: prepared once on the network's grid, then cropped and augmented (MONAI).

Sample number n of epoch e is the same in every run with that seed, whatever was drawn before, and with any number of
worker processes and devices. A resumed run therefore ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import (
    ClassesToIndices,
    Compose,
    RandAffined,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from ..context import UNATTENDED, RunContext
from ..errors import InputError, LiverXAIError, with_causes
from ..inference.geometry import AIR_HU
from ..inference.stages import normalize, stage_grids
from ..models.spec import StageSpec
from ..volumes.box import bounding_box
from .config import Augmentation
from .layouts import TrainingCase, Values, on_grid, read_case
from .lesion_painting import add_lesions
from .random_fields import Rng
from .splits import Split

#: Number of the case, slice or -1, and seed of the sample.
Key = tuple[int, int, int]

_LIVER, _TUMOR = 1, 2
#: Fraction of the samples without labeled tumors into which synthetic lesions are painted, if that is switched on.
_PAINTED = 0.8
#: For a 2-D network, lesions are painted into a slab that extends this far on both sides of the slice, in mm.
_SLAB_MM = 30.0
#: Images whose spacings differ by more than this factor are resampled to cubic voxels for painting lesions.
_CUBE = 1.2


class Prepare(Transform):
    """Reads a case and resamples it to the grid of `stage`, exactly as inference does.

    :param patch: (k, j, i): pad to at least this size, and store where each class is, to crop around it.
    """

    def __init__(self, stage: StageSpec, values: Values, patch: Sequence[int] | None = None) -> None:
        self.stage, self.values, self.patch = stage, values, patch

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Prepare the case of `item`.

        :return: `image` in HU and `truth` (0 background, 1 liver, 2 tumor), both (1, k, j, i); `spacing` of (k, j, i)
            in mm; `center_hu`, the median HU of the region that the stage is cropped around.
        :raises LiverXAILib.errors.InputError: the case cannot be read, or lacks the region whose HU are the reference.
        """
        case: TrainingCase = item["case"]
        volume, truth = read_case(case, self.values)
        box, center_hu = None, 0.0
        if self.stage.region is not None:
            # A later stage is cropped around the result of an earlier one: here, around its ground truth.
            region = truth == _TUMOR if self.stage.region.label == "tumor" else truth > 0
            box = bounding_box(region)
            if box is not None:
                center_hu = float(np.median(volume.array[region]))
            elif self.stage.intensity.centered:
                raise InputError(
                    f"Case {case.name!r}: no {self.stage.region.label} is labeled, whose median HU stage "
                    f"{self.stage.name!r} needs. Leave the case out (data.exclude)."
                )
        grid = stage_grids(volume, self.stage, box)[0]
        image, liver, tumor = on_grid(volume, truth, grid)
        labels = liver.to(torch.uint8)
        labels[tumor] = _TUMOR
        prepared: dict[str, Any] = {
            "spacing": torch.tensor(grid.spacing[::-1]),
            "center_hu": torch.tensor(center_hu),
            "tumor_known": torch.tensor(case.tumor_known),
            "sha256": volume.sha256,
        }
        if self.patch is not None:
            missing = [max(0, wanted - n) for wanted, n in zip(self.patch, image.shape, strict=True)]
            margins = [part for n in reversed(missing) for part in (n // 2, n - n // 2)]
            image, labels = functional.pad(image, margins, value=AIR_HU), functional.pad(labels, margins)
            found = ClassesToIndices(num_classes=3, max_samples_per_class=20_000)(labels[None])
            prepared["classes"] = [torch.as_tensor(places) for places in found]
        return {**prepared, "image": image[None], "truth": labels[None]}


def prepared_cases(
    cases: Sequence[TrainingCase],
    prepare: Prepare,
    *,
    folder: Path | None = None,
    context: RunContext = UNATTENDED,
) -> Dataset[dict[str, Any]]:
    """Prepare all cases and keep them in memory, or in `folder`.

    :raises LiverXAILib.errors.InputError: a case cannot be used; the message names it.
    """
    items = [
        {
            "case": case,
            # MONAI looks up stored items by this key, which has everything they depend on.
            "key": (repr(asdict(prepare.stage)), repr(prepare.values), prepare.patch, "sha256", _stamp(case)),
        }
        for case in cases
    ]
    context.report("Preparing cases", 0.0)
    try:
        if folder is None:
            return CacheDataset(items, prepare, num_workers=1, progress=False, copy_cache=False)
        stored = PersistentDataset(items, prepare, folder)
        for number in range(len(items)):
            context.report("Preparing cases", number / len(items))
            stored[number]
        return stored
    except RuntimeError as error:
        # MONAI wraps what its transforms raise.
        raise next((one for one in with_causes(error) if isinstance(one, LiverXAIError)), error) from None


def require_apart(split: Split, training: Dataset[dict[str, Any]], validation: Dataset[dict[str, Any]]) -> None:
    """Raise :class:`~LiverXAILib.errors.InputError` if a CT for validation is also one for training."""
    seen = {training[number]["sha256"]: case.name for number, case in enumerate(split.training)}
    for number, case in enumerate(split.validation):
        if (other := seen.get(validation[number]["sha256"])) is not None:
            raise InputError(
                f"Case {case.name!r} is for validation, but its CT is also that of case {other!r}, for training: the "
                "result would seem too good. Leave one of them out (data.exclude)."
            )


class Samples(Dataset[dict[str, torch.Tensor]]):
    """Training samples by :data:`Key`: `image` normalized (1, …), `truth` uint8 (1, …), `tumor_known`.

    :param cases: from :func:`prepared_cases`.
    :param patch: size of a sample along the network's axes; None: whole slices or volumes.
    :param synthetic_lesions: paint lesions where no tumors are labeled; the rest of such livers counts as healthy.
    """

    def __init__(
        self,
        cases: Dataset[dict[str, Any]],
        stage: StageSpec,
        patch: Sequence[int] | None,
        augmentation: Augmentation,
        *,
        synthetic_lesions: bool = False,
    ) -> None:
        self.cases, self.stage, self.patch = cases, stage, patch
        self.synthetic_lesions = synthetic_lesions
        self.augmentation = augmentation

    def __getitem__(self, key: Key) -> dict[str, torch.Tensor]:
        number, place, seed = key
        case = self.cases[number]
        image, truth, known = case["image"], case["truth"], bool(case["tumor_known"])
        rng = Rng(seed)
        paints = self.synthetic_lesions and not (known and bool((truth == _TUMOR).any()))
        painted = paints and rng.chance(_PAINTED)
        spacing = case["spacing"].tolist()
        crop: Any = Compose([])
        if self.patch is not None:
            crop = RandCropByLabelClassesd(
                keys=("image", "truth"),
                label_key="truth",
                spatial_size=tuple(self.patch),
                ratios=[1, 1, 2],
                num_classes=3,
                indices_key="classes" if place < 0 else None,
                warn=False,
            )
            crop.set_random_state(seed)
        if place >= 0:
            if painted:
                reach = math.ceil(_SLAB_MM / spacing[0])
                start = max(0, place - reach)
                slab = slice(start, place + reach + 1)
                new, lesions = paint_lesions(rng, image[0, slab], truth[0, slab], spacing)
                image, truth = new[None, place - start], lesions[None, place - start]
            else:
                image, truth = image[:, place], truth[:, place]
        sample: Any = {"image": image, "truth": truth, "classes": case.get("classes")}
        cropped = crop(sample)
        sample = cropped[0] if isinstance(cropped, list) else cropped
        image, truth = torch.as_tensor(sample["image"]).float(), torch.as_tensor(sample["truth"])
        if painted and place < 0:
            new, lesions = paint_lesions(rng, image[0], truth[0], spacing)
            image, truth = new[None], lesions[None]
        changed = self._random(seed, image.dim() - 1, spacing)({"image": image, "truth": truth})
        image, truth = (_plain(changed[name]) for name in ("image", "truth"))
        return {
            "image": normalize(image.float(), self.stage.intensity, float(case["center_hu"])),
            "truth": truth.round().to(torch.uint8),
            "tumor_known": torch.tensor(known or self.synthetic_lesions),
        }

    def _random(self, seed: int, dimensions: int, spacing: Sequence[float]) -> Compose:
        """The augmentation of one sample."""
        a, both = self.augmentation, ("image", "truth")
        angle = math.radians(a.rotation)
        # Rotate out of the plane only if voxels are nearly cubic: the rotation is in voxels, not in mm.
        cubes = max(spacing) < 1.5 * min(spacing)
        turns = (angle,) if dimensions == 2 else (angle, angle, angle) if cubes else (angle, 0.0, 0.0)
        steps: list[Any] = [RandFlipd(both, prob=a.probability, spatial_axis=axis) for axis in a.flip]
        if a.rotation or a.scaling:
            steps.append(
                RandAffined(
                    both,
                    prob=a.probability,
                    rotate_range=turns,
                    scale_range=(a.scaling,) * dimensions,
                    mode=("bilinear", "nearest"),
                    padding_mode="border",
                )
            )
        if a.contrast:
            steps.append(RandScaleIntensityd("image", factors=a.contrast, prob=a.probability))
        if a.brightness:
            steps.append(RandShiftIntensityd("image", offsets=a.brightness, prob=a.probability))
        if a.noise:
            steps.append(RandGaussianNoised("image", prob=a.probability, std=a.noise))
        return Compose(steps).set_random_state(seed)


class ValidationCases(Dataset[dict[str, torch.Tensor]]):
    """Whole validation cases by (number, counts): normalized `image` and `truth` (k, j, i), and numbers.

    These are `center_hu` (from :class:`Prepare`), `tumor_known` and `counts`.

    :param synthetic_lesions: paint synthetic lesions, always the same, into cases without labeled tumors.
    """

    def __init__(self, cases: Dataset[dict[str, Any]], stage: StageSpec, *, synthetic_lesions: bool = False) -> None:
        self.cases, self.stage, self.synthetic_lesions = cases, stage, synthetic_lesions

    def __getitem__(self, key: tuple[int, bool]) -> dict[str, torch.Tensor]:
        number, counts = key
        case = self.cases[number]
        image, truth, known = case["image"][0].float(), case["truth"][0], case["tumor_known"]
        if self.synthetic_lesions and not (bool(known) and bool((truth == _TUMOR).any())):
            image, truth = paint_lesions(Rng(number), image, truth, case["spacing"].tolist())
            known = torch.tensor(True)
        return {
            "image": normalize(image, self.stage.intensity, float(case["center_hu"])),
            "truth": truth,
            "center_hu": case["center_hu"],
            "tumor_known": known,
            "counts": torch.tensor(counts),
        }


class EpochBatches(Sampler[list[Key]]):
    """The batches of an epoch on one of `world` devices, in an order that depends on seed and epoch alone.

    Batch b over all devices holds consecutive samples, so two devices with batches of one do the same as one device
    with batches of two.

    :param units: (case, slice or -1), each drawn once in an epoch.
    :param per_case: draw only this many units of each case, different ones in each epoch.
    :param position: epoch and number of the first batch: in a resumed run, the first that was not yet trained on.
    """

    def __init__(
        self,
        units: Sequence[tuple[int, int]],
        batch: int,
        seed: int,
        position: Callable[[], tuple[int, int]],
        *,
        per_case: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.units, self.batch, self.seed, self.position = list(units), batch, seed, position
        self.per_case, self.rank, self.world = per_case, rank, world

    def __len__(self) -> int:
        of_case = Counter(case for case, _ in self.units).values()
        drawn = sum(count if self.per_case is None else min(count, self.per_case) for count in of_case)
        return math.ceil(drawn / (self.batch * self.world))

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.position()
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.units))
        if self.per_case is not None:
            drawn: Counter[int] = Counter()
            kept = []
            for unit in order.tolist():
                drawn[self.units[unit][0]] += 1
                if drawn[self.units[unit][0]] <= self.per_case:
                    kept.append(unit)
            order = np.array(kept)
        # The last batch is filled with samples from the beginning.
        order = np.resize(order, len(self) * self.batch * self.world)
        for number in range(first, len(self)):
            start = (number * self.world + self.rank) * self.batch
            yield [
                (*self.units[order[n]], int(np.random.SeedSequence([self.seed, epoch, n]).generate_state(1)[0]))
                for n in range(start, start + self.batch)
            ]


def paint_lesions(
    rng: Rng, image: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint synthetic lesions (:func:`~.lesion_painting.add_lesions`) into the liver of an image of any voxel size.

    :param image: (k, j, i) in HU.
    :param truth: (k, j, i), 1 liver, 2 tumor.
    :param spacing: of (k, j, i) in mm.
    :return: image and truth with the lesions.
    """
    image = image.float()
    liver = truth > 0
    finest = min(spacing)
    if max(spacing) < _CUBE * finest:
        painted, lesions = add_lesions(rng, image, liver, finest)
    else:
        shape = tuple(image.shape)
        cubes = [max(1, round(n * mm / finest)) for n, mm in zip(shape, spacing, strict=True)]
        fine = functional.interpolate(image[None, None], cubes, mode="trilinear")[0, 0]
        inside = functional.interpolate(liver[None, None].float(), cubes, mode="trilinear")[0, 0] > 0.5
        new, numbered = add_lesions(rng, fine, inside, finest)
        change = torch.stack([new - fine, (numbered > 0).float()])[None]
        # Average over each slice: this is the partial-volume effect of thick slices.
        change = functional.interpolate(change, shape, mode="area")[0]
        painted, lesions = image + change[0], (change[1] > 0.5) & liver
    result = truth.clone()
    result[lesions > 0] = _TUMOR
    return painted, result


def _plain(value: torch.Tensor) -> torch.Tensor:
    """Remove MONAI's metadata, which does not collate across transforms."""
    return value.as_tensor() if hasattr(value, "as_tensor") else value


def _stamp(case: TrainingCase) -> tuple[Any, ...]:
    """Names, sizes and dates of a case's files: a changed file makes a different item."""
    if missing := [path for path in case.files if not path.exists()]:
        raise InputError(f"Case {case.name!r}: there is no file or folder {missing[0]}.")
    files = [inner for path in case.files for inner in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return (case.name, case.tumor_known, tuple(stats))
