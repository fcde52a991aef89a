# SPDX-License-Identifier: Apache-2.0
"""``liverxai benchmark wait``: the time that a user waits, from the command to the files, by part.

Each run is ``liverxai analyze`` in a fresh process, and then again in the same one (warm, as in a batch or the panel's
worker). Another checkout, and programs that do the same with other libraries, are measured in turn with it, so that
other load on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import LiverXAIError, UsageError
from ..files import require_exists, require_writable
from ..progress import progress_bar
from ..subprocesses import WAITING
from ..volumes.image_file import existing
from ..volumes.io import read_volume
from .machine import describe_machine
from .wait_peers import PROGRAMS

_ROOT = Path(__file__).resolve().parents[2]
_TIMELINE = Path(__file__).with_name("timeline.py")
#: The rows before and after those of the timeline.
_START, _EXIT = "start Python", "exit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``liverxai benchmark wait``."""
    parser.description = (
        "Measure the wall time of 'analyze' by part, cold (a fresh process) and warm (again in the same one), its "
        "processor time and its peak memory."
    )
    parser.add_argument("image", type=Path, metavar="CT", help="a CT to analyze")
    parser.add_argument(
        "--options", default="", metavar="WORDS", help="options of analyze, as in --options='--no-report --explain'"
    )
    parser.add_argument("--output", "-o", type=Path, metavar="FOLDER", help="also write wait.json and wait.md here")
    parser.add_argument(
        "--against",
        metavar="PATH",
        help="another checkout of LiverXAI, or the Python of another environment, to measure in turn with this one",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="the median counts (default: 5)")
    parser.add_argument(
        "--warm", action=argparse.BooleanOptionalAction, default=True, help="run again in each process (default: yes)"
    )
    parser.add_argument(
        "--peers", action="store_true", help="also programs built with MONAI and nnU-Net (minutes; random weights)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``liverxai benchmark wait``; returns the exit code."""
    if arguments.rounds < 1:
        raise UsageError("--rounds must be at least 1.")
    existing(arguments.image)
    if arguments.against is not None:
        require_exists(arguments.against)
    if arguments.output is not None:
        require_writable(arguments.output)
    volume = read_volume(arguments.image)
    with progress_bar() as progress:
        result = benchmark_wait(
            arguments.image,
            shlex.split(arguments.options),
            against=arguments.against,
            rounds=arguments.rounds,
            warm=arguments.warm,
            peers=arguments.peers,
            progress=progress,
        )
    result["image"] = " x ".join(str(n) for n in volume.shape[::-1])
    text = as_markdown(result)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "wait.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (arguments.output / "wait.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def benchmark_wait(
    image: Path,
    options: Sequence[str] = (),
    *,
    against: str | None = None,
    rounds: int = 5,
    warm: bool = True,
    peers: bool = False,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Run ``analyze IMAGE OPTIONS`` in turn here and in `against`, `rounds` times; returns a JSON-ready result.

    :raises LiverXAILib.errors.LiverXAIError: a run failed; the message has its output.
    """
    interpreters: dict[str, tuple[str, Path | None]] = {"this": (sys.executable, _ROOT)}
    if against is not None:
        interpreters["other"] = _interpreter(against)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in interpreters}
    programs: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS if peers}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for name, (python, root) in interpreters.items():
                progress(f"Waiting for {name}: round {number + 1} of {rounds}", number / rounds)
                runs[name].append(_one(python, root, image, options, warm, Path(scratch)))
            for name in [name for name in programs if name not in skipped]:
                progress(f"Waiting for {name}: round {number + 1} of {rounds}", (number + 0.5) / rounds)
                try:
                    programs[name].append(_peer(name, image, Path(scratch)))
                except LiverXAIError as error:
                    skipped[name] = str(error)
    progress("Done", 1.0)
    return {
        "machine": describe_machine("cpu"),
        "options": list(options),
        "rounds": rounds,
        "runs": runs,
        "programs": {name: found for name, found in programs.items() if found},
        "skipped": skipped,
    }


def _interpreter(path: str) -> tuple[str, Path | None]:
    """Return a Python, and the checkout from which it imports LiverXAI (None: its own)."""
    if (Path(path) / "LiverXAILib").is_dir():
        return sys.executable, Path(path).resolve()
    if Path(path).is_file() and os.access(path, os.X_OK):
        return path, None
    raise UsageError(f"{path} is neither a checkout of LiverXAI nor a Python interpreter.")


def _one(
    python: str, root: Path | None, image: Path, options: Sequence[str], warm: bool, scratch: Path
) -> dict[str, Any]:
    """Measure one fresh process: cold and, in the same process, warm."""
    result, output = scratch / "timeline.json", scratch / "output"
    code = f"import runpy, sys; runpy.run_path({str(_TIMELINE)!r}, run_name='__main__')"
    words = ["analyze", str(Path(image).absolute()), "--output", str(output), *options]
    result.unlink(missing_ok=True)
    started = time.time()
    done = _process([python, "-c", code, str(result), str(int(warm)), *words], root, scratch)
    ended = time.time()
    if done.returncode or not result.is_file():
        raise LiverXAIError(f"A run of the benchmark failed:\n{done.stderr[-2000:]}")
    measured = json.loads(result.read_text(encoding="utf-8"))
    cold, *again = measured["runs"]
    if any(one["code"] for one in measured["runs"]):
        raise LiverXAIError(f"analyze {' '.join(words[1:])} failed in the benchmark; run it alone to see why.")
    start, leave = measured["begun"] - started, ended - measured["ended"]
    cold["parts"] = {_START: start, **cold["parts"], _EXIT: leave}
    cold["seconds"] += start + leave
    return {"cold": cold, "warm": again[0] if again else None}


def _process(command: Sequence[str], root: Path | None, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if environment.get(WAITING[0]) == WAITING[1]:  # set by this command; a program that is compared has its own setting
        del environment[WAITING[0]]
    if root is not None:
        environment["PYTHONPATH"] = str(root)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _peer(name: str, image: Path, scratch: Path) -> dict[str, Any]:
    """Measure another program from its start to its end."""
    code = f"from LiverXAILib.benchmarks.wait_peers import PROGRAMS; import sys; PROGRAMS[{name!r}](*sys.argv[1:])"
    (scratch / "peer").mkdir(exist_ok=True)
    started = time.perf_counter()
    done = _process([sys.executable, "-c", code, str(Path(image).absolute()), str(scratch / "peer")], _ROOT, scratch)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise LiverXAIError(last[0] if last else f"exit code {done.returncode}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": time.perf_counter() - started - measured["prepared_seconds"], "peak_mib": measured["peak_mib"]}


# --- the tables ---------------------------------------------------------------------------------------------------


def as_markdown(result: dict[str, Any]) -> str:
    """Format the result as tables: medians by part, and ratios to the other checkout."""
    kinds = [kind for kind in ("cold", "warm") if result["runs"]["this"][0][kind] is not None]
    columns = [(kind, name) for kind in kinds for name in result["runs"]]
    titles = {"this": "", "other": " before"}
    lines = [
        f"`liverxai analyze CT {' '.join(result['options'])}`".replace(" `", "`")
        + f" on {result['image']} voxels, medians of {result['rounds']}.",
        "",
        "| part, wall time in s | " + " | ".join(f"{kind}{titles[name]}" for kind, name in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for part in _parts(result):
        values = [_median(result, kind, name, lambda one, p=part: one["parts"].get(p, 0.0)) for kind, name in columns]  # type: ignore[misc]
        if max(values) >= 0.005:
            lines.append(f"| {part} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    for part in dict.fromkeys(
        part for runs in result["runs"].values() for one in runs for part in one["cold"]["beside"]
    ):
        values = [_median(result, kind, name, lambda one, p=part: one["beside"].get(p, 0.0)) for kind, name in columns]  # type: ignore[misc]
        if max(values) >= 0.005:
            lines.append(f"| *meanwhile, in another thread: {part}* | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    for title, key, digits in (
        ("**all**", "seconds", 1),
        ("processor time", "processor_seconds", 1),
        ("peak memory, MiB", "peak_mib", 0),
    ):
        values = [_median(result, kind, name, lambda one, k=key: one[k] or 0.0) for kind, name in columns]  # type: ignore[misc]
        lines.append(f"| {title} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |")
    if "other" in result["runs"]:
        lines += ["", *(_ratio(result, kind) for kind in kinds)]
    if result["programs"] or result["skipped"]:
        lines += ["", "| another program, end to end, random weights | s | peak memory, MiB |", "|---|---|---|"]
        for name, runs in result["programs"].items():
            seconds, peak = (median(one[key] or 0.0 for one in runs) for key in ("seconds", "peak_mib"))
            lines.append(f"| {name} | {seconds:.1f} | {peak:.0f} |")
        lines += [f"| {name} | not run: {reason} | |" for name, reason in result["skipped"].items()]
    described = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n".join([*lines, "", f"{described}."]) + "\n"


def _parts(result: dict[str, Any]) -> list[str]:
    """Return all parts, in the order in which they begin; the exit is last."""
    found: dict[str, None] = {}
    for runs in result["runs"].values():
        for one in runs:
            for kind in ("cold", "warm"):
                found.update(dict.fromkeys(one[kind]["parts"] if one[kind] else ()))
    return [*(part for part in found if part != _EXIT), _EXIT]


def _median(result: dict[str, Any], kind: str, name: str, value: Callable[[dict[str, Any]], float]) -> float:
    return median(value(one[kind]) for one in result["runs"][name])


def _ratio(result: dict[str, Any], kind: str) -> str:
    """Return the ratio of this checkout's time to the other's, from the ratios of the rounds."""
    this, other = ([one[kind] for one in result["runs"][name]] for name in ("this", "other"))
    wall, busy = (
        median(a[key] / b[key] for a, b in zip(this, other, strict=True)) for key in ("seconds", "processor_seconds")
    )
    return f"{kind.capitalize()}: {100 * wall:.0f} % of the wall time before, {100 * busy:.0f} % of the processor time."
