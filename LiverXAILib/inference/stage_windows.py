# SPDX-License-Identifier: Apache-2.0
"""The windows in which a stage processes an image."""

from __future__ import annotations

from math import ceil, prod

from ..errors import ModelError
from ..models.spec import StageSpec
from ..volumes.box import Box
from ..volumes.volume import Grid
from .cost import activation_bytes
from .windows import WindowPlan

#: An image whose activations need more bytes than this is processed in several windows. The limit is the same on every
#: machine, because explanations, and repetitions of an analysis elsewhere, must use the same windows.
_PASS_BYTES = 2**30
#: Fraction of such a window that overlaps its neighbor: the halo in which the two are blended.
_HALO = 0.25
#: The largest number of windows for an image; more would take hours.
_MOST_WINDOWS = 100_000
#: Largest side of :func:`sample_box`, in voxels.
_SAMPLE_SIDE = 64


def stage_plan(stage: StageSpec, grid: Grid) -> WindowPlan:
    """The windows in which `stage` processes an image on `grid`."""
    window, divisor, overlap = stage.window, stage.divisor, stage.overlap
    if stage.dimensions == 2:
        window = (1, *(window[1:] if window else grid.shape[1:]))
        divisor = (1, divisor[1], divisor[2])
    elif window is None and stage.size is None and (needed := activation_bytes(stage)) is not None:
        # A network with a fixed size for its whole field of view is never split into windows.
        window, overlap = _window_within(grid.shape, divisor, _PASS_BYTES / needed), _HALO
    if window is not None and (count := _count(grid.shape, window, overlap)) > _MOST_WINDOWS:
        raise ModelError(
            f"Stage {stage.name!r} of the model would process the image in {count:,} windows, over {_MOST_WINDOWS:,}: "
            "the window in its model card is too small."
        )
    return WindowPlan.build(grid.shape, window, overlap=overlap, divisor=divisor, pad_to_window=stage.pad_to_window)


def _count(shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float) -> int:
    """The approximate number of windows that cover `shape`."""
    steps = (ceil(max(0, n - w) / max(1.0, w * (1 - overlap))) + 1 for n, w in zip(shape, window, strict=True))
    return prod(steps)


def _window_within(shape: tuple[int, int, int], divisor: tuple[int, int, int], most: float) -> tuple[int, int, int]:
    """The whole `shape` if it has at most `most` voxels, else a window that divides its longest sides evenly."""
    pieces = [1, 1, 1]
    while True:
        # n voxels in p windows that share the fraction h of their size s with the next: n = s (p - (p - 1) h).
        sizes = [
            min(ceil(n / (p - (p - 1) * _HALO) / d), ceil(n / d)) * d
            for n, p, d in zip(shape, pieces, divisor, strict=True)
        ]
        if prod(sizes) <= most or all(size <= d for size, d in zip(sizes, divisor, strict=True)):
            return sizes[0], sizes[1], sizes[2]
        longest = max(range(3), key=lambda axis: sizes[axis] if sizes[axis] > divisor[axis] else 0)
        pieces[longest] += 1


def sample_box(plan: WindowPlan, stage: StageSpec) -> Box:
    """A small box in the middle of the padded image that the network accepts, for self-tests."""
    start, shape = [], []
    for axis, (n, window) in enumerate(zip(plan.padded_shape, plan.window, strict=True)):
        divisor = 1 if stage.dimensions == 2 and axis == 0 else stage.divisor[axis]
        size = min(window, max(1, _SAMPLE_SIDE // divisor) * divisor)
        start.append((n - size) // 2)
        shape.append(size)
    return Box.full(shape).shifted(start)
