# SPDX-License-Identifier: Apache-2.0
"""Quantities of the whole liver: volume relative to body size, fat, hepatic segments and remnants after resection."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from ..inference.segmentation import Segmentation
from ..labels.vocabulary import liver_segment
from .measurements import ContrastPhase, Remnant

ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII")
#: Unenhanced HU at or below which a liver has at least 30 % fat: Boyce et al., AJR 2010;194:623 (40 HU), and the
#: specific threshold of Pickhardt et al., Eur Radiol 2012;22:1075 (48 HU).
_FATTY_HU, _PERHAPS_FATTY_HU = 40.0, 48.0
#: Resections in Brisbane 2000 terminology, and the segments that remain after each.
_RESECTIONS = (
    ("right hepatectomy", ("I", "II", "III", "IV")),
    ("right trisectionectomy", ("I", "II", "III")),
    ("left hepatectomy", ("I", "V", "VI", "VII", "VIII")),
    ("left lateral sectionectomy", ("I", "IV", "V", "VI", "VII", "VIII")),
    ("left trisectionectomy", ("I", "VI", "VII")),
)


def standard_volume_ml(height_cm: float | None, weight_kg: float | None) -> float | None:
    """The standard liver volume of an adult of this size: ``-794.41 + 1267.28 * BSA`` (Vauthey et al., Liver Transpl
    2002;8:233), with the body surface area in m² by Mosteller, ``sqrt(height * weight / 3600)``.

    :return: None if neither is given.
    :raises LiverXAILib.errors.UsageError: only one is given, or no adult has this size.
    """
    if height_cm is None and weight_kg is None:
        return None
    if height_cm is None or weight_kg is None:
        raise UsageError("The standard liver volume needs both height and weight.")
    if not (100 <= height_cm <= 250 and 25 <= weight_kg <= 350):
        raise UsageError(
            f"Height {height_cm:g} cm and weight {weight_kg:g} kg are not those of an adult; the standard liver volume "
            "is defined for adults only."
        )
    return -794.41 + 1267.28 * math.sqrt(height_cm * weight_kg / 3600)


def steatosis_hint(phase: ContrastPhase | None, median_hu: float | None) -> str | None:
    """A sentence about fat from the HU of an unenhanced CT; None in other phases or if the phase is uncertain."""
    if phase is None or median_hu is None or phase.phase != "native" or not phase.certain:
        return None
    hu = f"{median_hu:.0f} HU in an unenhanced (native) CT:"
    if median_hu <= _FATTY_HU:
        return f"{hu} suggests steatosis of 30 % or more (40 HU or less, Boyce 2010)."
    if median_hu <= _PERHAPS_FATTY_HU:
        return f"{hu} steatosis of 30 % or more is possible (48 HU or less, Pickhardt 2012)."
    return f"{hu} no sign of moderate or severe steatosis (above 48 HU, Pickhardt 2012)."


def segment_masks(segmentation: Segmentation) -> dict[str, np.ndarray]:
    """Masks of the labeled hepatic segments, by Roman numeral: bool (k, j, i)."""
    masks: dict[str, np.ndarray] = {}
    for spec in segmentation.specs:
        if (number := liver_segment(spec.name)) is not None:
            mask = segmentation.mask(spec.name)
            masks[ROMAN[number - 1]] = masks.get(ROMAN[number - 1], False) | mask
    return masks


def remnants(volumes_ml: Mapping[str, float], reference_ml: float | None) -> tuple[Remnant, ...]:
    """What typical resections would leave; empty unless all eight segments are known.

    :param volumes_ml: functional volume by segment.
    :param reference_ml: the volume that is 100 %; None: the sum of the segments.
    """
    if set(volumes_ml) != set(ROMAN):
        return ()
    whole = sum(volumes_ml.values()) if reference_ml is None else reference_ml
    return tuple(
        Remnant(name, kept, sum(volumes_ml[segment] for segment in kept),
                100 * sum(volumes_ml[segment] for segment in kept) / whole if whole else 0.0)
        for name, kept in _RESECTIONS
    )  # fmt: skip
