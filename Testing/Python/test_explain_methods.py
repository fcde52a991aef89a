# SPDX-License-Identifier: Apache-2.0
"""Each method computes what captum and torch-cam compute, in 2-D and 3-D, where those libraries have the method."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from pathlib import Path

import captum.attr
import numpy as np
import pytest
import torch
from explain_toys import tiny_model, with_labels
from torchcam.methods import GradCAM, LayerCAM
from toys import ball_phantom, threshold_model

import LiverXAILib as lx
from LiverXAILib.explain import CATALOG, DEFAULT_METHOD, METHODS, Target
from LiverXAILib.explain.integrated import integrated_gradients
from LiverXAILib.explain.layers import LayerTap
from LiverXAILib.explain.methods import TensorFile, seg_grad_cam_plus_plus
from LiverXAILib.explain.occlusion import occlusion
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.explain.stitching import stage_maps
from LiverXAILib.inference import segment
from LiverXAILib.options import Options
from LiverXAILib.volumes.volume import Grid

# One window, on the network's own grid: nothing is resampled between input and map.
STAGES = {
    3: {"window": (24, 24, 24)},
    2: {"dimensions": 2, "window": (1, 24, 24), "divisor": (1, 2, 2)},
}


def a_run(dimensions):
    shape = (24, 24, 24) if dimensions == 3 else (1, 24, 24)
    volume, labels = ball_phantom(Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0])), 20.0, 26.0)
    model = tiny_model(**STAGES[dimensions])
    segmentation = with_labels(volume, model, labels)
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    return (
        run,
        build_score(Target.parse("tumor"), segmentation, model, run),
        torch.from_numpy(segmentation.mask("tumor")),
    )


def as_batch(run):
    """The run's only window as network input: (1, 1, ...)."""
    return run.image[None, None] if run.stage.dimensions == 3 else run.image[:, None]


def mean_logit(mask):
    """The score as a function of the network's raw output, (1, channels, ...) → (1,)."""
    return lambda output: output[:, 2].reshape(mask.shape)[mask].double().mean()[None]


def upsampled(lattice, run):
    """A library's map (1, 1, ...) at the size of the window."""
    mode = "trilinear" if run.stage.dimensions == 3 else "bilinear"
    size = run.plan.window[3 - run.stage.dimensions :]
    return torch.nn.functional.interpolate(lattice, size=size, mode=mode, align_corners=False).reshape(run.plan.window)


def assert_same(values, expected, tolerance=1e-5):
    assert float(expected.abs().max()) > 0
    assert float((values - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("layer", ["encoder", "bottleneck", "decoder"])
@pytest.mark.parametrize("method", ["seg-grad-cam", "hires-cam"])
def test_maps_agree_with_captum(method, layer, dimensions):
    run, question, mask = a_run(dimensions)
    network = run.networks[0]
    score = mean_logit(mask)
    kind = captum.attr.LayerGradCam if method == "seg-grad-cam" else captum.attr.LayerGradientXActivation
    oracle = kind(lambda x: score(network(x)), network.get_submodule(layer))
    expected = oracle.attribute(as_batch(run)).detach().sum(dim=1, keepdim=True)
    (result,) = stage_maps(run, [question], METHODS[method], layer)
    assert_same(result.values, upsampled(expected, run))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("method", "oracle"), [("seg-grad-cam", GradCAM), ("layer-cam", LayerCAM)])
def test_maps_agree_with_torch_cam(method, oracle, dimensions):
    run, question, mask = a_run(dimensions)
    network, score = run.networks[0], mean_logit(mask)
    network.requires_grad_(True)  # torch-cam differentiates the whole network
    with oracle(network, "decoder") as extractor:
        output = network(as_batch(run))
        (expected,) = extractor(scores=output, targets=lambda out: score(out[None])[0], normalized=False)
    network.requires_grad_(False)
    (result,) = stage_maps(run, [question], METHODS[method], "decoder")
    assert_same(result.values.clamp_min(0), expected.detach().reshape(run.plan.window))


def test_grad_cam_plus_plus_has_the_derivatives_of_its_definition():
    """Its weights use the second and third derivatives of exp(S), which are computed by autograd here."""
    torch.manual_seed(0)
    activation = torch.rand(3, 2, 2, 2, dtype=torch.float64).requires_grad_()
    direction = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    score = (activation * direction).sum()
    (gradient,) = torch.autograd.grad(score, activation, retain_graph=True)
    (first,) = torch.autograd.grad(score.exp(), activation, create_graph=True)
    weights = torch.zeros(3, dtype=torch.float64)
    for index in np.ndindex(3, 2, 2, 2):
        (row,) = torch.autograd.grad(first[index], activation, create_graph=True)
        second = row[index]
        (row,) = torch.autograd.grad(second, activation, retain_graph=True)
        third = row[index]
        share = second / (2 * second + activation[index[0]].sum() * third)
        weights[index[0]] += (share * torch.relu(gradient[index])).detach()

    class Record:
        cells = 8

        def __iter__(self):
            yield activation.detach(), gradient

    (values,) = seg_grad_cam_plus_plus(Record())
    torch.testing.assert_close(values, torch.einsum("k,kxyz->xyz", weights, activation.detach()))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_integrated_gradients_agree_with_captum(dimensions):
    run, question, mask = a_run(dimensions)
    network, score = run.networks[0], mean_logit(mask)
    oracle = captum.attr.IntegratedGradients(lambda x: score(network(x)))
    image = as_batch(run)
    expected = oracle.attribute(image, baselines=run.tissue, n_steps=5, method="riemann_middle", internal_batch_size=1)
    result = integrated_gradients(run, question, run.tissue, steps=5)
    assert_same(result.values, expected.detach().float().reshape(run.plan.window))


def test_integrated_gradients_are_complete_and_say_how_complete():
    run, question, _ = a_run(3)
    errors = []
    for steps in (4, 40):
        result = integrated_gradients(run, question, run.air, steps=steps)
        total = float(result.values.double().sum())
        assert result.details["completeness_error"] == pytest.approx(abs(total - result.details["score_change"]))
        errors.append(result.details["completeness_error"] / abs(result.details["score_change"]))
        assert bool(result.warnings) == (errors[-1] > 0.1)
    assert errors[1] < 0.05
    assert errors[1] < errors[0]


def test_integrated_gradients_start_from_plain_liver_or_from_air():
    run, question, _ = a_run(2)
    assert (float(run.to_hu(torch.tensor(run.tissue))), float(run.to_hu(torch.tensor(run.air)))) == (100, -200)
    for method, baseline in (("integrated-gradients", run.tissue), ("integrated-gradients-air", run.air)):
        (result,) = stage_maps(run, [question], METHODS[method])
        expected = integrated_gradients(run, question, baseline, steps=16)
        assert_same(result.values, expected.values)
        assert result.details["steps"] == 16
        assert result.details["score_change"] == pytest.approx(expected.details["score_change"], rel=1e-5)


@pytest.mark.parametrize(
    "image_map",
    [
        lambda run, question: integrated_gradients(run, question, run.tissue, steps=2),
        # Each network runs once for the image itself and once for each of nine squares.
        lambda run, question: occlusion(run, question, budget=10 * len(run.networks), baseline=run.blurred),
    ],
)
def test_the_map_of_an_ensemble_is_the_mean_of_its_networks_maps(image_map):
    volume, labels = ball_phantom(Grid((1, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0])), 20.0, 26.0)
    model = tiny_model(members=2, **STAGES[2])
    segmentation = with_labels(volume, model, labels)
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("tumor"), segmentation, model, run)
    together = image_map(run, question)
    alone = [image_map(dataclasses.replace(run, networks=[network]), question) for network in run.networks]
    assert_same(together.values, (alone[0].values + alone[1].values) / 2)
    if "score_change" in together.details:
        changes = [result.details["score_change"] for result in alone]
        assert together.details["score_change"] == pytest.approx(np.mean(changes), rel=1e-4)


def test_incomplete_integrated_gradients_come_with_a_warning():
    run, question, _ = a_run(3)
    result = integrated_gradients(run, question, run.air, steps=1)
    assert result.details["completeness_error"] > 0.1 * abs(result.details["score_change"])
    assert "incomplete" in result.warnings[0]


def test_occlusion_agrees_with_captum():
    run, question, mask = a_run(3)
    network, score = run.networks[0], mean_logit(mask)
    result = occlusion(run, question, budget=28, baseline=run.blurred)
    edge = 8
    assert result.details["occluder_mm"] == [2.0 * edge] * 3
    oracle = captum.attr.Occlusion(lambda x: score(network(x)))
    image = as_batch(run)
    expected = oracle.attribute(
        image,
        sliding_window_shapes=(1, edge, edge, edge),
        strides=(1, edge, edge, edge),
        baselines=run.blurred[None, None],
    )
    # captum spreads each drop over its cube; the library interpolates between the cubes' centers.
    centers = slice(edge // 2 - 1, None, edge)
    drops = expected[0, 0, centers, centers, centers]
    assert_same(result.values, upsampled(drops[None, None].float(), run))


@pytest.mark.parametrize("changes", [{"window": (24, 24, 24)}, {"window": (16, 16, 16), "members": 2}])
def test_occlusion_keeps_to_its_budget(changes):
    volume, labels = ball_phantom(Grid((24, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0])), 20.0, 26.0)
    model = tiny_model(**changes)
    segmentation = with_labels(volume, model, labels)
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("tumor"), segmentation, model, run)
    calls = []
    handles = [network.register_forward_hook(lambda *_: calls.append(1)) for network in run.networks]
    result = occlusion(run, question, budget=100)
    for handle in handles:
        handle.remove()
    assert 50 < len(calls) == result.details["network_runs"] <= 101


def test_occlusion_replaces_by_plain_tissue_and_by_blur_only_where_there_is_none():
    volume, _ = ball_phantom(Grid((64, 64, 64), np.diag([2.0, 2.0, 2.0, 1.0])), lesion_mm=20.0)
    model = threshold_model(window=(64, 64, 64))
    segmentation = segment(volume, model, device="cpu")
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    lesion = build_score(Target.parse("lesion:1"), segmentation, model, run)
    result = occlusion(run, lesion, budget=40)
    assert result.details["replaced_by"] == "plain tissue"
    # Replacing the lesion (200 HU) by liver (100 HU) lowers the logit by 10; blurring the lesion would not.
    drop = float(result.values.max()) / 10
    blurred = float(occlusion(run, lesion, budget=40, baseline=run.blurred).values.max()) / 10
    assert drop > 1.1 * blurred
    only_lesion = volume.with_array(np.where(segmentation.mask("tumor"), 2, 0).astype(np.uint8))
    bare = dataclasses.replace(run, segmentation=dataclasses.replace(segmentation, labels=only_lesion))
    assert occlusion(bare, lesion, budget=10).details["replaced_by"] == "blur"


def test_hires_cam_says_how_much_of_the_score_its_layer_accounts_for():
    """Without skips and biases, all of it; with a skip that bypasses the layer, less."""
    run, question, _ = a_run(3)
    (result,) = stage_maps(run, [question], METHODS["hires-cam"], "bottleneck")
    with LayerTap(run.networks[0], "bottleneck", run.stage) as tap:
        logits = run.forward(0, run.plan.boxes[0])
        score = question.score(logits, question.window_weights(run.plan.boxes[0], torch.ones(logits.shape[1:])))
        held = tap.take()
        (gradient,) = torch.autograd.grad(score, held)
    assert result.details["accounts_for"] == pytest.approx(float(((gradient * held).sum() / score).detach()), abs=1e-3)
    assert "accounts_for" not in next(stage_maps(run, [question], METHODS["layer-cam"], "bottleneck")).details


def test_every_method_of_the_catalog_is_computed_in_the_way_it_says():
    assert list(METHODS) == list(CATALOG)
    for name, method in METHODS.items():
        assert method.info is CATALOG[name]
        assert (method.layer_maps is not None) == (method.info.kind == "layer")
        assert (method.image_map is not None) == (method.info.kind == "image")


def test_the_table_of_methods_in_the_docs_is_the_catalog():
    page = (Path(__file__).parents[2] / "docs" / "explanations.md").read_text(encoding="utf-8")
    for info in CATALOG.values():
        default = " (default)" if info.name == DEFAULT_METHOD else ""
        assert f"| `{info.name}`{default} | {info.description} | {info.place_specific} |" in page


def test_everybody_explains_by_the_method_that_measures_best():
    assert DEFAULT_METHOD in METHODS
    assert Options().method == DEFAULT_METHOD
    for function in (lx.explain, lx.analyze):
        assert inspect.signature(function).parameters["method"].default == DEFAULT_METHOD
    module = (Path(__file__).parents[2] / "LiverXAI" / "LiverXAI.py").read_text(encoding="utf-8")
    assert set(re.findall(r'\bmethod: str = "([^"]+)"', module)) == {DEFAULT_METHOD}


def test_tensors_that_do_not_fit_into_memory_come_back_from_disk():
    with tempfile.SpooledTemporaryFile(max_size=100) as file:
        stored = TensorFile(file)
        tensors = [torch.randn(2, 3, 4, 5) for _ in range(5)]
        for tensor in tensors:
            stored.append(tensor)
        assert len(stored) == 5
        for index in (3, 0, 4):
            torch.testing.assert_close(stored[index], tensors[index])
        with pytest.raises(ValueError, match="shape"):
            stored.append(torch.zeros(2))
