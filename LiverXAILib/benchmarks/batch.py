# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark batch``: cases per hour, overhead, memory and scaling of batches, in one run.

The batch is measured from outside, as users run it: by the command line, with its default outputs and threads, by its
manifest and its processes' memory. The bare loop that it is compared with (read, analyze, write; one after the other;
nothing else) makes the same files with the same number of threads in one process. Bare loop, one worker and two workers
are measured in turn, so that other load on the machine affects all of them, and without the loading of the model, which
each does once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..context import RunContext
from ..errors import LiverXAIError, UsageError
from ..files import require_exists, require_writable
from ..inference import select_device
from ..models import load_model
from ..options import Options, Words
from ..pipeline import check_request
from ..subprocesses import limit_threads
from ..text import counted, how_to_install
from ..volumes.box import Box
from ..volumes.io import read_volume, write_volume
from .machine import describe_machine

#: Sampling interval of the memory of the processes, in seconds.
_SAMPLE_SECONDS = 0.2
_ROOT = Path(__file__).resolve().parents[2]
#: Edge of the small cases.
_SMALL_MM = 90.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``liverxai benchmark batch`` to `parser`."""
    parser.add_argument(
        "--output", "-o", type=Path, metavar="FOLDER", required=True, help="folder for batch.json and batch.md"
    )
    parser.description = (
        "Measure batches beside a bare loop that reads, analyzes and writes one case after the other. Both write what "
        "`liverxai batch` writes by default, the report included, into a temporary folder."
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="an image, or a folder of images, used in turn until there are enough cases (default: phantoms)",
    )
    parser.add_argument("--model", default="default", metavar="NAME", help="a model's name or folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--explain", nargs="*", action=Words, metavar="TARGET", help="targets, as in analyze; none: segment only"
    )
    parser.add_argument("--cases", type=int, default=4, metavar="N", help="cases in each timed run (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed runs of each kind (default: 3)")
    parser.add_argument(
        "--small-cases", type=int, default=200, metavar="N", help="cases of the memory test (default: 200)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="per worker (default, as in batch: all cores for one worker, half of them for each of two)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table and write it; returns the exit code."""
    if importlib.util.find_spec("psutil") is None:
        raise UsageError(f"This benchmark needs psutil: {how_to_install('evaluate')}.")
    if arguments.images is not None:
        require_exists(arguments.images)
        if not _images(arguments.images, Path()):
            raise UsageError(f"There are no files in {arguments.images}.")
    require_writable(arguments.output)
    # The children would report a wrong name with a traceback.
    check_request(load_model(arguments.model), arguments.explain)
    select_device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = _Scratch(Path(folder), arguments.model, arguments.device, arguments.explain, arguments.threads)
        images = _images(arguments.images, scratch.folder / "images")
        small = [_cut_out(path, scratch.folder / "small" / f"{n}.nii.gz") for n, path in enumerate(images)]
        result = {
            "machine": describe_machine(arguments.device),
            "model": arguments.model,
            "explained": "as by default" if arguments.explain is None else " ".join(arguments.explain) or "nothing",
            "images": f"{arguments.images or 'four phantoms'}, {_sizes(images)} voxels; for memory {_sizes(small)}",
            "threads_per_worker": arguments.threads or "as by default",
            "speed": _speed(scratch, images, arguments.cases, arguments.rounds),
            "memory": _memory(scratch, small, arguments.small_cases),
        }
    text = as_markdown(result)
    (arguments.output / "batch.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (arguments.output / "batch.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def as_markdown(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    machine, speed, memory = (result[key] for key in ("machine", "speed", "memory"))
    rounds = counted(speed["cases"], "case")
    if speed["rounds"] > 1:
        rounds = f"median of {speed['rounds']} rounds of {rounds}"
    rows = [
        ("bare loop of read, analyze, write: cases per hour", f"{speed['bare_cases_per_hour']:.0f}"),
        ("batch, one worker: cases per hour", f"{speed['one_worker_cases_per_hour']:.0f}"),
        (f"overhead of the batch over the bare loop, {rounds}", f"{speed['overhead_percent']:+.1f} %"),
        ("batch, two workers: cases per hour", f"{speed['two_workers_cases_per_hour']:.0f}"),
        (f"speed-up from one to two workers, {rounds}", f"{speed['speed_up']:.2f}"),
        (
            "batch, one worker: peak memory, first and second half of the cases",
            f"{speed['first_half_mib']:.0f} and {speed['second_half_mib']:.0f} MiB",
        ),
        (f"small cases: memory of the worker, {memory['span']}", memory["text"]),
        ("growth of the worker's memory per 100 cases", f"{memory['growth_mib_per_100']:+.1f} MiB"),
        ("growth of the parent's memory per 100 cases", f"{memory['parent_growth_mib_per_100']:+.1f} MiB"),
    ]
    lines = ["| measured | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    how = (
        f"model {result['model']}, explained: {result['explained']}, threads per worker: {result['threads_per_worker']}"
    )
    return "\n".join([*lines, "", f"{described}; {how}; images: {result['images']}."]) + "\n"


# --- what is measured ---------------------------------------------------------------------------------------------


def _speed(scratch: _Scratch, images: Sequence[Path], cases: int, rounds: int) -> dict[str, Any]:
    bare, one, two, runs = [], [], [], []
    for _ in range(rounds):
        bare.append(scratch.bare(images, cases))
        runs.append(scratch.batch(images, cases))
        one.append(runs[-1]["seconds"])
        two.append(scratch.batch(images, cases, workers=2)["seconds"])
    return {
        "cases": cases,
        "rounds": rounds,
        "bare_seconds": bare,
        "one_worker_seconds": one,
        "two_workers_seconds": two,
        "bare_cases_per_hour": 3600 * cases / statistics.median(bare),
        "one_worker_cases_per_hour": 3600 * cases / statistics.median(one),
        "two_workers_cases_per_hour": 3600 * cases / statistics.median(two),
        "overhead_percent": 100 * (statistics.median(b / a for a, b in zip(bare, one, strict=True)) - 1),
        "speed_up": statistics.median(b / a for a, b in zip(two, one, strict=True)),
        "first_half_mib": statistics.median(run["peaks_mib"][0] for run in runs),
        "second_half_mib": statistics.median(run["peaks_mib"][1] for run in runs),
    }


def _memory(scratch: _Scratch, images: Sequence[Path], cases: int) -> dict[str, Any]:
    run = scratch.batch(images, cases)
    # During the first cases caches are filled and libraries loaded.
    settled = min(10, cases // 4)
    worker, parent = run["worker_mib"][settled:], run["parent_mib"][settled:]
    quarter = max(1, len(worker) // 4)
    first, last = statistics.median(worker[:quarter]), statistics.median(worker[-quarter:])
    return {
        "cases": cases,
        "worker_mib": worker,
        "span": f"cases {settled + 1} to {cases}, median of the first and of the last quarter",
        "text": f"{first:.0f} and {last:.0f} MiB",
        "growth_mib_per_100": _slope(worker),
        "parent_growth_mib_per_100": _slope(parent),
    }


def _slope(values: Sequence[float]) -> float:
    """Return the growth per 100 cases of the least-squares line through `values`."""
    return 100 * statistics.linear_regression(range(len(values)), values).slope if len(values) > 1 else 0.0


class _Scratch:
    """Runs batches and bare loops in a folder that is deleted afterwards."""

    def __init__(self, folder: Path, model: str, device: str, explain: list[str] | None, threads: int) -> None:
        """:param threads: of each process; 0: those that ``liverxai batch`` chooses."""
        self.folder = folder
        self._model, self._device, self._explain, self._threads = model, device, explain, threads
        self._number = 0

    def bare(self, images: Sequence[Path], cases: int) -> float:
        """Return the seconds of the bare loop over `cases` images, in a separate process."""
        code = f"from {__name__} import bare_loop; import json, sys; bare_loop(*json.loads(sys.argv[1]))"
        listed, output = self._listed(images, cases), self._new_folder()
        words = json.dumps([str(listed), str(output), self._model, self._device, self._explain, self._threads])
        environment = _environment()
        limit_threads(environment, self._threads)
        text = _checked(
            subprocess.run(
                [sys.executable, "-c", code, words], env=environment, capture_output=True, text=True, check=False
            )
        )
        return float(text.splitlines()[-1])

    def batch(self, images: Sequence[Path], cases: int, workers: int = 1) -> dict[str, Any]:
        """Return the seconds from the first case to the last, and the MiB of parent and worker after each case."""
        output = self._new_folder()
        command = [sys.executable, "-m", "LiverXAILib", "batch", str(self._listed(images, cases)), "-o", str(output)]
        command += ["--model", self._model, "--device", self._device]
        command += ["--workers", str(workers), "--threads", str(self._threads)]
        command += [] if self._explain is None else ["--explain", *self._explain]
        process = subprocess.Popen(
            command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        samples: list[tuple[float, float, float]] = []
        watch = threading.Thread(target=_watch, args=(process, output, samples))
        watch.start()
        output_text = process.communicate()[0]
        watch.join()
        if process.returncode != 0:
            raise LiverXAIError(f"The batch under test failed:\n{output_text}")
        lines = _manifest(output)
        started = min(line["time"] for line in lines if line.get("state") == "running")
        finished = [line["time"] for line in lines if line.get("state") == "done"]
        if not samples:
            raise LiverXAIError("The batch under test ended before its memory could be measured; use larger images.")
        at_each = [_last_until(time_, samples) for time_ in finished]
        return {
            "seconds": max(finished) - started,
            "peaks_mib": _peaks(samples, sorted(finished)[(len(finished) - 1) // 2]),
            "parent_mib": [parent for _, parent, _ in at_each],
            "worker_mib": [worker for _, _, worker in at_each],
        }

    def _new_folder(self) -> Path:
        self._number += 1
        return self.folder / f"run{self._number}"

    def _listed(self, images: Sequence[Path], cases: int) -> Path:
        """Write a list that repeats the images in turn until there are enough cases."""
        path = self.folder / "cases.json"
        rows = [{"input": str(images[n % len(images)]), "case": f"case{n:04}"} for n in range(cases)]
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path


def bare_loop(listed: str, output: str, model_name: str, device: str, explain: list[str] | None, threads: int) -> None:
    """Read, analyze and write each case of a list; prints the seconds after the model was loaded."""
    context = RunContext(device=device, threads=threads)
    context.limit_threads()
    options = Options(explain=None if explain is None else tuple(explain), scene=False)
    model = load_model(model_name).to(select_device(device))
    rows = json.loads(Path(listed).read_text(encoding="utf-8"))
    started = time.perf_counter()
    for row in rows:
        analysis = options.analyze(options.read(Path(row["input"])), model, context)
        options.save(analysis, Path(output) / row["case"])
    sys.stdout.write(f"{time.perf_counter() - started}\n")


def _images(given: Path | None, folder: Path) -> list[Path]:
    """Return the user's images, or four phantoms."""
    if given is not None:
        files = given.iterdir() if given.is_dir() else [given]
        return sorted(path.absolute() for path in files if path.is_file())
    paths = []
    for seed in range(1, 5):
        paths.append(folder / f"phantom{seed}.nii.gz")
        command = [sys.executable, "-m", "LiverXAILib", "phantom", "--output", str(paths[-1]), "--seed", str(seed)]
        folder.mkdir(parents=True, exist_ok=True)
        _checked(subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False))
    return paths


def _cut_out(image: Path, small: Path) -> Path:
    """Cut out a small case for the memory test: a box of `image` in the patient's right half, where the liver is."""
    volume = read_volume(image)
    middle = volume.grid.to_lps((np.array(volume.shape[::-1]) - 1) / 2) - (_SMALL_MM / 2, 0, 0)
    corners = middle + np.array([[-0.5], [0.5]]) * _SMALL_MM
    first, last = np.sort(volume.grid.to_ijk(corners), axis=0)[:, ::-1]
    low = np.clip(np.floor(first).astype(int), 0, np.array(volume.shape) - 1)
    high = np.clip(np.ceil(last).astype(int), low + 1, volume.shape)
    small.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume.cropped(Box.between(low, high)), small)
    return small


def _sizes(images: Sequence[Path]) -> str:
    """Return the smallest and largest size, as text."""
    shapes = sorted((read_volume(path).shape for path in images), key=np.prod)
    texts = [" x ".join(map(str, shape[::-1])) for shape in (shapes[0], shapes[-1])]
    return " to ".join(dict.fromkeys(texts))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}


def _checked(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode != 0:
        raise LiverXAIError(f"A process of the benchmark failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _manifest(output: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for path in (output / "manifest").glob("*.jsonl"):
        lines += [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
    return lines


def _watch(process: subprocess.Popen[str], output: Path, samples: list[tuple[float, float, float]]) -> None:
    """Collect (time, memory of the parent, memory of the worker) in MiB until the process ends."""
    import psutil

    parent = psutil.Process(process.pid)
    worker: Any = None
    while process.poll() is None:
        try:
            if worker is None:
                pids = [line["pid"] for line in _manifest(output) if line["event"] == "worker"]
                worker = psutil.Process(pids[0]) if pids else None
            else:
                samples.append((time.time(), _resident_mib(parent), _resident_mib(worker)))
        except psutil.Error:
            # The process has just ended.
            pass
        time.sleep(_SAMPLE_SECONDS)


def _peaks(samples: Sequence[tuple[float, float, float]], middle: float) -> tuple[float, float]:
    """Return the worker's largest memory up to a time and from then on; both halves hold the sample at that time."""
    border = _last_until(middle, samples)
    first = max(worker for time_, _, worker in samples if time_ <= border[0])
    second = max(worker for time_, _, worker in samples if time_ >= border[0])
    return first, second


def _last_until(time_: float, samples: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the last sample up to `time_` (else the first): a later one may show a worker that is ending."""
    return max((sample for sample in samples if sample[0] <= time_), default=samples[0])


def _resident_mib(process: Any) -> float:
    return float(process.memory_info().rss) / 2**20
