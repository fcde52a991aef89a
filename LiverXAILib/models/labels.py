# SPDX-License-Identifier: Apache-2.0
"""Labels for the channels of a foreign network: names, colors and codes, derived from the names in its files."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping

from ..errors import ModelError
from ..labels import terminology
from ..labels.vocabulary import STRUCTURES, is_liver_vessel, liver_segment, structure_of_name
from .registry import ImportOptions
from .spec import LIVER, TUMOR, LabelSpec


def result_labels(
    values: Mapping[str, int], *, overlapping: bool, reading: ImportOptions
) -> tuple[tuple[LabelSpec, ...], dict[str, tuple[str, ...]]]:
    """The labels of a model's result, and the channels that each label consists of.

    "liver" and the various names of its lesions become "liver" and "tumor"; the liver then includes the tumor.

    :param values: the value of each foreground channel in the label map; if channels overlap, in the order of drawing.
    :param overlapping: channels are independent regions; else they exclude each other.
    :return: labels in the order in which they are drawn; and for each label the channels whose union it is.
    :raises LiverXAILib.errors.ModelError: a label that `reading` keeps does not exist, or a value is too large.
    """
    named = {channel: reading.labels.get(channel) or our_name(channel) for channel in values}
    if len(set(named.values())) < len(named):
        named = {channel: reading.labels.get(channel, channel) for channel in values}
    if unknown := set(reading.keep) - set(named.values()):
        raise ModelError(f"The model has no label {', '.join(sorted(unknown))}; it has {', '.join(named.values())}.")
    if not values or not all(1 <= value <= 255 for value in values.values()):
        raise ModelError("The model's labels must have values from 1 to 255, the range of LiverXAI's label maps.")
    chosen = [
        (named[channel], value)
        for channel, value in values.items()
        if named[channel] in (reading.keep or named.values())
    ]
    if not overlapping:
        # The order decides which label is drawn over which.
        chosen.sort(key=lambda item: (item[0] == TUMOR.name, item[0] != LIVER.name, item[1]))
    specs: list[LabelSpec] = []
    for name, value in chosen:
        specs.append(_label(name, value, LIVER.name in {spec.name for spec in specs}))
    made = {}
    for spec in specs:
        inside = [channel for channel, ours in named.items() if ours == spec.name]
        if spec.name == LIVER.name and not overlapping:
            inside += [channel for channel, ours in named.items() if ours == TUMOR.name]
        made[spec.name] = tuple(inside)
    return tuple(specs), made


def our_name(name: str) -> str:
    """LiverXAI's name for synonyms of the liver and its lesions; any other name unchanged."""
    structure = structure_of_name(name)
    return structure if structure in STRUCTURES else name


def _label(name: str, value: int, has_liver: bool) -> LabelSpec:
    """A label with its known color and codes. It is part of the liver only if the model draws a liver first."""
    parent = LIVER.name if has_liver else None
    if name == LIVER.name:
        return dataclasses.replace(LIVER, value=value)
    if name == TUMOR.name:
        return dataclasses.replace(TUMOR, value=value, parent=parent)
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(value * 0.618 % 1.0, 0.55, 0.85))
    label = LabelSpec(name, value, (red, green, blue))
    if (number := liver_segment(name)) is not None:
        return dataclasses.replace(label, parent=parent, type=terminology.LIVER_SEGMENTS[number - 1])
    if is_liver_vessel(name):
        return dataclasses.replace(label, parent=parent, type=terminology.BLOOD_VESSEL, region=terminology.LIVER)
    return label
