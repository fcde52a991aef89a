# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark speed``: the time of a segmentation, compared with the machine's limit and other pipelines.

On a synthetic CT of 512x512x200 voxels, one run measures: (a) the stages of a segmentation, their operations per second
and the fraction of the limit that this is; a fresh process, its start and its peak memory; (b) other pipelines on the
same CT, in turn with ours, as ratios; (c) growth with the size of the image, the number of windows and the number of
lesions. The cost of an explanation is measured by ``liverxai benchmark cost``.

The limit is the network's operations divided by the rate of this machine's fastest convolution, measured in the same
run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..context import RunContext
from ..errors import LiverXAIError
from ..files import require_writable
from ..inference import Segmentation, segment, select_device
from ..inference.backends import available_backends
from ..inference.cost import operations
from ..inference.postprocess import Postprocessing, clean_lesions
from ..inference.stages import padded_input, predict_logits, stage_grids, stage_plan
from ..measure import measure
from ..models import Model, load_model
from ..progress import Progress, progress_bar
from ..report import write_segmentation_file
from ..volumes.box import Box, bounding_box
from ..volumes.image_file import existing
from ..volumes.io import read_volume, write_volume
from ..volumes.itk import to_itk
from ..volumes.resample import resample
from ..volumes.volume import Grid, Volume
from .machine import convolution_rate, describe_machine
from .speed_peers import NNUNET_BOX, NNUNET_FULL, Peer, peers

_ROOT = Path(__file__).resolve().parents[2]
#: The CT of the benchmark: voxels (k, j, i) and mm (i, j, k).
SHAPE, SPACING = (200, 512, 512), (0.75, 0.75, 2.0)
#: The images for measuring growth: slices and their spacing in mm. The last covers a trunk.
SLICES = ((50, 2.0), (100, 2.0), (200, 2.0), (400, 2.0), (1000, 1.0))
LESIONS = (0, 1, 4, 16, 64)
#: Approximate number of windows along the first axis: it is rounded to the network's divisor.
WINDOWS = (1, 2, 4, 8)


# Long: one block for each measurement, in the order of the table.
def benchmark_speed(
    model_name: str = "default",
    *,
    image: Volume | None = None,
    device: str = "auto",
    rounds: int = 3,
    compare: bool = True,
    growth: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure, and return a JSON-ready result. Times are the shortest of `rounds`, in turn with everything else."""
    context = RunContext(progress)
    model = load_model(model_name)
    target = select_device(device)
    context.report("Making the image", 0.0)
    base = _phantom() if image is None or growth else image
    volume = image or synthetic_ct(base, SHAPE, SPACING)
    result: dict[str, Any] = {
        "machine": {**describe_machine(device), "threads": str(torch.get_num_threads()), "device": str(target)},
        "model": model_name,
        "image": {"shape": list(volume.shape), "spacing_mm": [round(mm, 4) for mm in volume.spacing]},
        "rounds": rounds,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context.report("Segmenting", 0.01)
        chosen = segment(volume, model, device=device)
        others: list[Peer] = []
        skipped: list[tuple[str, str]] = []
        if compare:
            context.report("Preparing other pipelines", 0.02)
            liver = bounding_box(chosen.mask("liver")) or Box.full(volume.shape)
            for peer in peers(volume, model, liver, folder):
                if isinstance(peer, Peer):
                    others.append(peer)
                else:
                    skipped.append(peer)
        backends = available_backends(target)
        segmentations: dict[str, list[Segmentation]] = {backend: [] for backend in backends}
        rates: list[float] = []
        windows: dict[str, list[float]] = {peer.name: [] for peer in others}
        for number in range(rounds):
            context.report(f"Measuring: round {number + 1} of {rounds}", 0.1 + 0.5 * number / rounds)
            rates.append(convolution_rate())
            for backend in backends:
                segmentations[backend].append(segment(volume, model, device=device, backend=backend))
            for peer in others:
                windows[peer.name].append(_seconds(peer.window))
        rate = max(rates)
        result["limit_gflops"] = rate / 1e9
        result["backends"] = {backend: _our_row(model, runs, rate) for backend, runs in segmentations.items()}
        result["chosen"] = [stage.get("backend", stage) for stage in chosen.provenance["stages"]]
        best = min(row["seconds"] for row in result["backends"].values())
        network = min(row["network_seconds"] for row in result["backends"].values())
        result["peers"] = [_peer_row(peer, windows[peer.name], best, network) for peer in others]
        result["skipped"] = [{"name": peer, "reason": reason} for peer, reason in skipped]
        context.report("Around the network", 0.6)
        result["around"] = _around(volume, model, chosen, folder)
        context.report("Fresh processes", 0.65)
        result["fresh"] = _fresh(volume, model_name, device, folder)
        if growth:
            sizes = []
            for number, (slices, mm) in enumerate(SLICES):
                context.report(f"{slices} slices", 0.7 + 0.2 * number / len(SLICES))
                grown = synthetic_ct(base, (slices, *SHAPE[1:]), (*SPACING[:2], mm))
                sizes.append({"slices": slices, "slice_mm": mm, **_fresh(grown, model_name, device, folder)})
            context.report("Windows and lesions", 0.9)
            result["growth"] = {
                "size": sizes,
                "windows": _window_growth(volume, model, target),
                "lesions": _lesion_growth(volume, chosen),
            }
    context.report("Done", 1.0)
    return result


# --- the image ----------------------------------------------------------------------------------------------------


def _phantom() -> Volume:
    """Make a coarse phantom with the command line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.nii.gz"
        words = ["phantom", "--output", str(path), "--seed", "7", "--spacing", "3", "3", "4"]
        _child("-m", "LiverXAILib", *words)
        return read_volume(path)


def synthetic_ct(
    coarse: Volume, shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int = 7
) -> Volume:
    """Resample `coarse` to any number of voxels around its center; beyond its borders the edge voxels repeat.

    It is interpolated linearly and gets the noise of a CT, so that its file is as large as that of a CT.

    :param coarse: a volume whose axes are those of the patient.
    :param shape: (k, j, i).
    :param spacing: (i, j, k) in mm.
    """
    places = [
        (np.arange(n) - (n - 1) / 2) * mm / own + (m - 1) / 2
        for n, mm, m, own in zip(shape, spacing[::-1], coarse.shape, coarse.spacing[::-1], strict=True)
    ]
    slices = coarse.array.astype(np.float32)
    for axis in (2, 1):
        slices = _interpolated(slices, places[axis], axis)
    random = np.random.default_rng(seed)
    noise = random.normal(scale=18.0, size=(8, *shape[1:])).astype(np.float32)
    array = np.empty(shape, np.int16)
    for k, place in enumerate(places[0]):
        plane = _interpolated(slices, np.array([place]), 0)[0]
        array[k] = np.clip(np.rint(plane + noise[random.integers(8)]), -1024, 3000)
    return Volume(array, np.diag([*spacing, 1.0]))


def _interpolated(array: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    places = np.clip(places, 0, array.shape[axis] - 1)
    low = np.minimum(places.astype(int), array.shape[axis] - 2)
    share = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return array.take(low, axis) * (1 - share) + array.take(low + 1, axis) * share


# --- ours ---------------------------------------------------------------------------------------------------------


def _our_row(model: Model, runs: Sequence[Segmentation], rate: float) -> dict[str, Any]:
    """Return the shortest time of each part over the runs, and the networks' operations per second."""
    stages = []
    for number, stage in enumerate(model.spec.stages):
        reports = [run.provenance["stages"][number] for run in runs]
        if "seconds" not in reports[0]:
            stages.append(reports[0])
            continue
        seconds = {what: min(report["seconds"][what] for report in reports) for what in reports[0]["seconds"]}
        plan = stage_plan(stage, runs[0].stage_grids[stage.name])
        batch = (plan.window[0], 1, *plan.window[1:]) if stage.dimensions == 2 else (1, 1, *plan.window)
        passes = len(plan.boxes) * 2 ** len(stage.mirror_axes)
        count = passes * sum(operations(network, batch) for network in model.members(stage))
        stages.append(
            {
                "name": stage.name,
                "shape": reports[0]["shape"],
                "windows": len(plan.boxes),
                "seconds": seconds,
                "gflop": count / 1e9,
                "gflops": count / seconds["network"] / 1e9,
                "percent_of_limit": 100 * count / seconds["network"] / rate,
            }
        )
    timed = [stage for stage in stages if "gflop" in stage]
    network = sum(stage["seconds"]["network"] for stage in timed)
    gflop = sum(stage["gflop"] for stage in timed)
    return {
        "seconds": min(run.provenance["seconds"] for run in runs),
        "network_seconds": network,
        "rules_seconds": min(run.provenance["seconds_of_rules"] for run in runs),
        "gflop": gflop,
        "percent_of_limit": 100e9 * gflop / network / rate,
        "stages": stages,
    }


def _peer_row(peer: Peer, seconds: Sequence[float], ours: float, ours_network: float) -> dict[str, Any]:
    total = min(seconds) * peer.windows + (peer.around or 0.0)
    return {
        "name": peer.name,
        "window_seconds": round(min(seconds), 3),
        "windows": peer.windows,
        "around_seconds": None if peer.around is None else round(peer.around, 2),
        "seconds": round(total, 1),
        "times_ours": round(total / (ours if peer.around is not None else ours_network), 1),
        "extrapolated": peer.windows > 1,
        "note": peer.note,
    }


#: The code of a fresh process; it reports seconds and MiB as JSON.
_FRESH = """
import json, sys, time
started = time.perf_counter()
import numpy as np
import LiverXAILib as lx
from LiverXAILib.volumes.volume import Volume
lx.segment, lx.load_model
imported = time.perf_counter()
path, matrix, model, device = json.loads(sys.argv[1])
volume = Volume(np.load(path), np.array(matrix))
read = time.perf_counter()
model = lx.load_model(model)
loaded = time.perf_counter()
first = lx.segment(volume, model, device=device)
done = time.perf_counter()
second = lx.segment(volume, model, device=device)
again = time.perf_counter()
peak = None
try:  # Linux; getrusage would report the parent process if that was larger
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10
except OSError:
    if sys.platform == "darwin":
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({
    "import_seconds": imported - started, "load_seconds": loaded - read, "first_seconds": done - loaded,
    "self_test_seconds": sum(stage.get("seconds", {}).get("self_test", 0) for stage in first.provenance["stages"]),
    "warm_seconds": again - done, "peak_mib": peak, "image_mib": volume.array.nbytes / 2**20,
    "windows": [stage.get("windows", 0) for stage in first.provenance["stages"]],
    "network_seconds": sum(stage.get("seconds", {}).get("network", 0) for stage in second.provenance["stages"]),
}))
"""


def _fresh(volume: Volume, model: str, device: str, folder: Path) -> dict[str, Any]:
    """Measure a first and a second segmentation in a separate process."""
    path = folder / "image.npy"
    np.save(path, volume.array)
    arguments = json.dumps([str(path), volume.ijk_to_lps.tolist(), model, device])
    printed = _child("-c", _FRESH, arguments)
    path.unlink()
    values = json.loads(printed.splitlines()[-1])
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def _child(*words: str) -> str:
    """Return the output of a Python process with this library."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.getenv("PYTHONPATH")]))}
    child = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise LiverXAIError(f"A process of the benchmark failed:\n{child.stdout}{child.stderr}")
    return child.stdout


def _around(volume: Volume, model: Model, segmentation: Segmentation, folder: Path) -> dict[str, float]:
    """Return the seconds of an analysis for files, measurements and heat maps, each measured once."""
    import SimpleITK as sitk

    ct, heat_file = folder / "ct.nii.gz", folder / "heat.nrrd"
    # The lowest compression level, because only decompression is measured.
    sitk.WriteImage(to_itk(volume), str(ct), useCompression=True, compressionLevel=1)
    seconds = {
        "read the CT (.nii.gz)": _seconds(partial(read_volume, ct, force=True)),
        "measure": _seconds(partial(measure, volume, segmentation)),
        "write the labels (.seg.nrrd)": _seconds(partial(write_segmentation_file, segmentation, folder / "x.seg.nrrd")),
    }
    found = segmentation.probabilities.get("liver")
    if found is not None:
        # A stand-in for a heat map: it has values in the same box and compresses equally badly.
        grid = segmentation.stage_grids[model.spec.stage_of("liver").name]
        values = resample(found.array, found.grid, grid)
        heat = np.zeros(volume.shape, dtype=np.float32)
        part = volume.grid.box_of(found.grid)

        def to_image() -> None:
            heat[part] = resample(values, grid, found.grid).numpy()

        seconds["bring a heat map to the CT's voxels"] = _seconds(to_image)
        seconds["write a heat map (.nrrd)"] = _seconds(partial(write_volume, volume.with_array(heat), heat_file))
    for path in (ct, heat_file):
        path.unlink(missing_ok=True)
    return seconds


# --- growth -------------------------------------------------------------------------------------------------------


def _window_growth(volume: Volume, model: Model, device: torch.device) -> list[dict[str, Any]]:
    """Measure the first stage's network on one grid with an increasing number of windows (overlap: a quarter)."""
    stage = model.spec.stages[0]
    grid = stage_grids(volume, stage)[0]
    rows = []
    for count in WINDOWS:
        share = 1 if count == 1 else 1 / (count - (count - 1) * 0.25)
        cut = dataclasses.replace(stage, window=(ceil(grid.shape[0] * share), *grid.shape[1:]), overlap=0.25)
        plan = stage_plan(cut, grid)
        image = padded_input(volume, cut, grid, plan)
        seconds = _seconds(partial(predict_logits, model.members(cut), image, cut, plan, RunContext(device=device)))
        voxels = len(plan.boxes) * int(np.prod(plan.window))
        rows.append({"windows": len(plan.boxes), "voxels_read": voxels, "network_seconds": round(seconds, 3)})
    return rows


def _lesion_growth(volume: Volume, segmentation: Segmentation) -> list[dict[str, Any]]:
    """Measure rules and measurements with an increasing number of lesions of 6 mm radius in the segmented liver."""
    if all(spec.name != "tumor" for spec in segmentation.specs):
        return []
    liver = segmentation.mask("liver")
    tumor = segmentation.spec("tumor").value
    voxels = np.argwhere(liver)
    rows = []
    for count in LESIONS:
        labels = np.where(liver, segmentation.spec("liver").value, 0).astype(np.uint8)
        random = np.random.default_rng(count)
        for center in voxels[random.integers(len(voxels), size=count)] if len(voxels) else []:
            _paint_ball(labels, center, volume.grid, 6.0, tumor)
        labels[~liver] = 0
        painted = dataclasses.replace(segmentation, labels=volume.with_array(labels))
        mask = labels == tumor
        box = bounding_box(liver) or Box.full((1, 1, 1))
        volume_mm3 = volume.grid.voxel_volume_mm3
        rules = _seconds(partial(clean_lesions, mask[box], liver[box], volume_mm3, Postprocessing()))
        rows.append(
            {
                "lesions": count,
                "rules_seconds": round(rules, 3),
                "measure_seconds": round(_seconds(partial(measure, volume, painted)), 3),
            }
        )
    return rows


def _paint_ball(labels: np.ndarray, center: np.ndarray, grid: Grid, radius_mm: float, value: int) -> None:
    spacing = np.array(grid.spacing[::-1])
    reach = np.ceil(radius_mm / spacing).astype(int)
    box = Box.full((1, 1, 1)).shifted(center).grown(reach, labels.shape)
    offsets = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), -1)
    labels[box][np.linalg.norm((offsets - center) * spacing, axis=-1) <= radius_mm] = value


def _seconds(job: Callable[[], object]) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - started


# --- the report ---------------------------------------------------------------------------------------------------


def as_markdown(result: dict[str, Any]) -> str:
    """Format the result as tables, with the machine below."""
    shape = " x ".join(map(str, result["image"]["shape"][::-1]))
    lines = [f"Segmentation of {shape} voxels, model {result['model']}; shortest of {result['rounds']} rounds.", ""]
    lines += ["| backend | stage | windows | input s | network s | labels s | GFLOP | GFLOP/s | % of limit |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for backend, row in result["backends"].items():
        for stage in row["stages"]:
            if "gflop" not in stage:
                lines.append(f"| {backend} | {stage['name']} | {stage['skipped']} | | | | | | |")
                continue
            s = stage["seconds"]
            cells = [backend, stage["name"], stage["windows"], _s(s["input"]), _s(s["network"]), _s(s["labels"])]
            cells += [f"{stage['gflop']:.0f}", f"{stage['gflops']:.0f}", f"{stage['percent_of_limit']:.0f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        rate = f"{row['gflop'] / max(row['network_seconds'], 1e-9):.0f}"
        cells = [backend, f"**all, rules included: {_s(row['seconds'])} s**", "", "", _s(row["network_seconds"]), ""]
        lines.append(
            "| " + " | ".join([*cells, f"{row['gflop']:.0f}", rate, f"**{row['percent_of_limit']:.0f}**"]) + " |"
        )
    lines += ["", f"Limit: {result['limit_gflops']:.0f} GFLOP/s, the fastest convolution in float32 of this run."]
    tests = ", ".join(f"{c['backend']} ({c['reason']})" for c in result["chosen"] if "backend" in c)
    lines += [f"Chosen for the stages: {tests}.", ""]
    network = min(row["network_seconds"] for row in result["backends"].values())
    lines += ["| around the network | s | % of the network's time |", "|---|---|---|"]
    lines += [f"| {name} | {_s(x)} | {100 * x / network:.0f} |" for name, x in result["around"].items()]
    lines += [""]
    fresh = result["fresh"]
    lines += ["| fresh process | |", "|---|---|"]
    lines += [f"| import | {_s(fresh['import_seconds'])} s |", f"| load the model | {_s(fresh['load_seconds'])} s |"]
    lines += [
        f"| first segmentation | {_s(fresh['first_seconds'])} s, self-test {_s(fresh['self_test_seconds'])} s of it |"
    ]
    lines += [f"| second segmentation | {_s(fresh['warm_seconds'])} s |"]
    lines += [f"| peak memory | {_mib(fresh['peak_mib'])} MiB, the image {_mib(fresh['image_mib'])} MiB of it |", ""]
    if result["peers"] or result["skipped"]:
        lines += ["| other pipeline | windows | s per window | around s | total s | × ours | what counts |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in result["peers"]:
            mark = " (extrapolated)" if row["extrapolated"] else ""
            around = "not counted" if row["around_seconds"] is None else f"{row['around_seconds']:.1f}"
            cells = [row["name"], row["windows"], f"{row['window_seconds']:.2f}", around, f"{row['seconds']:.0f}{mark}"]
            lines.append("| " + " | ".join(map(str, [*cells, f"**{row['times_ours']:.1f}**", row["note"]])) + " |")
        lines += [f"| {row['name']} | {row['reason']} | | | | | |" for row in result["skipped"]]
        lines += ["", "Where only the network counts, it is compared with our networks alone."]
        totals = {row["name"]: row["seconds"] for row in result["peers"]}
        if NNUNET_FULL in totals and NNUNET_BOX in totals:
            gain = totals[NNUNET_FULL] / max(totals[NNUNET_BOX], 1e-9)
            lines += [f"The same nnU-Net is {gain:.0f} times as fast in the liver's box as over the whole image."]
        lines += [""]
    if "growth" in result:
        lines += _growth_tables(result["growth"])
    described = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n".join([*lines, f"{described}."]) + "\n"


def _growth_tables(growth: dict[str, Any]) -> list[str]:
    lines = ["| slices | image MiB | peak MiB | peak without image MiB | windows | network s | segmentation s (warm) |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in growth["size"]:
        peak, own = row["peak_mib"], row["image_mib"]
        cells = [row["slices"], _mib(own), _mib(peak), _mib(None if peak is None else peak - own)]
        cells += ["+".join(map(str, row["windows"])), _s(row["network_seconds"]), _s(row["warm_seconds"])]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| windows of the first stage | voxels read | network s |", "|---|---|---|"]
    lines += [
        f"| {row['windows']} | {row['voxels_read']:,} | {_s(row['network_seconds'])} |" for row in growth["windows"]
    ]
    lines += ["", "| lesions | rules s | measurements s |", "|---|---|---|"]
    lines += [f"| {x['lesions']} | {_s(x['rules_seconds'])} | {_s(x['measure_seconds'])} |" for x in growth["lesions"]]
    return [*lines, ""]


def _s(seconds: float) -> str:
    return f"{seconds:.2f}"


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def draw_growth(growth: dict[str, Any], path: Path) -> None:
    """Plot time and memory against the size of the image, the number of windows and the number of lesions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.2), constrained_layout=True)
    sizes = growth["size"]
    voxels = [row["image_mib"] for row in sizes]
    axes[0].plot(voxels, [row["warm_seconds"] for row in sizes], "o-", label="segmentation")
    axes[0].plot(voxels, [row["network_seconds"] for row in sizes], "s--", label="networks")
    axes[0].set(xlabel="image, MiB", ylabel="seconds", title="time")
    axes[0].legend()
    axes[1].plot(voxels, [np.nan if row["peak_mib"] is None else row["peak_mib"] for row in sizes], "o-", label="peak")
    axes[1].plot(voxels, voxels, "k:", label="the image itself")
    axes[1].set(xlabel="image, MiB", ylabel="MiB", title="memory")
    axes[1].legend()
    windows = growth["windows"]
    axes[2].plot([row["windows"] for row in windows], [row["network_seconds"] for row in windows], "o-")
    axes[2].set(xlabel="windows of the first stage", ylabel="seconds", title="windows")
    lesions = growth["lesions"]
    axes[3].plot([row["lesions"] for row in lesions], [row["rules_seconds"] for row in lesions], "o-", label="rules")
    axes[3].plot([x["lesions"] for x in lesions], [x["measure_seconds"] for x in lesions], "s--", label="measurements")
    axes[3].set(xlabel="lesions", ylabel="seconds", title="lesions")
    axes[3].legend()
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# --- the command --------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``liverxai benchmark speed``."""
    parser.description = (
        "Measure time and memory of a segmentation and their growth, compared with the machine's limit and other "
        "pipelines. 'liverxai benchmark cost' measures explanations."
    )
    parser.add_argument(
        "--output", "-o", type=Path, metavar="FOLDER", required=True, help="for speed.json, speed.md and speed.png"
    )
    parser.add_argument("--image", type=Path, metavar="CT", help="a CT to use (default: a synthetic 512x512x200)")
    parser.add_argument("--model", default="default", metavar="NAME", help="a model's name or folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="the shortest counts (default: 3)")
    parser.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True, help="also run other pipelines (default: yes)"
    )
    parser.add_argument(
        "--growth", action=argparse.BooleanOptionalAction, default=True, help="also measure growth (default: yes)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``liverxai benchmark speed``; returns the exit code."""
    if arguments.image is not None:
        existing(arguments.image)
    require_writable(arguments.output)
    with progress_bar() as progress:
        result = benchmark_speed(
            arguments.model,
            image=read_volume(arguments.image) if arguments.image else None,
            device=arguments.device,
            rounds=arguments.rounds,
            compare=arguments.compare,
            growth=arguments.growth,
            progress=progress,
        )
    text = as_markdown(result)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (arguments.output / "speed.md").write_text(text, encoding="utf-8")
    if "growth" in result:
        draw_growth(result["growth"], arguments.output / "speed.png")
    sys.stdout.write(text)
    return 0
