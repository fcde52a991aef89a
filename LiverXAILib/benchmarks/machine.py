# SPDX-License-Identifier: Apache-2.0
"""The machine of a benchmark: what it is, and how fast it can multiply at best."""

from __future__ import annotations

import os
import platform
import time

#: Channels and side of the convolutions from which :func:`convolution_rate` takes the fastest.
_CONVOLUTIONS = ((32, 64), (64, 32), (128, 32))


def describe_machine(device: str) -> dict[str, str]:
    """Names and versions, JSON-ready."""
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
    """The most floating-point operations a second of a 3x3x3 convolution in float32 on the CPU, over several sizes."""
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
