# SPDX-License-Identifier: Apache-2.0
"""Selection of the device that runs the networks."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from ..errors import DeviceError, UsageError

_UNKNOWN = "There is no device {!r}. Use auto, cpu, cuda, cuda:N or mps."


def processor_name() -> str:
    """The CPU's model, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an ARM CPU that does not report it
        return platform.processor() or platform.machine()


def select_device(name: str = "auto") -> torch.device:
    """The device called `name`: "auto", "cpu", "cuda", "cuda:N" or "mps".

    "auto" prefers CUDA, then Apple's MPS, then the CPU.

    :raises LiverXAILib.errors.UsageError: `name` is not one of these.
    :raises LiverXAILib.errors.DeviceError: this machine has no such device, or torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(_UNKNOWN.format(name)) from error
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
        raise UsageError(_UNKNOWN.format(name))
    return device
