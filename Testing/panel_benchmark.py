# SPDX-License-Identifier: Apache-2.0
"""How long the panel keeps Slicer's event loop waiting: ``python Testing/panel_benchmark.py``.

A timer of 1 ms runs in the event loop of the test host while the panel analyzes a CT, and while it explains and
measures the segmentation again after an edit, including all transfers to and from the worker. A gap is the time between
two ticks of the timer. On a busy machine part of it is spent waiting for a processor; Linux reports this time
(/proc/thread-self/schedstat), and it is subtracted. The computing time of the event loop's thread in the gap is
reported separately: the remainder was spent waiting for a lock, for memory, or for the host of a virtual machine.

Python runs a full garbage collection after enough new objects were created. The objects from startup are collected
before the measurement, as in a Slicer that has run for a while; those that the panel creates count.

The gaps depend on the number of voxels, not on the network. The CT is therefore a ball with two lesions in the
requested number of voxels, and the network is tiny; ``--patient`` uses a synthetic patient and the bundled model.
``--steps`` runs no network at all: it times each step of the event loop's thread in showing an analysis of this many
voxels and in handing an edited one back, and the concurrent work of a background thread.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT)]

import numpy as np  # noqa: E402
from slicerhost import qtapplication  # noqa: E402

from LiverXAILib.mrml import volume_to_node  # noqa: E402
from LiverXAILib.panel.model_choice import FROM_FOLDER  # noqa: E402
from LiverXAILib.panel.sample_data import make_phantom  # noqa: E402
from LiverXAILib.volumes.box import Box  # noqa: E402
from LiverXAILib.volumes.volume import Volume  # noqa: E402

#: Makes the model and the ball of the tests in a separate process: Slicer's never loads torch, whose objects would
#: prolong garbage collection, and with it the gaps of the event loop.
_TOYS = """
import sys
from pathlib import Path
import numpy as np
from batch_toys import phantom, write_model
folder, ball = Path(sys.argv[1]), phantom(lesions=2)
write_model(folder / "toy")
np.savez(folder / "ball.npz", array=ball.array, ijk_to_lps=ball.ijk_to_lps)
"""


def make_toys(shape: list[int]) -> tuple[Volume, Path]:
    """The ball of the tests with about `shape` (k, j, i) voxels of smaller size, and the folder of a tiny model."""
    folder = Path(tempfile.mkdtemp())
    paths = os.pathsep.join([str(ROOT / "Testing" / "Python"), str(ROOT)])
    subprocess.run([sys.executable, "-c", _TOYS, str(folder)], env={**os.environ, "PYTHONPATH": paths}, check=True)
    ball = np.load(folder / "ball.npz")
    array = ball["array"]
    factors = [max(1, wanted // size) for wanted, size in zip(shape, array.shape, strict=True)]
    for axis, factor in enumerate(factors):
        array = array.repeat(factor, axis=axis)
    volume = Volume(array, ball["ijk_to_lps"] @ np.diag([*(1 / factor for factor in reversed(factors)), 1]))
    return volume, folder / "toy"


def queued() -> float:
    """Seconds that this thread has waited for a processor; 0 if the system does not report them."""
    path = Path("/proc/thread-self/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


def measure_steps(shape: list[int]) -> None:
    """Time each step with two heat maps, uncertainty and a segmentation of `shape` voxels."""
    import slicer

    from LiverXAILib import mrml
    from LiverXAILib.analysis import Analysis
    from LiverXAILib.explain.explanation import Explanation
    from LiverXAILib.explain.targets import Target
    from LiverXAILib.inference import Segmentation
    from LiverXAILib.measure import Measurements
    from LiverXAILib.models import LIVER, TUMOR, registry

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started, waited, computed = time.perf_counter(), queued(), time.thread_time()
        result = work()
        computed = time.thread_time() - computed
        took = time.perf_counter() - started - queued() + waited
        print(f"{1000 * took:6.0f} ms, {1000 * computed:4.0f} ms computing  {name}", flush=True)
        return result

    scene, spec = slicer.mrmlScene, registry()["default"].spec()
    array, random = np.zeros(shape, np.uint8), np.random.default_rng(0)
    box = Box(*(slice(n // 4, 3 * n // 4) for n in shape))
    array[box] = 1
    array[box][: shape[0] // 8, : shape[1] // 8, : shape[2] // 8] = 2
    labels = Volume(array, np.diag([0.7, 0.7, 1.2, 1.0]))
    probability = Volume(np.full(array[box].shape, 0.3, np.float16), labels.cropped(box).ijk_to_lps)
    provenance = {"model": {"name": "none", "version": "1", "sha256": []}, "warnings": []}
    segmentation = Segmentation(labels, (LIVER, TUMOR), {"liver": probability}, {}, provenance)
    heat = labels.with_array(random.random(shape, dtype=np.float32))
    explanations = tuple(Explanation(heat, 1.0, Target.parse(name), "seg-grad-cam", "") for name in ("liver", "tumor"))
    measurements = Measurements(1.0, None, None, (), None, None, None, ())
    analysis = Analysis(labels, spec, segmentation, explanations, measurements, {"warnings": []})
    ct = volume_to_node(labels.with_array(array.astype(np.int16)), scene, "CT")
    _ = mrml.prepare_nodes, mrml.read_segments  # imports what they need
    print("event loop's thread:")
    timed("the CT, to be sent", lambda: mrml.volume_from_node(ct, copy=False))
    fill = timed("memory for two heat maps and uncertainty", lambda: mrml.prepare_nodes(analysis))
    prepared = fill()
    steps = mrml.node_steps(analysis, scene, ct, prepared)
    for name in ("segmentation and table", "heat map 1", "heat map 2", "uncertainty and folder"):
        timed(name, lambda: next(steps, None))
    node = mrml.find_results(scene, ct, "segmentation")[0]
    read = timed("segments, to be sent", lambda: mrml.read_segments(node, ct, spec))
    states = timed("state of the segments", lambda: mrml.prepare_state(node))
    timed("overlay", lambda: mrml.show_overlay(scene, ct, mrml.find_results(scene, ct, "heatmap")[0], node))
    print("another thread:")
    timed("state put together", states)
    timed("all voxels", fill)
    timed("segments put together", read)


class Clock:
    """Ticks of a timer in the event loop, with waiting time, computing time and the panel's status at each."""

    def __init__(self, panel: qtapplication.Panel) -> None:
        self.panel = panel
        self.ticks: list[tuple[float, float, float, str]] = []
        self.timer = qtapplication.qt.QTimer()
        self.timer.interval = 1
        self.timer.connect("timeout()", self.tick)

    def tick(self) -> None:
        self.ticks.append((time.perf_counter(), queued(), time.thread_time(), self.panel.ui.statusLabel.text))

    def measure(self, name: str, action: Callable[[], None]) -> None:
        """Perform an action, wait until the panel is idle again, and print the longest gaps."""
        gc.collect()
        self.timer.start()
        qtapplication.process_events()
        self.ticks.clear()
        self.tick()
        action()
        qtapplication.wait_until(lambda: not self.panel.widget.runner.busy, 3600)
        qtapplication.process_events()
        self.timer.stop()
        moments, waited, computed, _ = zip(*self.ticks, strict=True)
        gaps = 1000 * np.diff(moments)
        own, computing = gaps - 1000 * np.diff(waited), 1000 * np.diff(computed)
        print(f"{name}, {moments[-1] - moments[0]:.0f} s: {self.panel.ui.statusLabel.text.splitlines()[0]}")
        print(f"  longest gap {own.max():.0f} ms ({gaps.max():.0f} ms with waiting for a processor); ", end="")
        print(f"longest computing {computing.max():.0f} ms; ", end="")
        print(f"median {np.median(own):.1f} ms; 99.9 % under {np.percentile(own, 99.9):.0f} ms")
        for index in dict.fromkeys([*np.argsort(own)[::-1][:4], *np.argsort(computing)[::-1][:2]]):
            after, said = moments[index] - moments[0], self.ticks[index][3][:40]
            took = f"{own[index]:5.0f} ms ({gaps[index]:.0f} ms), {computing[index]:.0f} ms computing"
            print(f"  {took}, after {after:.1f} s: {said!r}")


def main() -> None:
    import slicer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 512, 512), metavar="N", help="voxels (k, j, i)")
    parser.add_argument("--patient", action="store_true", help="a synthetic patient and the bundled model")
    parser.add_argument("--steps", action="store_true", help="only the steps of the event loop's thread, no network")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    if arguments.steps:
        qtapplication.start()
        measure_steps(list(arguments.shape))
        return
    panel = qtapplication.Panel(ROOT / "LiverXAI" / "LiverXAI.py")
    if arguments.patient:
        ct, truth = make_phantom(spacing_mm=(1.5, 1.5, 3.0))
        slicer.mrmlScene.RemoveNode(truth)
    else:
        ball, model = make_toys(arguments.shape)
        ct = volume_to_node(ball, slicer.mrmlScene, "CT")
        panel.choose(panel.ui.modelSelector, FROM_FOLDER)
        panel.ui.modelFolder.currentPath = str(model)
    panel.ui.inputSelector.setCurrentNode(ct)
    clock = Clock(panel)
    print("CT {}×{}×{}".format(*ct.GetImageData().GetDimensions()))
    clock.measure("Apply", panel.ui.applyButton.click)
    clock.measure("Apply again", panel.ui.applyButton.click)
    segmentation = panel.widget.state.result("segmentation")
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "liver", ct)
    liver[:, :, : liver.shape[2] // 3] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(liver, segmentation, "liver", ct)
    panel.choose(panel.ui.targetSelector, "liver")
    clock.measure("Explain again after an edit", panel.ui.explainButton.click)
    clock.measure("Measure again", panel.ui.measureButton.click)
    panel.close()


if __name__ == "__main__":
    main()
