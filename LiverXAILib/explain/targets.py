# SPDX-License-Identifier: Apache-2.0
"""The question put to an explanation, and what it means for the scores of a network.

A question asks for a *score*: the mean, over the voxels that the question is about, of the logit that decided there.
A score is linear in the network's blended logits, and that makes explanations of windowed predictions exact (see
:mod:`LiverXAILib.explain.stitching`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..inference.lesions import lesion_components
from ..inference.segmentation import Segmentation
from ..models.spec import ModelSpec, StageSpec
from ..volumes.volume import LPS_TO_RAS, Grid

#: The label whose connected components are the lesions.
LESION_LABEL = "tumor"

_PLACE = re.compile(r"(?:(?P<label>[^:]+):)?(?P<kind>voxel|box):(?P<frame>ras|lps):(?P<numbers>[^:]+)")
_WHY_NOT = "why-not-"
_VERSUS = "-vs-"

_GRAMMAR = (
    "Write a label ('liver', 'tumor'), 'lesion:2', 'voxel:lps:x,y,z' or 'box:ras:x0,y0,z0,x1,y1,z1' (mm, LPS or RAS "
    "stated), one of these with '-vs-liver' behind it, or 'why-not-tumor:box:lps:x0,y0,z0,x1,y1,z1'."
)


class EmptyTargetError(UsageError):
    """The question has no voxels to be asked about: nothing of the kind was found. Nothing is broken."""


@dataclass(frozen=True)
class Target:
    """What is to be explained. JSON-ready: ``Target.parse(str(target)) == target``.

    :param label: name of a label; "" with a place means "whatever the segmentation says there".
    :param lesion: number of one lesion as in the table (1 is the largest), or 0 for all of the label.
    :param point: empty, or the mm coordinates of one voxel (3 numbers) or of two opposite corners of a box (6).
    :param frame: the coordinate system of `point`: "lps" or "ras".
    :param rival: explain why `label` rather than this label; "" for the plain question.
    :param why_not: explain why the voxels at `point` are *not* `label`.
    """

    label: str = ""
    lesion: int = 0
    point: tuple[float, ...] = ()
    frame: str = "lps"
    rival: str = ""
    why_not: bool = False

    @staticmethod
    def parse(text: str | Target) -> Target:
        """Read a target from text; a :class:`Target` is returned as it is.

        Raises :class:`~LiverXAILib.errors.UsageError` for text that is not a target.
        """
        if isinstance(text, Target):
            return text
        rest = text.strip()
        why_not = rest.startswith(_WHY_NOT)
        rest = rest.removeprefix(_WHY_NOT)
        rest, _, rival = rest.partition(_VERSUS)
        place = _PLACE.fullmatch(rest)
        try:
            if place:
                point = tuple(float(number) for number in place["numbers"].split(","))
                target = Target(place["label"] or "", 0, point, place["frame"], rival, why_not)
                well_formed = len(point) == (3 if place["kind"] == "voxel" else 6) and bool(np.isfinite(point).all())
            elif rest.startswith("lesion:"):
                target = Target(LESION_LABEL, int(rest.removeprefix("lesion:")), rival=rival)
                well_formed = target.lesion > 0 and not why_not
            else:
                target = Target(rest, rival=rival)
                well_formed = bool(rest) and ":" not in rest and not why_not
        except ValueError:
            well_formed = False
        if not well_formed or (why_not and (rival or not target.label)):
            raise UsageError(f"{text!r} is not something that can be explained. {_GRAMMAR}")
        return target

    def __str__(self) -> str:
        if self.point:
            numbers = ",".join(f"{number:g}" for number in self.point)
            kind = "voxel" if len(self.point) == 3 else "box"
            text = f"{self.label}:{kind}" if self.label else kind
            text = f"{text}:{self.frame}:{numbers}"
        else:
            text = f"lesion:{self.lesion}" if self.lesion else self.label
        return (_WHY_NOT if self.why_not else "") + text + (_VERSUS + self.rival if self.rival else "")

    @property
    def slug(self) -> str:
        """The target as a part of a file name, e.g. "lesion-2" or "voxel-lps-12.5_m30_100"."""
        text = re.sub(r"(?<=[:,])-", "m", str(self)).replace(":", "-").replace(",", "_")
        return re.sub(r"[^A-Za-z0-9._-]", "_", text)

    def describe(self) -> str:
        """The question in plain words, e.g. "lesion 2 rather than liver" or "why no tumor at LPS (1, 2, 3) mm"."""
        name = f"lesion {self.lesion}" if self.lesion else self.label or "what was found"
        if len(self.point) == 3:
            name += f" at {self._words(self.point)}"
        elif self.point:
            name += f" in the box from {self._words(self.point[:3])} to {self._words(self.point[3:])}"
        return ("why no " if self.why_not else "") + name + (f" rather than {self.rival}" if self.rival else "")

    def _words(self, point: tuple[float, ...]) -> str:
        return f"{self.frame.upper()} ({', '.join(f'{number:g}' for number in point)}) mm"

    def mask(self, segmentation: Segmentation) -> np.ndarray:
        """The voxels that the question is about: bool (k, j, i) on the grid of `segmentation`.

        :raises EmptyTargetError: there are none, in words for the user.
        :raises LiverXAILib.errors.UsageError: the label does not exist or the place lies outside the image.
        """
        if self.point:
            inside = self._place(segmentation.labels.grid)
            if self.why_not:
                mask = inside & ~segmentation.mask(self.label)
                complaint = f"All of it is {self.label}: there is nothing to ask 'why not' about."
            else:
                mask = inside & segmentation.mask(self.resolve(segmentation).label)
                complaint = f"No {self.label} was found there. Ask '{_WHY_NOT}{self.label}:…' instead."
        elif self.lesion:
            components = lesion_components(segmentation, self.label)
            mask = components == self.lesion
            complaint = f"There is no lesion {self.lesion}: {int(components.max())} were found."
        else:
            mask = segmentation.mask(self.label)
            complaint = f"No {self.label} was found, so there is nothing to explain."
        if not mask.any():
            raise EmptyTargetError(complaint)
        return mask

    def resolve(self, segmentation: Segmentation) -> Target:
        """The same question with its label filled in: the most specific one that was found at the place."""
        if self.label:
            return self
        found = segmentation.labels.array[self._place(segmentation.labels.grid)]
        for spec in reversed(segmentation.specs):
            if (found == spec.value).any():
                return Target(spec.name, self.lesion, self.point, self.frame, self.rival, self.why_not)
        raise EmptyTargetError(
            f"Nothing was found at {self._words(self.point[:3])}. Ask '{_WHY_NOT}{LESION_LABEL}:…' instead."
        )

    def _place(self, grid: Grid) -> np.ndarray:
        corners = np.array(self.point).reshape(-1, 3)
        if self.frame == "ras":
            corners = corners * np.diag(LPS_TO_RAS)[:3]
        mask = np.zeros(grid.shape, dtype=bool)
        if len(corners) == 1:
            i, j, k = np.rint(grid.to_ijk(corners[0])).astype(int)
            if all(0 <= index < size for index, size in zip((k, j, i), grid.shape, strict=True)):
                mask[k, j, i] = True
        else:
            # The box is upright in the patient, the grid may be oblique: ask every voxel where it is.
            low, high = corners.min(axis=0), corners.max(axis=0)
            j, i = np.indices(grid.shape[1:])
            for k in range(grid.shape[0]):
                lps = grid.to_lps(np.stack((i, j, np.full_like(i, k)), axis=-1))
                mask[k] = ((lps >= low) & (lps <= high)).all(axis=-1)
        if not mask.any():
            raise UsageError(f"{self._words(self.point[:3])} lies outside the image, or the box holds no voxel center.")
        return mask


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a score: `sign` times the sum over `mask` of the largest logit among `channels`.

    `mask` is bool (k, j, i) on the input's grid.
    """

    channels: tuple[int, ...]
    sign: float
    mask: np.ndarray


def score_terms(
    target: Target, mask: np.ndarray, segmentation: Segmentation, model: ModelSpec, stage: StageSpec
) -> list[Term]:
    """What `target` means for the logits of `stage`, for the voxels `mask` on the input's grid.

    * a label: the logit of the channel that decided. Where the label has parts that exclude each other (liver =
      healthy liver + tumor), the segmentation tells which channel that was;
    * a label against a rival: that, minus the rival's logit (see :func:`contest`);
    * why not: the best other logit minus the label's.
    """
    own, rivals = contest(target, model, stage)
    if target.why_not:
        return [Term(channels, sign, mask) for channels, sign in ((own, 1.0), (rivals, -1.0)) if channels]
    terms = list(_deciding_channels(target.label, own, mask, segmentation, model, stage))
    if target.rival and rivals:
        terms.append(Term(rivals, -1.0, mask))
    return terms


def contest(target: Target, model: ModelSpec, stage: StageSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The output channels that speak for the answer to `target`, and those that speak against it.

    Against a label speak, if the channels exclude each other (softmax), all others; nested channels (sigmoid) have
    no opponents. Against a label and its rival speak the rival's own channels; if the stage does not know the rival,
    again all others. For "why not", the two change sides.
    """
    own = _channels(stage, target.label)
    others = tuple(index for index in range(len(stage.channels)) if index not in own)
    rivals = others if stage.activation == "softmax" else ()
    if target.rival:
        model.label(target.rival)
        if target.rival in stage.labels and (rivals or not _is_part(target.label, target.rival, model)):
            rivals = tuple(index for index in _channels(stage, target.rival) if index not in own)
            if not rivals:
                raise UsageError(f"{target.label} cannot be told from {target.rival}: they share all channels.")
    return (rivals, own) if target.why_not else (own, rivals)


def _channels(stage: StageSpec, label: str) -> tuple[int, ...]:
    return tuple(index for index, name in enumerate(stage.channels) if name in stage.labels[label])


def _is_part(label: str, whole: str, model: ModelSpec) -> bool:
    parent = model.label(label).parent
    return parent is not None and (parent == whole or _is_part(parent, whole, model))


def _deciding_channels(
    label: str,
    channels: tuple[int, ...],
    mask: np.ndarray,
    segmentation: Segmentation,
    model: ModelSpec,
    stage: StageSpec,
) -> Iterator[Term]:
    if stage.activation == "softmax":
        for part in model.labels:
            if part.parent != label or part.name not in stage.labels:
                continue
            shared = tuple(index for index in _channels(stage, part.name) if index in channels)
            rest = tuple(index for index in channels if index not in shared)
            inside = mask & segmentation.mask(part.name)
            if shared and rest and inside.any():
                yield Term(shared, 1.0, inside)
                mask = mask & ~inside
            if rest:
                channels = rest
    if mask.any():
        yield Term(channels, 1.0, mask)
