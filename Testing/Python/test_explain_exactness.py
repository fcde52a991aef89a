# SPDX-License-Identifier: Apache-2.0
"""Maps stitched from windows are those of one autograd graph over the whole image.

The reference builds that graph: every window of every network at once, the blended logits, one score on the input's
grid, one backward pass. It shares only the network call and the window plan with the library's stitching.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from explain_toys import tiny_model, trained_model, two_lesion_case, with_labels
from toys import ball_phantom

from LiverXAILib.explain import METHODS, Target, explain, explain_all
from LiverXAILib.explain.explainer import to_input_grid
from LiverXAILib.explain.layers import LayerTap, lattice_grid
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.explain.stitching import stage_maps
from LiverXAILib.inference.stages import logit_margin, mirrorings, run_network, stage_input, stage_plan
from LiverXAILib.models import Model
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.resample import resample
from LiverXAILib.volumes.volume import Grid, Volume

SPACING = (2.2, 1.9, 2.6)

CASES = {
    "one window": {"window": (64, 64, 64), "folded": False},  # like a network in another format
    "overlapping windows": {"window": (16, 16, 16)},
    "little overlap": {"window": (16, 24, 20), "overlap": 0.2},
    "padded to the window": {"window": (48, 20, 40), "pad_to_window": True},
    "ensemble": {"window": (24, 24, 24), "members": 3},
    "mirrored": {"window": (24, 24, 24), "members": 2, "mirror_axes": (0, 2)},
    "slice by slice": {"dimensions": 2, "window": None, "divisor": (1, 2, 2)},
    "slices in windows": {"dimensions": 2, "window": (1, 20, 18), "members": 2, "divisor": (1, 2, 2)},
}
METHOD_NAMES = ["seg-grad-cam", "seg-grad-cam++", "hires-cam", "seg-xres-cam", "layer-cam"]


@cache
def a_case(**changes):
    # 21, 24 and 17 voxels at odd spacings: no stage grid is divisible by a window or a stride.
    volume, labels = ball_phantom(Grid((17, 24, 21), np.diag([*SPACING, 1.0])), 20.0, 7.0)
    model = tiny_model(**changes)
    return volume, model, with_labels(volume, model, labels)


def one_graph(volume, model, segmentation, score_of, layer):
    """Activations and gradients of every window, network and mirroring, from one graph over the whole image."""
    (stage,) = model.spec.stages
    grid = segmentation.stage_grids[stage.name]
    plan = stage_plan(stage, grid)
    image = plan.pad(stage_input(volume, stage, grid), (-200 - 50) / 100)
    held, logits = [], 0
    passes = [(network, axes) for network in model.members(stage) for axes in mirrorings(stage)]
    for network, axes in passes:
        hook = dict(network.named_modules())[layer].register_forward_hook(
            lambda module, inputs, output: held.append(output.detach().requires_grad_()) or held[-1] * 1
        )
        for box in plan.boxes:
            window = run_network(network, image[box].flip(axes), stage).flip([axis + 1 for axis in axes])
            before = (box[0].start, plan.padded_shape[0] - box[0].stop)
            rows = (box[1].start, plan.padded_shape[1] - box[1].stop)
            columns = (box[2].start, plan.padded_shape[2] - box[2].stop)
            logits = logits + torch.nn.functional.pad(window * plan.weight(box), (*columns, *rows, *before))
        hook.remove()
    logits = plan.unpad(logits / len(passes))
    score = score_of(logits, lambda values: resample(values, grid, volume.grid))
    gradients = torch.autograd.grad(score, held)
    if stage.dimensions == 2:
        held, gradients = ([t.transpose(0, 1) for t in ts] for ts in (held, gradients))
    else:
        held, gradients = ([t[0] for t in ts] for ts in (held, gradients))
    flips = [[axis + 1 for axis in axes] for _, axes in passes for _ in plan.boxes]
    held, gradients = ([t.flip(flip) for t, flip in zip(ts, flips, strict=True)] for ts in (held, gradients))
    return plan, len(passes), held, gradients


@cache
def one_graph_of(case):
    """The case, and what :func:`one_graph` returns for its tumor: the same for all methods."""
    volume, model, segmentation = a_case(**CASES[case])
    graph = one_graph(volume, model, segmentation, tumor_score(segmentation), "bottleneck")
    return volume, model, segmentation, *graph


def tumor_score(segmentation):
    mask = torch.from_numpy(segmentation.mask("tumor"))
    return lambda logits, to_input: to_input(logits[2])[mask].mean()


def library_maps(volume, model, segmentation, target, method, layer="bottleneck"):
    (stage,) = model.spec.stages
    run = StageContext.prepare(volume, model, stage, segmentation, torch.device("cpu"))
    question = build_score(Target.parse(target), segmentation, model, run)
    (result,) = stage_maps(run, [question], METHODS[method], layer)
    return run, question, result.values


def upsampled(lattice, window):
    """Linear interpolation between cell centers at s * n + (s - 1) / 2, clamped at the border, by torch's own code."""
    fine = torch.nn.functional.interpolate(lattice[None, None], size=window, mode="trilinear", align_corners=False)
    return fine[0, 0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_stitched_map_is_that_of_one_graph(case, method):
    volume, model, segmentation, plan, members, activations, gradients = one_graph_of(case)
    _, question, values = library_maps(volume, model, segmentation, "tumor", method)
    count = len(plan.boxes)
    expected = torch.zeros(plan.padded_shape)
    for pass_index in range(members):
        a = torch.stack(activations[pass_index * count : (pass_index + 1) * count]).detach()
        g = torch.stack(gradients[pass_index * count : (pass_index + 1) * count])
        for number, box in enumerate(plan.boxes):
            weight = plan.weight(box) if method.startswith("seg-grad-cam") else 1.0
            if method == "seg-grad-cam":
                lattice = torch.einsum("k,kxyz->xyz", g.mean(dim=(0, 2, 3, 4)), a[number])
            elif method == "seg-grad-cam++":
                total = a[list(question.windows)].clamp_min(0).sum(dim=(0, 2, 3, 4))[:, None, None, None]
                h = g.double()  # g ** 3 underflows in single precision
                share = torch.where(h > 0, h**2 / (2 * h**2 + h**3 * total), 0.0) * h.clamp_min(0)
                lattice = torch.einsum("k,kxyz->xyz", share.sum(dim=(0, 2, 3, 4)).float(), a[number])
            elif method == "hires-cam":
                lattice = (g[number] * a[number]).sum(dim=0)
            elif method == "layer-cam":
                lattice = (g[number].clamp_min(0) * a[number]).sum(dim=0)
            else:
                # The reference pads blocks that cross the edge with their own mean.
                x, y, z = g.shape[2:]
                steps = [min(4, n) for n in (x, y, z)]
                extra = [-n % step for n, step in zip((x, y, z), steps, strict=True)]
                padded = torch.nn.functional.pad(g[number], (0, extra[2], 0, extra[1], 0, extra[0]), value=torch.nan)
                blocks = padded.unflatten(3, (-1, steps[2])).unflatten(2, (-1, steps[1])).unflatten(1, (-1, steps[0]))
                means = blocks.nanmean(dim=(2, 4, 6))[None]
                fine = torch.nn.functional.interpolate(means, size=padded.shape[1:], mode="trilinear")[0]
                lattice = (fine[:, :x, :y, :z] * a[number]).sum(dim=0)
            if number in question.windows:
                expected[box] += weight * upsampled(lattice, plan.window)
    assert float(expected.abs().max()) > 0
    assert float((values - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("case", ["one window", "ensemble", "mirrored", "slice by slice"])
def test_logits_of_a_part_of_changed_windows_are_the_mean_of_all_passes_there(case):
    volume, model, segmentation = a_case(**CASES[case])
    (stage,) = model.spec.stages
    run = StageContext.prepare(volume, model, stage, segmentation, torch.device("cpu"))
    windows = torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    part = Box(slice(1, 4), slice(7, 12), slice(0, 3))
    with torch.inference_mode():
        passes = [[run.network(number, window) for number in range(len(run.passes))] for window in windows]
    expected = torch.stack([torch.stack(of_one).mean(dim=0)[:, part.k, part.j, part.i] for of_one in passes])
    torch.testing.assert_close(run.logits(windows, part), expected)


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_a_map_is_the_same_if_the_last_stage_is_computed_everywhere(mirror_axes, monkeypatch):
    trained = trained_model()
    (stage,) = trained.spec.stages
    stage = replace(stage, mirror_axes=mirror_axes)
    network = copy.deepcopy(trained.members(stage)[0])
    model = Model(replace(trained.spec, stages=(stage,)), {stage.name: [network]})
    volume, segmentation = two_lesion_case(model)

    def maps():
        layers = ("bottleneck", "decoder.0", "decoder.1")
        targets = ["lesion:1", "tumor"]
        return [
            one
            for name in layers
            for one in explain_all(volume, model, segmentation, targets, layer=name, device="cpu")
        ]

    sizes: list[int] = []
    network.head.register_forward_hook(lambda module, inputs, output: sizes.append(output[0, 0].numel()))
    near, of_near = maps(), max(sizes[: len(sizes) // 3])  # of the first layer
    sizes.clear()
    monkeypatch.setattr(network, "computes_parts", False)
    for one, whole in zip(near, maps(), strict=True):
        assert one.raw_maximum == pytest.approx(whole.raw_maximum, rel=1e-5)
        np.testing.assert_allclose(one.heatmap.array, whole.heatmap.array, atol=1e-5)
    assert of_near < min(sizes)


def test_windows_that_are_not_run_have_no_gradient_to_speak_of():
    volume, model, segmentation = a_case(window=(16, 16, 16))
    plan, _, _, gradients = one_graph(volume, model, segmentation, tumor_score(segmentation), "bottleneck")
    _, question, _ = library_maps(volume, model, segmentation, "tumor", "hires-cam")
    sizes = torch.tensor([float(gradient.abs().sum()) for gradient in gradients])
    left_out = [number for number in range(len(plan.boxes)) if number not in question.windows]
    assert 0 < len(question.windows) < len(plan.boxes)
    assert float(sizes[left_out].sum()) <= 1e-5 * float(sizes.sum())


@pytest.mark.parametrize("layer", ["encoder", "bottleneck", "decoder"])
def test_every_layer_is_exact_even_with_in_place_activations(layer):
    volume, model, segmentation = a_case(window=(16, 20, 24))
    plan, _, activations, gradients = one_graph(volume, model, segmentation, tumor_score(segmentation), layer)
    expected = torch.zeros(plan.padded_shape)
    for box, a, g in zip(plan.boxes, activations, gradients, strict=True):
        expected[box] += upsampled((a.detach() * g).sum(dim=0), plan.window)
    _, _, values = library_maps(volume, model, segmentation, "tumor", "hires-cam", layer)
    assert float((values - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


SCORES = {
    # The liver includes its tumors: each voxel counts with the channel that determined its label.
    "liver": lambda logits, to_input, masks: (
        (to_input(logits[1])[masks["liver"] & ~masks["tumor"]].sum() + to_input(logits[2])[masks["tumor"]].sum())
        / masks["liver"].sum()
    ),
    "tumor-vs-liver": lambda logits, to_input, masks: to_input(logits[2] - logits[1])[masks["tumor"]].mean(),
    "why-not-tumor:box:lps:20,10,20,34,30,30": lambda logits, to_input, masks: to_input(
        -logit_margin(logits, masks["stage"], "tumor")
    )[masks["box"]].mean(),
    "lesion:1-vs-liver": lambda logits, to_input, masks: to_input(logits[2] - logits[1])[masks["tumor"]].mean(),
}


@pytest.mark.parametrize("target", SCORES)
def test_each_question_is_the_score_it_says_it_is(target):
    volume, model, segmentation = a_case(window=(24, 24, 24))
    masks = {name: torch.from_numpy(segmentation.mask(name)) for name in ("liver", "tumor")}
    if ":box:" in target:
        masks["box"] = torch.from_numpy(Target.parse(target).mask(segmentation))
        assert 0 < int(masks["box"].sum()) < 2000
    masks["stage"] = model.spec.stages[0]
    _, _, activations, gradients = one_graph(
        volume, model, segmentation, lambda logits, to_input: SCORES[target](logits, to_input, masks), "bottleneck"
    )
    run, _, values = library_maps(volume, model, segmentation, target, "hires-cam")
    expected = torch.zeros(run.plan.padded_shape)
    for box, a, g in zip(run.plan.boxes, activations, gradients, strict=True):
        expected[box] += upsampled((a.detach() * g).sum(dim=0), run.plan.window)
    assert float((values - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_asking_several_questions_at_once_changes_no_answer():
    volume, model, segmentation = a_case(window=(16, 16, 16))
    targets = ["liver", "tumor", "voxel:lps:22,22,22", "tumor-vs-liver"]
    together = explain_all(volume, model, segmentation, targets, device="cpu")
    for target, explanation in zip(targets, together, strict=True):
        alone = explain(volume, model, segmentation, target, device="cpu")
        np.testing.assert_allclose(explanation.heatmap.array, alone.heatmap.array, rtol=0, atol=1e-6)
        assert explanation.raw_maximum == pytest.approx(alone.raw_maximum, rel=1e-5)
        assert explanation.target == Target.parse(target).resolve(segmentation)


def test_the_question_costs_one_forward_pass_for_each_window_it_touches():
    volume, model, segmentation = a_case(window=(16, 16, 16))
    passes = []
    (network,) = model.members(model.spec.stages[0])
    handle = network.register_forward_hook(lambda *_: passes.append(1))
    explanations = explain_all(
        volume, model, segmentation, ["tumor", "lesion:1", "tumor-vs-liver"], method="seg-grad-cam", device="cpu"
    )
    handle.remove()
    assert len(passes) == explanations[0].provenance["windows_run"] < explanations[0].provenance["windows"]


def test_the_heat_map_is_where_the_influence_is():
    """An off-center cell of influence at a known place in mm is mapped to that place on an oblique input grid."""
    stage_grid = Grid((32, 32, 32), np.diag([2.0, 2.0, 2.0, 1.0]))
    lattice = lattice_grid(stage_grid, (4, 4, 4), (8, 8, 8))
    np.testing.assert_allclose(lattice.to_lps((0, 0, 0)), (3.0, 3.0, 3.0))
    np.testing.assert_allclose(lattice.to_lps((5, 2, 7)), (43.0, 19.0, 59.0))
    cells = torch.zeros(8, 8, 8)
    cells[6, 2, 5] = 1.0
    volume, model, segmentation = a_case()
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    run = replace(run, grid=stage_grid)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1.0]]) * 1.5
    matrix[:3, 3] = (-4.0, 14.0, 1.0)
    target = Grid((45, 44, 50), matrix)
    values = resample(cells, lattice, stage_grid, antialias=False)
    heat, maximum = to_input_grid(values, run, Volume(np.zeros(target.shape, np.int16), matrix))
    k, j, i = np.indices(target.shape)
    weights = heat.array[..., None]
    center = (target.to_lps(np.stack([i, j, k], axis=-1)) * weights).sum(axis=(0, 1, 2)) / weights.sum()
    np.testing.assert_allclose(center, lattice.to_lps((5, 2, 6)), atol=0.1)
    assert heat.array.max() == 1.0
    assert maximum == pytest.approx(1.0, abs=0.4)
    assert heat.array.dtype == np.float32


def test_the_tap_holds_the_activation_before_an_in_place_layer_overwrites_it():
    norm, activation = torch.nn.InstanceNorm3d(2), torch.nn.LeakyReLU(0.01, inplace=True)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1), norm, activation, torch.nn.Conv3d(2, 2, 1))
    x = torch.randn(1, 1, 6, 6, 6)
    (stage,) = tiny_model().spec.stages
    expected = norm(network[0](x)).detach()
    with LayerTap(network, "1", stage) as tap:
        output = network(x)
        held = tap.take()
        (gradient,) = torch.autograd.grad(output[0, 0].sum(), held)
    assert float(held.detach().min()) < -0.5
    torch.testing.assert_close(held.detach(), expected)
    slope = torch.where(expected >= 0, 1.0, 0.01) * network[3].weight[0].reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(gradient, slope)
    assert not network[1]._forward_hooks
