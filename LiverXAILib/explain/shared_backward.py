# SPDX-License-Identifier: Apache-2.0
"""One backward pass for several targets, whose gradients do not overlap because the receptive field is limited.

At the explained layer the gradient of a score is 0 except in cells within the receptive field of the target: a few
voxels around it if only convolutions follow. If the targets are farther apart than that, the gradient of the sum of
their scores consists of their separate gradients side by side, and one backward pass suffices for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..volumes.box import Box, bounding_box

Stride = tuple[int, int, int]
Back = Callable[[torch.Tensor], list[torch.Tensor]]


class SharedBackward:
    """Computes the gradients of several scores in few passes; determines the reach of the network as it does so.

    The *reach* is the largest (Chebyshev) distance of a cell with a gradient from the nearest target. If the regions
    of two targets met, the cells between them would have gradients as well, and the reach would be half the targets'
    distance or more. If it is less, the parts are exactly the gradients of the single targets; otherwise (targets close
    to each other, networks with instance norm) each score gets a pass of its own.
    """

    def __init__(self) -> None:
        self._reach = 0.0

    def gradients(
        self,
        scores: Mapping[int, torch.Tensor],
        shares: Mapping[int, torch.Tensor],
        strides: Sequence[Stride],
        back: Back,
    ) -> dict[int, list[torch.Tensor]]:
        """The gradient of each score at each layer.

        :param scores: by question.
        :param shares: by question: (channels, a, b, c), nonzero in the voxels of a window that have a share in the
            score.
        :param strides: of the layers.
        :param back: returns the gradients of a score, (channels, a, b, c) for each layer.
        """
        if len(scores) == 1:
            return {index: back(score) for index, score in scores.items()}
        boxes = {index: bounding_box((share != 0).any(dim=0).numpy()) for index, share in shares.items()}
        found: dict[int, list[torch.Tensor]] = {}
        waiting = list(scores)
        while waiting:
            group = self._far_apart(waiting, boxes, strides)
            together = back(sum((scores[index] for index in group[1:]), scores[group[0]]))
            parts = self._part(together, [boxes[index] for index in group], strides)
            if parts is None:
                # Now the reach is known: the next group holds fewer.
                continue
            found.update(zip(group, parts, strict=True))
            waiting = [index for index in waiting if index not in group]
        return found

    def _far_apart(
        self, waiting: Sequence[int], boxes: Mapping[int, Box | None], strides: Sequence[Stride]
    ) -> list[int]:
        """The first waiting question, and further ones that are all far enough apart for the reach known so far."""
        group = waiting[:1]
        for index in waiting[1:]:
            if all(self._clear(boxes[index], boxes[other], strides) for other in group):
                group = [*group, index]
        return list(group)

    def _clear(self, first: Box | None, second: Box | None, strides: Sequence[Stride]) -> bool:
        if first is None or second is None:
            return False
        gap = max(max(a.start - b.stop, b.start - a.stop) for a, b in zip(first, second, strict=True))
        # Where two regions meet, the center of a cell is within half a cell of the middle between the targets.
        return gap > 2 * self._reach + max(max(stride) for stride in strides)

    def _part(
        self, together: list[torch.Tensor], boxes: Sequence[Box | None], strides: Sequence[Stride]
    ) -> list[list[torch.Tensor]] | None:
        """The gradients of each target; None if they cannot be separated. A single target also updates the reach."""
        parts: list[list[torch.Tensor]] = [[] for _ in boxes]
        for gradient, stride in zip(together, strides, strict=True):
            distances = [_distance(box, stride, gradient.shape[1:]) for box in boxes if box is not None]
            if not distances:  # a single question without a share in this window
                break
            nearest, owner = torch.stack(distances).min(dim=0)
            alive = (gradient != 0).any(dim=0).cpu()
            if alive.any():
                self._reach = max(self._reach, float(nearest[alive].max()))
            for number, part in enumerate(parts):
                part.append(gradient * (owner == number).to(gradient.device))
        if len(boxes) == 1:
            return [together]
        clear = all(self._clear(first, second, strides) for n, first in enumerate(boxes) for second in boxes[n + 1 :])
        return parts if clear else None


def _distance(box: Box, stride: Stride, cells: Sequence[int]) -> torch.Tensor:
    """The distance of each cell's center from `box`, in voxels: the largest over the axes (a, b, c)."""
    sides = []
    for limits, step, count in zip(box, stride, cells, strict=True):
        place = torch.arange(count) * step + (step - 1) / 2
        sides.append(torch.maximum(limits.start - place, place - (limits.stop - 1)).clamp_min(0))
    return torch.maximum(torch.maximum(sides[0][:, None, None], sides[1][None, :, None]), sides[2][None, None, :])
