# SPDX-License-Identifier: Apache-2.0
"""Describe the machine of a benchmark, and measure its peak rate of floating-point operations."""

from __future__ import annotations

import os
import platform
import time

#: Channels and edge length of the convolutions of which :func:`convolution_rate` takes the fastest.
_CONVOLUTIONS = ((32, 64), (64, 32), (128, 32))


def describe_machine(device: str) -> dict[str, str]:
    """Return names and versions, JSON-ready."""
    import torch

    from ..inference.device import processor_name

    machine = {
        "CPU": processor_name(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    if device != "cpu" and torch.cuda.is_available():
        machine["GPU"] = torch.cuda.get_device_name()
    return machine


def convolution_rate(repeats: int = 3) -> float:
    """Return the highest rate (FLOP/s) of 3x3x3 float32 convolutions on the CPU, over several sizes."""
    import torch

    best = 0.0
    with torch.inference_mode():
        for channels, side in _CONVOLUTIONS:
            layer = torch.nn.Conv3d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            image = torch.randn(1, channels, side, side, side).to(memory_format=torch.channels_last_3d)
            layer(image)
            for _ in range(repeats):
                started = time.perf_counter()
                layer(image)
                best = max(best, 2 * 27 * channels**2 * side**3 / (time.perf_counter() - started))
    return best
