# SPDX-License-Identifier: Apache-2.0
"""What Python shows of an object is short: a result in a notebook or a traceback is not buried in voxels."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from followup_toys import liver_analysis
from toys import ball_phantom, threshold_model

import LiverXAILib as lx
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.inference.masks import Mask
from LiverXAILib.inference.outlines import Component
from LiverXAILib.inference.windows import WindowPlan
from LiverXAILib.labels.label_map import LabelMap
from LiverXAILib.measure import measure_uncertainty
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.volume import Grid

LIBRARY = Path(__file__).parents[2] / "LiverXAILib"
LONGEST = 200


@pytest.fixture(scope="module")
def results() -> list[object]:
    """One of each: a result with heat maps and answers, and all that it consists of; a comparison; a phantom …"""
    volume, truth = ball_phantom(Grid((30, 36, 36), np.diag([4.0, 4.0, 4.0, 1.0])))
    model = threshold_model()
    analysis = lx.analyze(volume, model, targets=["liver", "tumor"], device="cpu", regions=True)
    run = StageContext.prepare(volume, model, model.spec.stages[0], analysis.segmentation, torch.device("cpu"))
    before, now = (liver_analysis([((10, 0, 0), radius), ((-15, 0, 5), 6)]) for radius in (8, 10))
    return [
        model,
        analysis,
        run,
        build_score(lx.Target.parse("tumor"), analysis.segmentation, model, run),
        measure_uncertainty(volume, model, analysis.segmentation, device="cpu"),
        LabelMap(truth, ("liver", "tumor")),
        lx.compare([before, now], days=[0, 30]),
        make_phantom(1, spacing_mm=(6.0, 6.0, 6.0)),
        lx.load_model("default").spec,
    ]


def parts(value: object) -> Iterator[object]:
    """An object and, recursively, everything in its fields."""
    yield value
    inner: list[object] = []
    if dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        inner = list(value)
    for one in inner:
        yield from parts(one)


def holds_arrays(value: object) -> bool:
    return any(isinstance(part, np.ndarray | torch.Tensor) for part in parts(value))


def test_objects_that_hold_arrays_or_are_public_are_shown_in_a_few_words(results):
    public = tuple(kind for name in lx.__all__ if isinstance(kind := getattr(lx, name), type))
    seen = {}
    for value in parts(results):
        named_tuple = isinstance(value, tuple) and type(value) is not tuple
        if ((dataclasses.is_dataclass(value) or named_tuple) and holds_arrays(value)) or isinstance(value, public):
            seen.setdefault(type(value).__name__, repr(value))
    assert {name: text for name, text in seen.items() if len(text) >= LONGEST or "\n" in text} == {}
    expected = {"Analysis", "Comparison", "Counterfactual", "Explanation", "Grid", "Measurements", "Model", "ModelSpec"}
    assert seen.keys() >= expected | {"Phantom", "Segmentation", "Study", "Volume"}
    grid = "36 x 36 x 30 voxels of 4 x 4 x 4 mm"
    told = {
        "Volume": f"Volume({grid}, int16)",
        "Grid": f"Grid({grid}, from LPS (0, 0, 0) mm)",
        "Segmentation": f"Segmentation(liver, tumor on {grid})",
        "Measurements": "Measurements(liver 377.9 ml, 1 lesion, 0 candidates)",
        "Explanation": "Explanation(liver by hires-cam at smooth)",
        "Counterfactual": "Counterfactual(lesion:1)",
        "Uncertainty": "Uncertainty(tumor: windows; 1 lesion)",
        "StageContext": "StageContext('all', 72 x 72 x 60 voxels of 2 x 2 x 2 mm)",
    }
    assert {name: seen[name] for name in told} == told


def test_windows_masks_and_components_are_shown_by_their_sizes():
    plan = WindowPlan.build((8, 12, 20), (8, 8, 8))
    assert repr(plan) == "WindowPlan(8 of 8 x 8 x 8 in 8 x 12 x 20 voxels)"
    mask = Mask(Box.full((2, 3, 4)), np.ones((2, 3, 4), bool))
    assert repr(mask) == "Mask(4 x 3 x 2 voxels)"
    component = Component(3, np.zeros((1, 1, 1)), 1.5, np.array([1.0, -2.25, 30.0]))
    assert repr(component) == "Component(3, 1.5 mm, at LPS (1.0, -2.2, 30.0) mm)"


#: Vectors and 4x4 matrices, which are worth showing.
SMALL = {"center", "center_lps_mm", "down", "high", "ijk_to_lps", "low", "middle", "orientation", "pixel_spacing",
         "position", "right"}  # fmt: skip


def test_every_public_dataclass_keeps_its_arrays_out_of_what_is_shown():
    shown = []
    for path in sorted(LIBRARY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if not any("dataclass" in ast.unparse(one) for one in node.decorator_list):
                continue
            if any(isinstance(one, ast.FunctionDef) and one.name == "__repr__" for one in node.body):
                continue
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and any(
                    kind in ast.unparse(field.annotation) for kind in ("ndarray", "Tensor")
                ):
                    hidden = field.value is not None and "repr=False" in ast.unparse(field.value)
                    if not hidden and ast.unparse(field.target) not in SMALL:
                        shown.append(f"{path.relative_to(LIBRARY)}: {node.name}.{ast.unparse(field.target)}")
    assert shown == []
