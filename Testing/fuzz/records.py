# SPDX-License-Identifier: Apache-2.0
"""Damaged records of earlier batches: their cases are open again, and a later batch never fails because of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from toys import ball_phantom, threshold_model

from LiverXAILib.batch.cases import find_cases
from LiverXAILib.batch.manifest import Manifest, last_states, read_manifest
from LiverXAILib.batch.store import RECORD, Store
from LiverXAILib.batch.summary import write_summary
from LiverXAILib.pipeline import analyze, write_analysis
from LiverXAILib.volumes.volume import Grid

from .kind import BrokenPromiseError, Generator, Kind
from .mutate import change_json, change_json_file, damage

_CASES = 3


class Records(Kind):
    """Reads the output folder of a batch with changes in some files, and writes its summary."""

    limit_s = 90.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.scans = folder / "scans"
        self.scans.mkdir()
        for number in range(_CASES):
            (self.scans / f"case{number}.nii.gz").write_bytes(bytes(number + 1))
        volume, _ = ball_phantom(Grid((20, 24, 24), np.diag([6.0, 6.0, 6.0, 1.0])))
        write_analysis(analyze(volume, threshold_model(), targets=[], device="cpu"), folder / "result", report=False)
        self.output = folder / "output"
        store = Store(self.output)
        store.open()
        manifest = Manifest(store)
        manifest.append("run", arguments=["x"], cases=_CASES)
        self.found = find_cases(self.scans, keep_names=True)
        for case in self.found.cases:
            part = store.part(case.folder)
            part.mkdir()
            for name in ("measurements.json", "provenance.json"):
                shutil.copyfile(folder / "result" / name, part / name)
            kept = {
                "input": {"path": str(case.path), "series": None, "sha256": "0" * 64, "stamp": "0"},
                "model": {"name": "toy", "version": "1", "sha256": ["0" * 64]},
                "settings": {"targets": [], "method": "seg-grad-cam"},
                "software": "0",
                "host": "here",
                "times": {"started": 1.0, "reading": 0.1, "analyzing": 0.2, "writing": 0.1, "finished": 2.0},
                "warnings": [],
            }
            about = {"case": case.id, "label": case.label, "folder": case.folder, "state": "done"}
            store.commit(part, case.folder, {**about, **kept, "run": store.token, "device": "cpu"})
            manifest.append("case", **about, **kept)
        manifest.close()
        store.close()

    def run(self, rng: Generator, folder: Path) -> str:
        output = folder / "output"
        shutil.copytree(self.output, output)
        files = [path for path in sorted(output.rglob("*")) if path.suffix in (".json", ".jsonl")]
        for _ in range(int(rng.integers(1, 4))):
            self._change(rng, files[int(rng.integers(len(files)))])
        before = {path: path.stat().st_size for path in (output / "cases").iterdir()}
        lines = read_manifest(output / "manifest")
        last_states(lines)
        store = Store(output)
        for case in self.found.cases:
            store.record(case.folder)
        store.open()
        try:
            write_summary(store, self.found)
        finally:
            store.close()
        if missing := [path.name for path in before if not path.exists()]:
            raise BrokenPromiseError(f"finished cases are gone: {missing}")
        return "read" if (output / "cases" / self.found.cases[0].folder / RECORD).exists() else "open again"

    @staticmethod
    def _change(rng: Generator, path: Path) -> None:
        text = path.read_bytes()
        if path.suffix == ".json" and rng.random() < 0.6:
            change_json_file(rng, path)
            return
        if path.suffix == ".jsonl" and rng.random() < 0.6:
            lines = text.split(b"\n")
            number = int(rng.integers(len(lines)))
            try:
                lines[number] = json.dumps(change_json(rng, json.loads(lines[number]))).encode()
            except (ValueError, LookupError):
                lines[number] = damage(rng, lines[number])
            path.write_bytes(b"\n".join(lines))
            return
        path.write_bytes(damage(rng, text))
