# SPDX-License-Identifier: Apache-2.0
"""Selection of the device that runs the networks."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from ..errors import DeviceError


def processor_name() -> str:
    """The CPU's model, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an ARM CPU that does not report it
        return platform.processor() or platform.machine()


def select_device(name: str = "auto") -> torch.device:
    """The device called `name`: "auto", "cpu", "cuda", "cuda:N" or "mps".

    "auto" prefers CUDA, then Apple's MPS, then the CPU. Raises :class:`~LiverXAILib.errors.DeviceError` if the
    device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"There is no device {name!r}. Use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"Device {name!r} was requested, but torch {torch.__version__} finds {count} CUDA devices. "
                "Use --device cpu, or install a CUDA build of torch and a driver."
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("Device 'mps' was requested, but this torch finds no Apple GPU. Use --device cpu.")
    elif device.type != "cpu":
        raise DeviceError(f"Device {name!r} is not supported. Use auto, cpu, cuda, cuda:N or mps.")
    return device
