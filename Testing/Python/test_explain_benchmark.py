# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of explanations measure every method and layer, and what a map costs, in one run."""

from __future__ import annotations

import csv

import pytest
from explain_toys import trained_model, two_lesion_case

from LiverXAILib.cli import main
from LiverXAILib.errors import UsageError
from LiverXAILib.evaluation.benchmark_cost import benchmark_cost, format_cost
from LiverXAILib.evaluation.benchmark_explain import (
    benchmark_explain,
    format_table,
    summarize,
    write_benchmark,
)
from LiverXAILib.explain import explain
from LiverXAILib.volumes.volume import Volume


def test_each_map_is_examined_and_written_to_a_table_and_a_picture(tmp_path):
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    # A case without a tumor gives no rows for it, and no error.
    empty = Volume(volume.array * 0, volume.ijk_to_lps)
    layers = ["bottleneck", "decoder.0"]
    methods = ["hires-cam", "layer-cam"]
    rows = benchmark_explain(
        {"two": volume, "none": empty}, model, targets=["tumor"], methods=methods, layers=layers, device="cpu"
    )
    assert [(row["case"], row["method"], row["layer"]) for row in rows] == [
        ("two", method, layer) for method in methods for layer in layers
    ]
    card = explain(
        volume, model, segmentation, "tumor", "hires-cam", "decoder.0", device="cpu", check=True
    ).faithfulness
    assert rows[1]["gain"] == card["curves"]["gain"]
    assert rows[1]["gain_edges"] == card["controls"]["edges"]["gain"]
    assert rows[1]["spearman_shuffled"] == card["randomization"]["spearman"][-1]
    assert rows[1]["passed"] == card["passed"]

    table, picture = write_benchmark(rows, tmp_path / "new")
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
            "passed": passed,
            "gain": gain,
            "verdict": "",
        }
        for case, passed, gain in (("x", True, 0.5), ("y", False, 0.1))
    ]
    assert summarize(rows) == [
        {"target": "tumor", "method": "hires-cam", "layer": "a", "cases": 2, "passed": 0.5, "gain": 0.3}
    ]


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(UsageError, match="nothing to compare"):
        write_benchmark([], tmp_path)
    with pytest.raises(UsageError, match="no method 'magic'"):
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
    # The network is given back frozen, without hooks of other libraries.
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


@pytest.mark.parametrize("kind", ["cost", "explain"])
def test_the_command_line_knows_the_benchmarks(kind, capsys):
    with pytest.raises(SystemExit) as left:
        main(["benchmark", kind, "--help"])
    assert left.value.code == 0
    assert "CASE" in capsys.readouterr().out
