# SPDX-License-Identifier: Apache-2.0
"""What can be explained: a label, a lesion, a place, and contrasts between labels.

A new kind of target is one class here with a line in :func:`_parse_plain`. The score of a target follows from its
label and its voxels, see :mod:`LiverXAILib.explain.score`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np

from ..errors import UsageError, require_type
from ..inference.lesions import as_marked, lesion_count
from ..inference.masks import Mask
from ..inference.segmentation import Segmentation
from ..volumes.box import Box
from ..volumes.volume import Grid, ras_to_lps

#: The label whose connected components are the lesions.
LESION_LABEL = "tumor"

_PLACE = re.compile(r"(?:(?P<label>[^:]+):)?(?P<kind>voxel|box):(?P<frame>ras|lps):(?P<numbers>[^:]+)")
_WHY_NOT = "why-not-"
_VERSUS = "-vs-"

#: What users can write, as a sentence.
GRAMMAR = (
    "Write a label ('liver', 'tumor'), 'lesion:2', 'voxel:lps:x,y,z' or 'box:ras:x0,y0,z0,x1,y1,z1' (mm, LPS or RAS "
    "stated), one of these followed by '-vs-liver', or 'why-not-tumor:box:lps:x0,y0,z0,x1,y1,z1'."
)


class EmptyTargetError(UsageError):
    """The target has no voxels, because nothing of the kind was found. This is not a malfunction."""


class Target(ABC):
    """What is to be explained. ``Target.parse(str(target)) == target``; targets are hashable by value.

    :ivar label: the label that is asked about; "" for a place: whatever label the segmentation has there.
    """

    label: str
    #: Whether it is about all voxels of a label.
    is_whole_label: ClassVar[bool] = False
    #: Whether it is about a single lesion.
    is_lesion: ClassVar[bool] = False
    #: Whether it asks why something was *not* found.
    is_why_not: ClassVar[bool] = False

    @staticmethod
    def parse(text: str | Target) -> Target:
        """Read a target from text; a :class:`Target` is returned unchanged.

        :raises LiverXAILib.errors.UsageError: the text is not a target.
        """
        if isinstance(text, Target):
            return text
        require_type(text, str, "A target", "write it as text, such as 'tumor' or 'lesion:2'")
        rest = text.strip()
        why_not = rest.startswith(_WHY_NOT)
        rest, versus, rival = rest.removeprefix(_WHY_NOT).partition(_VERSUS)
        try:
            target = _parse_plain(rest)
            if why_not:
                if versus or not isinstance(target, PlaceTarget):
                    raise ValueError(rest)
                return WhyNot(target)
            return Contrast(target, rival) if versus else target
        except (ValueError, UsageError):
            raise UsageError(f"{text!r} is not something that can be explained. {GRAMMAR}") from None

    @abstractmethod
    def __str__(self) -> str:
        """The target as users write it."""

    @abstractmethod
    def describe(self) -> str:
        """The target in plain language, e.g. "lesion 2 rather than liver" or "why no tumor at LPS (1, 2, 3) mm"."""

    @abstractmethod
    def mask(self, segmentation: Segmentation) -> np.ndarray:
        """The voxels that the question is about: bool (k, j, i) on the grid of `segmentation`.

        :raises EmptyTargetError: there are none; the message is for the user.
        :raises LiverXAILib.errors.UsageError: the label does not exist or the place lies outside the image.
        """

    @property
    def asks_for_changed_cts(self) -> bool:
        """Whether the model's predictions for changed CTs belong to the answer, even if nothing else asks for them."""
        return self.is_lesion or self.is_why_not

    @property
    def lesion(self) -> int | None:
        """The number of the lesion that it is about, alone or compared with a label; None if it names none."""
        return None

    def of_lesion(self, number: int) -> Target:
        """The same target about another lesion, or about the same one under a new number."""
        raise ValueError(f"{self} is not about a lesion")

    @property
    def compared_with(self) -> str:
        """The rival label of a comparison; "" if it is none."""
        return ""

    def question(self) -> str:
        """The whole question, as a heading."""
        return f"What made the model say “{self.describe()}”?"

    def resolve(self, segmentation: Segmentation) -> Target:
        """The same target with its label filled in: the most specific one that was found at the place."""
        return self

    def focus(self, segmentation: Segmentation) -> np.ndarray | None:
        """Where to look: a point in LPS mm, (3,); None if the target has no particular place, like a whole label."""
        return None

    def place(self, grid: Grid) -> np.ndarray | None:
        """The voxels of the place that is asked about, whatever was found there: bool (k, j, i); None without a place.

        :raises LiverXAILib.errors.UsageError: the place lies outside the image.
        """
        return None

    @property
    def slug(self) -> str:
        """The target as a part of a file name, e.g. "lesion-2" or "voxel-lps-12.5_m30_100"."""
        text = re.sub(r"(?<=[:,])-", "m", str(self)).replace(":", "-").replace(",", "_")
        return re.sub(r"[^A-Za-z0-9._-]", "_", text)


@dataclass(frozen=True)
class LabelTarget(Target):
    """All voxels of a label."""

    label: str

    is_whole_label = True

    def __post_init__(self) -> None:
        if not self.label:
            raise UsageError("A target needs the name of a label.")
        _check_label(self.label)

    def __str__(self) -> str:
        return self.label

    def describe(self) -> str:
        return self.label

    def mask(self, segmentation: Segmentation) -> np.ndarray:
        return _not_empty(segmentation.mask(self.label), f"No {self.label} was found, so there is nothing to explain.")


@dataclass(frozen=True)
class LesionTarget(Target):
    """One lesion, as the network segmented it: if it was refined (:mod:`LiverXAILib.inference.outlines`), its mask
    is the component that the outline was made from, because explanations are about the network.

    :param number: as in the table of measurements: 1 is the largest.
    """

    number: int

    label = LESION_LABEL
    is_lesion = True

    @property
    def lesion(self) -> int:
        return self.number

    def of_lesion(self, number: int) -> LesionTarget:
        return LesionTarget(number)

    def __post_init__(self) -> None:
        if self.number < 1:
            raise UsageError(f"Lesions are numbered from 1; there is no lesion {self.number}.")

    def __str__(self) -> str:
        return f"lesion:{self.number}"

    def describe(self) -> str:
        return f"lesion {self.number}"

    def question(self) -> str:
        return f"What made the model call {self.describe()} a {self.label}?"

    def mask(self, segmentation: Segmentation) -> np.ndarray:
        return self._marked(segmentation).on(Box.full(segmentation.labels.shape))

    def focus(self, segmentation: Segmentation) -> np.ndarray:
        box, voxels = self._marked(segmentation)
        return segmentation.labels.grid.to_lps((np.argwhere(voxels).mean(axis=0) + box.start)[::-1])

    def _marked(self, segmentation: Segmentation) -> Mask:
        count = lesion_count(segmentation, self.label)
        if self.number > count:
            raise EmptyTargetError(f"There is no lesion {self.number}; the number of lesions found is {count}.")
        return as_marked(segmentation, self.number, self.label)


@dataclass(frozen=True)
class PlaceTarget(Target):
    """What is found at a place. Base of :class:`PointTarget` and :class:`BoxTarget`.

    :param numbers: mm, in the coordinate system `frame`, "lps" or "ras".
    :param label: "": whatever label the segmentation has there.
    """

    numbers: tuple[float, ...]
    frame: str = "lps"
    label: str = ""

    kind = ""
    _count = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(float(number) for number in self.numbers))
        if len(self.numbers) != self._count or not np.isfinite(self.numbers).all():
            raise UsageError(f"A {self.kind} takes {self._count} finite numbers, in mm; got {self.numbers}.")
        if self.frame not in ("lps", "ras"):
            raise UsageError(f"There is no coordinate system {self.frame!r}. Choose 'lps' or 'ras'.")
        _check_label(self.label)

    @abstractmethod
    def place(self, grid: Grid) -> np.ndarray:
        """The voxels of the place: bool (k, j, i)."""

    def __str__(self) -> str:
        text = f"{self.kind}:{self.frame}:{','.join(map(_exact, self.numbers))}"
        return f"{self.label}:{text}" if self.label else text

    def mask(self, segmentation: Segmentation) -> np.ndarray:
        label = self.resolve(segmentation).label
        return _not_empty(
            self.place(segmentation.labels.grid) & segmentation.mask(label),
            f"No {label} was found there. Ask '{_WHY_NOT}{label}:…' instead.",
        )

    def resolve(self, segmentation: Segmentation) -> PlaceTarget:
        if self.label:
            return self
        found = segmentation.labels.array[self.place(segmentation.labels.grid)]
        for spec in reversed(segmentation.specs):
            if (found == spec.value).any():
                return replace(self, label=spec.name)
        raise EmptyTargetError(
            f"Nothing was found at {self._words(self.numbers[:3])}. Ask '{_WHY_NOT}{LESION_LABEL}:…' instead."
        )

    def focus(self, segmentation: Segmentation) -> np.ndarray:
        return self.corners.mean(axis=0)

    @property
    def corners(self) -> np.ndarray:
        """The points of the place in LPS mm: (points, 3)."""
        corners = np.array(self.numbers, dtype=float).reshape(-1, 3)
        return np.array([ras_to_lps(corner) for corner in corners]) if self.frame == "ras" else corners

    def _words(self, point: tuple[float, ...]) -> str:
        return f"{self.frame.upper()} ({', '.join(f'{number:g}' for number in point)}) mm"


@dataclass(frozen=True)
class PointTarget(PlaceTarget):
    """What is found at one voxel, the one nearest to a point."""

    kind = "voxel"
    _count = 3

    def describe(self) -> str:
        return f"{self.label or 'what was found'} at {self._words(self.numbers)}"

    def place(self, grid: Grid) -> np.ndarray:
        mask = np.zeros(grid.shape, dtype=bool)
        voxel = grid.nearest_voxel(self.corners[0])
        if (voxel < 0).any() or (voxel >= grid.shape).any():
            raise UsageError(f"{self._words(self.numbers)} lies outside the image.")
        mask[tuple(voxel)] = True
        return mask


@dataclass(frozen=True)
class BoxTarget(PlaceTarget):
    """What is found in a box aligned with the patient's axes, given by two opposite corners."""

    kind = "box"
    _count = 6

    def describe(self) -> str:
        first, second = self._words(self.numbers[:3]), self._words(self.numbers[3:])
        return f"{self.label or 'what was found'} in the box from {first} to {second}"

    def place(self, grid: Grid) -> np.ndarray:
        mask = np.zeros(grid.shape, dtype=bool)
        low, high = self.corners.min(axis=0), self.corners.max(axis=0)
        # The grid may be oblique: test the position of every voxel near the box.
        corners = np.clip(list(product(*zip(low, high, strict=True))), -1e12, 1e12)  # without overflow
        corners = grid.to_ijk(corners)[:, ::-1]
        near = np.array([np.floor(corners.min(axis=0)) - 1, np.ceil(corners.max(axis=0)) + 2])
        start, stop = np.clip(near, 0, grid.shape).astype(int)
        j, i = np.mgrid[start[1] : stop[1], start[2] : stop[2]]
        for k in range(start[0], stop[0]):
            lps = grid.to_lps(np.stack((i, j, np.full_like(i, k)), axis=-1))
            mask[k, start[1] : stop[1], start[2] : stop[2]] = ((lps >= low) & (lps <= high)).all(axis=-1)
        if not mask.any():
            raise UsageError(
                f"The box at {self._words(self.numbers[:3])} lies outside the image, or it holds no voxel center."
            )
        return mask


@dataclass(frozen=True)
class Contrast(Target):
    """Why `target` rather than the label `rival`?"""

    target: Target
    rival: str

    def __post_init__(self) -> None:
        if not self.rival or ":" in self.rival:
            raise UsageError(f"{self.rival!r} is not a label with which {self.target} can be compared.")
        if self.target.compared_with or self.target.is_why_not:
            raise UsageError(f"{self.target} cannot be compared with {self.rival}: it is already a comparison.")

    @property
    def label(self) -> str:  # type: ignore[override]  # read-only is enough for users of Target
        """The label that is asked about, against the rival."""
        return self.target.label

    @property
    def lesion(self) -> int | None:
        return self.target.lesion

    def of_lesion(self, number: int) -> Contrast:
        return replace(self, target=self.target.of_lesion(number))

    @property
    def compared_with(self) -> str:
        return self.rival

    def __str__(self) -> str:
        return f"{self.target}{_VERSUS}{self.rival}"

    def describe(self) -> str:
        return f"{self.target.describe()} rather than {self.rival}"

    def question(self) -> str:
        if self.lesion is None:
            return super().question()
        return self.target.question().replace("?", f" rather than {self.rival}?")

    def mask(self, segmentation: Segmentation) -> np.ndarray:
        return self.target.mask(segmentation)

    def resolve(self, segmentation: Segmentation) -> Contrast:
        return replace(self, target=self.target.resolve(segmentation))

    def focus(self, segmentation: Segmentation) -> np.ndarray | None:
        return self.target.focus(segmentation)

    def place(self, grid: Grid) -> np.ndarray | None:
        return self.target.place(grid)


@dataclass(frozen=True)
class WhyNot(Target):
    """Why is what lies at a place *not* the label that `target` names?"""

    target: PlaceTarget

    is_why_not = True

    def __post_init__(self) -> None:
        if not self.target.label:
            raise UsageError("'why not' needs a label, as in 'why-not-tumor:voxel:lps:x,y,z'.")

    @property
    def label(self) -> str:  # type: ignore[override]  # read-only is enough for users of Target
        """The label that was not given."""
        return self.target.label

    def __str__(self) -> str:
        return f"{_WHY_NOT}{self.target}"

    def describe(self) -> str:
        return f"why no {self.target.describe()}"

    def question(self) -> str:
        description = self.describe()
        return f"{description[0].upper()}{description[1:]}?"

    def mask(self, segmentation: Segmentation) -> np.ndarray:
        return _not_empty(
            self.place(segmentation.labels.grid) & ~segmentation.mask(self.label),
            f"All of it is {self.label}: there is nothing to ask 'why not' about.",
        )

    def focus(self, segmentation: Segmentation) -> np.ndarray:
        return self.target.focus(segmentation)

    def place(self, grid: Grid) -> np.ndarray:
        return self.target.place(grid)


def _parse_plain(text: str) -> Target:
    """A target without contrast.

    :raises ValueError: `text` is not such a target.
    """
    if place := _PLACE.fullmatch(text):
        numbers = tuple(float(number) for number in place["numbers"].split(","))
        kind = PointTarget if place["kind"] == "voxel" else BoxTarget
        return kind(numbers, place["frame"], place["label"] or "")
    if text.startswith("lesion:"):
        return LesionTarget(int(text.removeprefix("lesion:")))
    return LabelTarget(text)


def _check_label(label: str) -> None:
    if ":" in label or _VERSUS in label or label.startswith(_WHY_NOT) or label != label.strip():
        raise UsageError(
            f"{label!r} cannot be the label of a target: targets are written with ':', '{_VERSUS}' and so on."
        )


def _exact(number: float) -> str:
    """The shortest decimal text that reads as the same number, without an exponent."""
    return np.format_float_positional(number, trim="-")


def _not_empty(mask: np.ndarray, complaint: str) -> np.ndarray:
    if not mask.any():
        raise EmptyTargetError(complaint)
    return mask
