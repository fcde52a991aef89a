# SPDX-License-Identifier: Apache-2.0
"""The score of a label, computed from a network's logits."""

from __future__ import annotations

import torch

from ..models.spec import StageSpec


def logit_margin(logits: torch.Tensor, stage: StageSpec, label: str) -> torch.Tensor:
    """The logit margin of `label` over its best rival: positive inside the label's region.

    With softmax channels: largest logit of the label's channels minus largest logit of the others, so that
    "positive" is the same as "the argmax is one of them". With nested sigmoid channels: the channels' largest logit.

    :param logits: (channels, ...).
    :return: (...), in logits.
    """
    inside = [index for index, name in enumerate(stage.channels) if name in stage.labels[label]]
    best_inside = logits[inside].amax(dim=0)
    if stage.activation == "sigmoid":
        return best_inside
    outside = [index for index in range(len(stage.channels)) if index not in inside]
    return best_inside - logits[outside].amax(dim=0)
