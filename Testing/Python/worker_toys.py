# SPDX-License-Identifier: Apache-2.0
"""A worker with a tiny model, and waiting for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from batch_toys import phantom

from LiverXAILib.volumes.resample import resample
from LiverXAILib.volumes.volume import Grid, Volume
from LiverXAILib.worker import Event, WorkerClient

#: A question that needs many runs of the tiny model; with a :func:`roomy_phantom`, long enough to cancel, kill, close.
SLOW = {"explain": ["liver", "tumor"], "method": "occlusion"}


def wait(client: WorkerClient, seen: list[Event] | None = None, limit: float = 120) -> Event:
    """Poll until the request ends; progress is appended to `seen`."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        for event in client.poll():
            if event.kind != "progress":
                return event
            if seen is not None:
                seen.append(event)
        time.sleep(0.02)
    raise AssertionError("the worker does not answer")


def wait_for_progress(client: WorkerClient, step: str = "") -> Event:
    """Poll until the request reports progress in `step`."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for event in client.poll():
            assert event.kind == "progress", event
            if step in event.step and event.fraction > 0.02:
                return event
        time.sleep(0.02)
    raise AssertionError("the worker does not answer")


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], limit: float = 30) -> bool:
    """Wait until `condition` holds, and return whether it does."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def children(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found


def fine_phantom(factor: int = 2) -> Volume:
    """The same patient in smaller voxels: more to compute."""
    volume = phantom()
    shape = tuple(n * factor for n in volume.shape)
    matrix = volume.ijk_to_lps @ np.diag([1 / factor] * 3 + [1])
    fine = resample(volume.array.astype(np.float32), volume.grid, Grid(shape, matrix), antialias=False)
    return Volume(np.rint(fine.numpy()).astype(np.int16), matrix)


def roomy_phantom(air: int = 32) -> Volume:
    """The same patient with `air` voxels of air on each side; occluding the whole image takes a minute."""
    volume = phantom()
    return Volume(np.pad(volume.array, air, constant_values=-1000), volume.ijk_to_lps)
