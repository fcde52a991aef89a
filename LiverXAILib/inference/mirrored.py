# SPDX-License-Identifier: Apache-2.0
"""Detection of mirrored or rotated images: the model finds more liver after the image is flipped back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..context import RunContext
from ..models.model import Model
from ..models.spec import StageSpec
from ..volumes.box import largest_component
from ..volumes.orientation import reorient
from ..volumes.volume import Volume
from .device import select_device
from .segmenter import run_stage
from .stages import logit_margin

#: The ways in which images are mirrored or rotated by mistake: axes to flip, and description. The likely ones first.
_FLIPS = (
    ("L", "mirrored left to right"),
    ("LP", "turned by 180 degrees about the long axis"),
    ("P", "mirrored front to back"),
    ("S", "mirrored head to feet"),
    ("LS", "turned by 180 degrees about the front-to-back axis"),
    ("PS", "turned by 180 degrees about the left-to-right axis"),
    ("LPS", "mirrored along all axes"),
)
_LIKELY = 4
#: In 26 CTs of one orientation, no flip yields more liver than the correct orientation; a flipped image yields at least
#: 1.2 times as much after it is flipped back, and mostly several times as much.
_MUCH_MORE, _MORE_ML = 1.2, 100.0
#: A stage on a grid at least this coarse, in mm, is fast enough to run on a mere suspicion.
_COARSE_MM = 3.0


@dataclass(frozen=True)
class MirroredLiver:
    """A probable flip: `how` the image seems to be mirrored or rotated, and the liver volume with it and without it."""

    how: str
    mirrored_ml: float
    found_ml: float

    def describe(self) -> str:
        """A sentence for the user."""
        return (
            f"When the image is {self.how}, the model finds {self.mirrored_ml:.0f} ml of liver instead of "
            f"{self.found_ml:.0f} ml: it is probably {self.how} relative to its header. Check it in another "
            "viewer, and export it again."
        )


def find_mirrored_liver(volume: Volume, model: Model, context: RunContext, *, sure: bool) -> MirroredLiver | None:
    """Segment the liver in mirrored copies of `volume`, with the first stage of `model` that finds it.

    :param sure: the first result is implausible, so all flips are tried at any cost; otherwise only the likely ones,
        and only with a stage on a coarse grid.
    :return: the flip that yields much more liver than the image as it is; None if there is none.
    :raises LiverXAILib.errors.Cancelled: `context` was cancelled.
    """
    stage = next((stage for stage in model.spec.stages if stage.region is None and _liver(stage, model)), None)
    if stage is None:
        return None
    coarse = stage.spacing is not None and all(mm is not None and mm >= _COARSE_MM for mm in stage.spacing)
    if not sure and not coarse:
        return None
    upright = reorient(volume, "SPL")
    on_device = context.on(select_device(str(context.device)))
    found = _liver_ml(upright, model, stage, on_device)
    best = None
    for axes, how in _FLIPS if sure else _FLIPS[:_LIKELY]:
        context.check()
        flipped = np.flip(upright.array, tuple("SPL".index(axis) for axis in axes))
        ml = _liver_ml(upright.with_array(flipped), model, stage, on_device)
        if ml > max(_MUCH_MORE * found, found + _MORE_ML) and (best is None or ml > best.mirrored_ml):
            best = MirroredLiver(how, ml, found)
    return best


def _liver(stage: StageSpec, model: Model) -> str | None:
    """The liver label of a stage, or None."""
    livers = [spec.name for spec in model.spec.labels if spec.is_liver]
    return next((label for label in stage.labels if label in livers), None)


def _liver_ml(volume: Volume, model: Model, stage: StageSpec, context: RunContext) -> float:
    """The volume in ml of the largest connected liver that a stage finds in an image."""
    grid, logits, _ = run_stage(volume, model, stage, None, "auto", context.silent)
    label = _liver(stage, model)
    assert label is not None
    mask = (logit_margin(logits, stage, label) > 0).numpy()
    return float(np.count_nonzero(largest_component(mask))) * grid.voxel_volume_mm3 / 1000
