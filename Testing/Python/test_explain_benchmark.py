# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of explanations measure every method and layer, and the cost of a map, in one run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_toys import trained_model, two_lesion_case

from LiverXAILib.benchmarks.cost import benchmark_cost, format_cost
from LiverXAILib.benchmarks.explanations import explain
from LiverXAILib.benchmarks.explanations.explain import _kept, benchmark_explain
from LiverXAILib.benchmarks.explanations.method_tables import (
    format_table,
    intervals,
    ranked,
    summarize,
    write_benchmark,
)
from LiverXAILib.cli import main
from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.explain import METHODS, Target
from LiverXAILib.explain.faithfulness import FaithfulnessEvaluator
from LiverXAILib.explain.faithfulness.randomization import shuffled_networks, spearman
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.inference.lesions import lesion_mask
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.orientation import reorient
from LiverXAILib.volumes.volume import Grid, Volume

METHOD_NAMES, LAYERS = ["hires-cam", "layer-cam"], ["bottleneck", "decoder.0"]


def benchmarked(points):
    volume, _ = two_lesion_case(trained_model())
    # A case without a tumor gives no rows for it, and no error.
    empty = Volume(volume.array * 0, volume.ijk_to_lps)
    return benchmark_explain(
        {"two": volume, "none": empty},
        trained_model(),
        targets=["lesion:1"],
        methods=METHOD_NAMES,
        layers=LAYERS,
        points=points,
        field_mm=60,
        device="cpu",
    )


@pytest.fixture(scope="module")
def with_curves():
    return benchmarked(points=4)


def test_each_map_is_examined_and_written_to_a_table_and_a_picture(with_curves, tmp_path):
    model, rows = trained_model(), with_curves
    volume, segmentation = two_lesion_case(model)
    assert [(row["case"], row["method"], row["layer"]) for row in rows] == [
        ("two", method, layer) for method in METHOD_NAMES for layer in LAYERS
    ]
    # The same as examining each map on its own.
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("lesion:1"), segmentation, model, run)
    evaluator = FaithfulnessEvaluator(run, question, points=4, limit_mm=60)
    alone = evaluator.map(METHODS["hires-cam"], "decoder.0")
    assert rows[1]["gain"] == pytest.approx(evaluator.curves(alone)["gain"], abs=1e-3)
    assert rows[1]["gain_edges"] == evaluator.controls["edges"]["gain"]
    alike = []
    for draw in range(5):
        ((_, networks),) = shuffled_networks(evaluator.run, 1, draw)
        alike.append(spearman(alone, evaluator.map(METHODS["hires-cam"], "decoder.0", networks)))
    assert rows[1]["spearman_shuffled"] == pytest.approx(sorted(alike)[2], abs=1e-3)
    noisy = evaluator.map(METHODS["hires-cam"], "decoder.0", noise=True)
    assert rows[1]["spearman_noise"] == pytest.approx(spearman(alone, noisy), abs=1e-3)

    table, text, picture = write_benchmark(rows, tmp_path / "new")
    assert text.read_text(encoding="utf-8").startswith("Maps of 1 lesion;")
    with table.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [float(row["gain"]) for row in read] == [row["gain"] for row in rows]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "hires-cam" in format_table(rows)


def test_the_summary_is_the_mean_over_cases():
    rows = [
        {
            "case": case,
            "target": "tumor",
            "method": "hires-cam",
            "layer": "a",
            "true": "",
            "passed": passed,
            "drop": gain,
            "verdict": "",
        }
        for case, passed, gain in (("x", True, 0.5), ("y", False, 0.1))
    ]
    rows.append({**rows[0], "target": "liver", "drop": 0.9})
    rows.append({**rows[0], "layer": "b", "drop": 0.1})
    assert summarize(rows)[0] == {
        "target": "tumor", "method": "hires-cam", "layer": "a", "maps": 2, "passed": 0.5, "drop": 0.3
    }  # fmt: skip
    assert [(row["layer"], row["maps"], row["passed"], row["drop"]) for row in ranked(rows)] == [
        ("b", 1, 1, 0.1),
        ("a", 3, 0.6667, 0.5),
    ]


def test_intervals_are_those_of_the_bootstrap_over_lesions():
    rng = np.random.default_rng(1)
    rows = [
        {"case": f"c{n}", "target": "lesion:1", "method": "m", "layer": "a", "passed": bool(n % 2), "drop": drop}
        for n, drop in enumerate(rng.normal(0.6, 0.1, 40))
    ]
    (row,) = intervals(rows, ["passed", "drop"])
    drops = np.array([one["drop"] for one in rows])
    error = 1.96 * drops.std() / np.sqrt(40)  # of the mean of forty
    assert row["drop_low"] == pytest.approx(drops.mean() - error, abs=0.01)
    assert row["drop_high"] == pytest.approx(drops.mean() + error, abs=0.01)
    assert row["passed_low"] < 0.5 < row["passed_high"]


def test_a_stopped_benchmark_goes_on_and_tells_true_from_false_lesions():
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    options = {"methods": ["hires-cam"], "layers": ["decoder.0"], "points": 0, "field_mm": 60, "device": "cpu"}
    reference = lesion_mask(segmentation, 2)
    first = benchmark_explain({"two": volume}, model, targets=["lesion:1"], references={"two": reference}, **options)
    kept: list = []
    rest = benchmark_explain(
        {"two": volume}, model, targets=["lesions"], references={"two": reference}, known=first, keep=kept.extend,
        **options,
    )  # fmt: skip
    assert [(row["target"], row["true"]) for row in first + rest] == [("lesion:1", "false"), ("lesion:2", "true")]
    assert kept == rest


def test_without_curves_the_verdicts_are_the_same_and_fewer_maps_are_made(with_curves):
    quick = benchmarked(points=0)
    assert {row["passed"] for row in quick} == {True, False}
    for one, other in zip(with_curves, quick, strict=True):
        assert {name: one[name] for name in other if name != "sentence"} == {
            name: value for name, value in other.items() if name != "sentence"
        }
    assert "gain" in format_table(with_curves)
    assert "gain" not in format_table(quick)


def test_rows_that_were_made_with_other_options_are_not_mixed(tmp_path):
    kept = tmp_path / "benchmark-explain.jsonl"
    assert _kept(kept, {"points": 5, "layers": None}) == []
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"case": "a"}\n')
    assert _kept(kept, {"points": 5, "layers": None}) == [{"case": "a"}]
    with pytest.raises(UsageError, match="made with other options"):
        _kept(kept, {"points": 0, "layers": None})


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(UsageError, match="nothing to compare"):
        write_benchmark([], tmp_path)
    with pytest.raises(UsageError, match="no explanation method 'magic'"):
        benchmark_explain({}, trained_model(), methods=["magic"])


def test_the_cost_of_a_map_stands_beside_that_of_other_libraries():
    model = trained_model()
    volume, _ = two_lesion_case(model)
    (network,) = model.members(model.spec.stages[0])
    rows = benchmark_cost(volume, model, device="cpu", repeats=1)
    names = [row["what"] for row in rows]
    assert names[:5] == [
        "forward pass",
        "LiverXAI, one question",
        "LiverXAI, four questions",
        "captum LayerGradCam",
        "MONAI GradCAM",
    ]
    assert names[5].startswith("forward pass, ")
    assert all(row["seconds"] > 0 and row["peak_mib"] >= 0 for row in rows)
    assert rows[0]["forward_passes"] == 1
    assert "captum" in format_cost(rows)
    # The network is returned frozen, without hooks of other libraries.
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


@pytest.mark.parametrize("kind", ["cost", "explain"])
def test_the_command_line_knows_the_benchmarks(kind, capsys):
    with pytest.raises(SystemExit) as left:
        main(["benchmark", kind, "--help"])
    assert left.value.code == 0
    assert "CASE" in capsys.readouterr().out


def test_the_reference_is_read_as_elsewhere_and_cases_are_named_as_elsewhere(tmp_path):
    grid = Grid((4, 6, 8), np.diag([2.0, 2.0, 3.0, 1.0]))
    tumors = np.zeros(grid.shape, np.uint8)
    tumors[1:3, 2:4, 5] = 1
    liver = np.zeros(grid.shape, np.uint8)
    liver[:, 1:5, 3:7] = 1
    for name, array in (("mask.nii.gz", tumors), ("labels.nrrd", liver + tumors)):
        write_volume(Volume(array, grid.ijk_to_lps), tmp_path / name)
        assert (explain._tumors(tmp_path / name, grid) == (tumors > 0)).all()
    flipped = reorient(Volume(liver + tumors, grid.ijk_to_lps), "IAR")
    write_volume(flipped, tmp_path / "flipped.nrrd")
    assert (explain._tumors(tmp_path / "flipped.nrrd", grid) == (tumors > 0)).all()
    with pytest.raises(InputError, match="voxels"):
        explain._tumors(tmp_path / "mask.nii.gz", Grid((5, 6, 8), grid.ijk_to_lps))
    paths = [Path("a/image.nii.gz"), Path("b/image.nrrd"), Path("c/v1.2.nii")]
    assert list(explain.named_cases(paths)) == ["a", "b", "v1.2"]
    with pytest.raises(UsageError, match="two cases 'ct'"):
        explain.named_cases([Path("a/ct.nii"), Path("b/ct.nii")])
