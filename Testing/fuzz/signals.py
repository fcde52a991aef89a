# SPDX-License-Identifier: Apache-2.0
"""Commands stopped at any time by SIGINT, SIGTERM or SIGKILL, and then run again."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from batch_toys import write_good, write_model
from safetensors.torch import load_file
from stops import Stopped, stop_after
from training_toys import tiny, write_msd

from LiverXAILib.errors import LiverXAIError
from LiverXAILib.models import load_model

from .kind import BrokenPromiseError, Generator, Kind

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
#: A signal may also arrive after the command should have ended.
_LATE = 1.1
_NEVER_S = 1000.0


class Signals(Kind):
    """`analyze`, `batch`, `train` and `models import`: each is stopped once, then run again to its end."""

    limit_s = 600.0
    limit_mb = 12_000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_model(folder / "toy")
        with zipfile.ZipFile(folder / "toy.zip", "w") as archive:
            for path in (folder / "toy").iterdir():
                archive.write(path, f"toy/{path.name}")
        for number in range(3):
            write_good(folder / "scans" / f"c{number}.nii.gz", number)
        config = tiny(write_msd(folder / "data", 4), folder / "unused", finish={"evaluate": True})
        (folder / "study.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
        self.commands: dict[str, Callable[[Path], list[object]]] = {
            "analyze": lambda place: [
                "analyze",
                folder / "scans" / "c0.nii.gz",
                "-o",
                place,
                "--model",
                folder / "toy",
            ],
            "batch": lambda place: ["batch", folder / "scans", "-o", place, "--model", folder / "toy", "--no-report"],
            "train": lambda place: ["train", folder / "study.yaml", "-o", place],
            "import": lambda place: ["models", "import", folder / "toy.zip", "--name", "mine"],
        }
        self.expected, self.seconds = {}, {}
        for name in self.commands:
            stopped = self._run(name, folder / name, _NEVER_S, signal.SIGKILL)
            if stopped.code:
                raise RuntimeError(f"{name} does not work: {stopped.said}")
            self.expected[name], self.seconds[name] = _results(name, folder / name / "out"), stopped.seconds

    def run(self, rng: Generator, folder: Path) -> str:
        name = [*self.commands][int(rng.integers(len(self.commands)))]
        number = _SIGNALS[int(rng.integers(len(_SIGNALS)))]
        seconds = float(rng.random()) * _LATE * self.seconds[name]
        output = folder / "out"
        if name == "analyze":
            # A result of another patient exists.
            shutil.copytree(self.base / "analyze" / "out", output)
            (output / "measurements.json").write_text("{}", encoding="utf-8")
            other = _results(name, output)
        stopped = self._run(name, folder, seconds, number)
        # To a shell, a process killed by a signal and one that exits with 128 + n look alike.
        if stopped.code not in (0, 128 + number, -number):
            raise BrokenPromiseError(f"{name} ended with {stopped.code} after signal {number}: {stopped.said[-2000:]}")
        if stopped.running:
            raise BrokenPromiseError(f"{name} left processes behind: {stopped.running}")
        if number != signal.SIGKILL:
            if "Traceback" in stopped.said:
                raise BrokenPromiseError(f"{name} shows where it stopped: {stopped.said[-2000:]}")
            left = [*stopped.temporary, *_hidden(name, output)]
            if left := [path for path in left if "inductor" not in path]:
                raise BrokenPromiseError(f"{name} left files behind: {left}")
        found = _results(name, output)
        if name == "analyze" and found not in (other, self.expected[name]):
            raise BrokenPromiseError(f"neither the old nor the new result: {sorted(found)}")
        if wrong := {
            path for path, digest in found.items() if name != "analyze" and self.expected[name][path] != digest
        }:
            raise BrokenPromiseError(f"{name} left something else than it makes: {sorted(wrong)}")
        if name == "import" and found:
            return "import done"  # A second one with this name would be refused.
        shutil.rmtree(folder / "temporary", ignore_errors=True)
        again = self._run(name, folder, _NEVER_S, signal.SIGKILL)
        if again.code or _results(name, output) != self.expected[name]:
            raise BrokenPromiseError(f"{name}, given again, ended with {again.code}: {again.said[-2000:]}")
        if left := _hidden(name, output):
            raise BrokenPromiseError(f"{name}, given again, left behind: {left}")
        return f"{name} {'done' if stopped.code == 0 else 'stopped'}"

    def _run(self, name: str, folder: Path, seconds: float, number: int) -> Stopped:
        """Run a command that writes its results to ``out`` in `folder`; return how it ended."""
        folder.mkdir(exist_ok=True)
        output = folder / "out"
        environment = {"XDG_DATA_HOME": str(output), "XDG_CONFIG_HOME": str(self.base / "config")}
        return stop_after(self.commands[name](output), seconds, number, folder / "temporary", environment=environment)


def _results(name: str, output: Path) -> dict[str, str]:
    """Digests, by path, of everything that a command promises to write atomically, ignoring times."""
    if name == "train":
        weights = output / "model" / "liver.safetensors"
        return {"model": _digest(load_file(weights))} if weights.exists() else {}
    if name == "import":
        model = output / "liverxai" / "models" / "mine"
        return {"mine": _loads(model)} if model.exists() else {}
    folders = [output] if name == "analyze" else sorted((output / "cases").glob("*"))
    found = {}
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if path.name in ("segmentation.nii.gz", "measurements.json"):
                found[f"{folder.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _loads(model: Path) -> str:
    try:
        return str(load_model(model).spec.name)
    except LiverXAIError as error:
        return str(error)


def _digest(weights: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(json.dumps({name: value.tolist() for name, value in weights.items()}).encode()).hexdigest()


def _hidden(name: str, output: Path) -> list[str]:
    """Hidden files and locks in the results; the empty folder for parts of downloads and imports may remain."""
    found = [path for path in output.rglob("*") if path.name.startswith((".", "lock-"))]
    return [str(path) for path in found if not (name == "import" and path.is_dir() and not any(path.iterdir()))]
