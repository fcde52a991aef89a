# SPDX-License-Identifier: Apache-2.0
"""How long the panel keeps Slicer's event loop waiting during an analysis: ``python Testing/panel_benchmark.py``.

A timer of 1 ms runs in the event loop of the test host from the click on Apply until all nodes are there; a gap is the
time between two of its ticks; on a busy machine much of it is waiting for the processor, so that the application's own
computing time in it is given too. The CT is a synthetic patient in the voxels that are asked for.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT)]

from slicerhost import qtapplication  # noqa: E402


def main() -> None:
    import numpy as np
    import slicer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 3.0), metavar="MM")
    parser.add_argument("--model", default="default", help="a model's name or folder")
    arguments = parser.parse_args()
    panel = qtapplication.Panel(ROOT / "LiverXAI" / "LiverXAI.py")
    ct, truth = panel.module.makePhantom(spacingMm=arguments.spacing)
    slicer.mrmlScene.RemoveNode(truth)
    panel.ui.inputSelector.setCurrentNode(ct)
    if Path(arguments.model).is_dir():
        panel.choose(panel.ui.modelSelector, "")
        panel.ui.modelFolder.currentPath = arguments.model
    ticks: list[tuple[float, float, str]] = []

    def tick() -> None:
        ticks.append((time.perf_counter(), time.process_time(), panel.ui.statusLabel.text))

    timer = qtapplication.qt.QTimer()
    timer.interval = 1
    timer.connect("timeout()", tick)
    timer.start()
    qtapplication.process_events()
    started = time.perf_counter()
    ticks.append((started, time.process_time(), "click"))
    panel.ui.applyButton.click()
    qtapplication.wait_until(lambda: not panel.widget._task, 3600)
    qtapplication.process_events()
    timer.stop()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print("CT {}×{}×{}".format(*ct.GetImageData().GetDimensions()), f"in {time.perf_counter() - started:.1f} s")
    print(panel.ui.statusLabel.text)
    gaps = np.diff([moment for moment, *_ in ticks])
    computing = np.diff([cpu for _, cpu, _ in ticks])
    for index in np.argsort(gaps)[::-1][:5]:
        after = ticks[index][0] - started
        own = 1000 * computing[index]
        print(f"gap {1000 * gaps[index]:5.0f} ms ({own:.0f} ms computing) at {after:.1f} s: {ticks[index][2][:40]!r}")
    print(f"longest computing time in a gap {1000 * computing.max():.0f} ms")
    print(f"median gap {1000 * np.median(gaps):.1f} ms, 99.9th percentile {1000 * np.percentile(gaps, 99.9):.0f} ms")
    panel.close()


if __name__ == "__main__":
    main()
