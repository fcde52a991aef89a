# SPDX-License-Identifier: Apache-2.0
"""The scripts that make pictures of the documentation from the bundled model still run."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from LiverXAILib.phantoms import Phantom, make_phantom
from LiverXAILib.volumes.volume import Volume

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.usefixtures("one_thread")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def coarse_phantom(seed: int) -> Phantom:
    """With a third of the voxels: a script does not run differently with more."""
    return make_phantom(seed, spacing_mm=(2.0, 2.0, 4.0))


def test_the_picture_of_a_counterfactual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = script("pictures")
    monkeypatch.setattr(pictures, "OUTPUT", tmp_path / "counterfactual.png")
    monkeypatch.setattr(pictures, "make_phantom", coarse_phantom)
    pictures.main()
    with Image.open(tmp_path / "counterfactual.png") as picture:
        assert picture.width > 3 * picture.height  # the lesion as it is, without it, elsewhere, alone


def test_the_picture_of_the_packages_is_up_to_date(tmp_path: Path) -> None:
    """If this fails, draw it again: python docs/dependencies.py."""
    pytest.importorskip("networkx")
    dependencies = script("dependencies")
    graph = dependencies.without_small_modules(dependencies.dependency_graph())
    dependencies.draw(graph, tmp_path / "drawn.svg")
    drawn, kept = (
        ElementTree.parse(path).find(".//{http://purl.org/dc/elements/1.1/}description")
        for path in (tmp_path / "drawn.svg", dependencies.OUTPUT)
    )
    assert drawn is not None
    assert drawn.text == dependencies.description(graph)
    assert kept is not None
    assert kept.text == drawn.text
    lines = dependencies.lines_of_packages()
    assert {"volumes", "volumes.dicom", "explain.faithfulness", "models.formats", "batch.cluster"} <= lines.keys()
    assert all(inner.rpartition(".")[2] in drawn.text for inner in lines if "." in inner)


def real_scan() -> tuple[Volume, np.ndarray, np.ndarray]:
    """What stands for a scan with an outlined tumor: CT, liver, tumor."""
    phantom = coarse_phantom(3004)
    return phantom.ct, phantom.truth.array > 0, phantom.truth.array == 2


def test_the_table_and_the_pictures_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = script("failures")
    monkeypatch.setattr(failures, "make_phantom", coarse_phantom)
    monkeypatch.setattr(failures, "SEEDS", range(3004, 3005))
    monkeypatch.setattr(sys, "argv", ["failures.py", "--output", str(tmp_path), "--data", str(tmp_path)])
    monkeypatch.setattr(
        failures, "PATIENTS", {"patient": (failures.Scan("scan", "labeled"), failures.Scan("x", "none"))}
    )
    monkeypatch.setattr(failures, "read_scan", lambda data, scan: real_scan())
    failures.main()
    assert "phantom 3004  tumor" in capsys.readouterr().out
    for name in ("failures.png", "failures-real.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800
