# SPDX-License-Identifier: Apache-2.0
"""The windows in which a stage reads an image."""

from __future__ import annotations

from math import ceil, prod

from ..errors import ModelError
from ..models.spec import StageSpec
from ..volumes.box import Box
from ..volumes.volume import Grid
from .cost import activation_bytes
from .windows import WindowPlan

#: An image whose activations need more than this is read in several windows. The same on every machine, since
#: explanations, and whoever repeats an analysis elsewhere, must find the same windows.
_PASS_BYTES = 2**30
#: Fraction of such a window that it shares with its neighbor: the halo in which the two are blended.
_HALO = 0.25
#: Most windows of an image: hours of computing.
_MOST_WINDOWS = 100_000
#: Largest side of :func:`sample_box`, in voxels.
_SAMPLE_SIDE = 64


def stage_plan(stage: StageSpec, grid: Grid) -> WindowPlan:
    """The windows in which `stage` reads an image on `grid`."""
    window, divisor, overlap = stage.window, stage.divisor, stage.overlap
    if stage.dimensions == 2:
        window = (1, *(window[1:] if window else grid.shape[1:]))
        divisor = (1, divisor[1], divisor[2])
    elif window is None and stage.size is None and (needed := activation_bytes(stage)) is not None:
        # A network that wants its whole field of view at a fixed size is never cut.
        window, overlap = _window_within(grid.shape, divisor, _PASS_BYTES / needed), _HALO
    if window is not None and (count := _count(grid.shape, window, overlap)) > _MOST_WINDOWS:
        raise ModelError(
            f"Stage {stage.name!r} of the model would read the image in {count:.2g} windows, over {_MOST_WINDOWS}: "
            "the window of its card is too small."
        )
    return WindowPlan.build(grid.shape, window, overlap=overlap, divisor=divisor, pad_to_window=stage.pad_to_window)


def _count(shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float) -> int:
    """About how many windows cover `shape`."""
    steps = (ceil(max(0, n - w) / max(1.0, w * (1 - overlap))) + 1 for n, w in zip(shape, window, strict=True))
    return prod(steps)


def _window_within(shape: tuple[int, int, int], divisor: tuple[int, int, int], most: float) -> tuple[int, int, int]:
    """The whole of `shape` if it has at most so many voxels, else the window that cuts its longest sides equally."""
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
    """A small box in the middle of the padded image that the network accepts, to try something out on."""
    start, shape = [], []
    for axis, (n, window) in enumerate(zip(plan.padded_shape, plan.window, strict=True)):
        divisor = 1 if stage.dimensions == 2 and axis == 0 else stage.divisor[axis]
        size = min(window, max(1, _SAMPLE_SIDE // divisor) * divisor)
        start.append((n - size) // 2)
        shape.append(size)
    return Box.full(shape).shifted(start)
