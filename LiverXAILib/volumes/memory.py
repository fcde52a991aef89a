# SPDX-License-Identifier: Apache-2.0
"""Limits on the memory that an image may take, checked before the work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InputError, UsageError

#: Environment variable with the limit, e.g. "8G"; the command line's --max-memory sets it, also for child processes.
MAX_MEMORY = "LIVERXAI_MAX_MEMORY"
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
#: The limit of a container (cgroup version 2, then 1).
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def parse_memory(text: str) -> int:
    """Bytes of a size like "8G", "1500M" or "2.5 GB" (powers of 1024).

    :raises LiverXAILib.errors.UsageError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not an amount of memory. Write it like 8G or 1500M.")
    return size


def memory_limit() -> int:
    """The number of bytes that may be used: the user's limit, else the memory of the machine or container.

    :raises LiverXAILib.errors.UsageError: the environment variable is not a size.
    """
    if text := os.environ.get(MAX_MEMORY):
        return parse_memory(text)
    limits = [_machine_memory()]
    for path in _CGROUPS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(limits)


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**36  # Windows has no sysconf: a limit so high that the operating system decides


def require_memory(size: int, what: str) -> None:
    """Refuse work that cannot fit.

    :param size: peak memory in bytes.
    :param what: the work, as the subject of a sentence: "x.nrrd (512 x 512 x 9000 voxels)".
    :raises LiverXAILib.errors.InputError: it is more than :func:`memory_limit`.
    """
    limit = memory_limit()
    if size > limit:
        raise InputError(
            f"{what} needs about {_gigabytes(size)} of memory; {_gigabytes(limit)} may be used. Crop the image or use "
            "a machine with more memory (--max-memory sets the limit)."
        )


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GB" if size >= 2**27 else f"{size / 2**20:,.1f} MB"
