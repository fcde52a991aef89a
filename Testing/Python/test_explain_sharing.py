# SPDX-License-Identifier: Apache-2.0
"""Several questions share computation without changing any result; memory does not grow with their number."""

from __future__ import annotations

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from explain_toys import TinyUNet, tiny_stage, with_labels
from test_explain_exactness import a_case
from torch import nn
from toys import ball_phantom, model_of, threshold_model

from LiverXAILib.errors import DeviceError
from LiverXAILib.explain import METHODS, EmptyTargetError, Target, explain_all, explainer, stage_context, stitching
from LiverXAILib.explain.score import build_score
from LiverXAILib.explain.shared_backward import SharedBackward
from LiverXAILib.explain.stage_context import StageContext
from LiverXAILib.explain.stitching import recorded, stage_maps
from LiverXAILib.inference import Segmentation
from LiverXAILib.inference.stages import stage_grids
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.resample import resample
from LiverXAILib.volumes.volume import Grid, Volume

BALLS = {"all": (0, 0, 0), "a": (4, 4, 4), "b": (24, 8, 8), "c": (4, 22, 9), "near a": (12, 4, 4)}


class Scores:
    """Scores of a small tail behind a "layer" of stride 2, at voxels of a 32 × 32 × 32 window."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.layer = torch.randn(1, 3, 16, 16, 16, requires_grad=True)
        steps = [nn.Conv3d(3, 3, 3, padding=1), norm or nn.Identity(), nn.LeakyReLU(), nn.Upsample(scale_factor=2)]
        self.logits = nn.Sequential(*steps, nn.Conv3d(3, 1, 3, padding=1)).requires_grad_(False)(self.layer)[0]
        self.passes = 0

    def window_weights(self, name: str) -> torch.Tensor:
        share = torch.zeros_like(self.logits)
        k, j, i = BALLS[name]
        share[:, k : k + 3, j : j + 2, i : i + 4] = 0.1
        if name == "all":
            share[:, 2:-2, 2:-2, 2:-2] = 0.1
        return share

    def back(self, score: torch.Tensor) -> list[torch.Tensor]:
        self.passes += 1
        return [torch.autograd.grad(score, self.layer, retain_graph=True)[0][0]]

    def gradients(self, names: list[str], shared: SharedBackward) -> dict[int, list[torch.Tensor]]:
        shares = {index: self.window_weights(name) for index, name in enumerate(names)}
        scores = {index: (self.logits * share).sum() for index, share in shares.items()}
        return shared.gradients(scores, shares, [(2, 2, 2)], self.back)

    def check(self, names: list[str], shared: SharedBackward) -> int:
        """The number of backward passes for all results, which equal those of separate passes to the last bit."""
        together = self.gradients(names, shared)
        passes, self.passes = self.passes, 0
        for index, name in enumerate(names):
            (alone,) = self.back((self.logits * self.window_weights(name)).sum())
            assert float(alone.abs().max()) > 0
            assert torch.equal(together[index][0], alone)
        self.passes = 0
        return passes


def test_targets_far_apart_share_one_pass_back():
    assert Scores().check(["a", "b", "c"], SharedBackward()) == 1


def test_targets_near_each_other_get_passes_of_their_own():
    scores, shared = Scores(), SharedBackward()
    # Only the first attempt lacks the extent of the network's receptive field.
    assert scores.check(["a", "near a", "b", "c"], shared) == 3
    assert scores.check(["a", "near a", "b", "c"], shared) == 2


def test_a_target_that_is_asked_alone_tells_how_far_the_network_carries():
    # The liver, which contains the lesions, comes first: the two nearby lesions are then not tried together.
    assert Scores().check(["all", "a", "near a", "b", "c"], SharedBackward()) == 3


def test_nothing_is_parted_where_every_place_depends_on_every_other():
    scores, shared = Scores(nn.InstanceNorm3d(3)), SharedBackward()
    assert scores.check(["a", "b", "c"], shared) == 4
    assert scores.check(["a", "b", "c"], shared) == 3


def test_one_pass_serves_several_layers():
    volume, model, segmentation = a_case(window=(16, 20, 24))
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    question = build_score(Target.parse("tumor"), segmentation, model, run)
    layers = ["encoder", "bottleneck", "decoder"]
    passes = []
    handle = run.networks[0].register_forward_hook(lambda *_: passes.append(1))
    with recorded(run, [question], layers) as recording:
        handle.remove()
        assert len(passes) == len(question.windows)
        for layer in layers:
            for method in ("seg-grad-cam", "hires-cam"):
                (alone,) = stage_maps(run, [question], METHODS[method], layer)
                result = recording.map(0, METHODS[method], layer)
                torch.testing.assert_close(result.values, alone.values, rtol=1e-4, atol=1e-7)
                assert result.warnings == alone.warnings
    assert "copy of the network's score" in result.warnings[0]


@pytest.mark.parametrize("label", ["liver", "tumor"])
def test_a_mask_is_brought_to_the_grid_once_and_cut_for_parts_of_it(label):
    volume, model, segmentation = a_case(window=(16, 20, 24))
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    everywhere = segmentation.mask(label).astype(np.float32)
    expected = resample(everywhere, segmentation.labels.grid, run.grid, antialias=False) > 0.5
    assert expected.any()
    assert run.mask(label) is run.mask(label)
    assert torch.equal(run.mask(label), expected)
    alone, _, box = build_score(Target.parse("tumor"), segmentation, model, run).in_focus(run)
    assert torch.equal(alone.mask(label), expected[box])
    nothing = dataclasses.replace(segmentation, labels=volume.with_array(np.zeros(volume.shape, np.uint8)))
    assert not dataclasses.replace(run, segmentation=nothing).mask(label).any()


class Token:
    """Lives as long as the object it is attached to."""


class Watched(nn.Module):
    """Counts the graphs of earlier windows that are still alive when the next window is processed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.bottleneck = network.bottleneck
        self.network = [network]
        self.tokens: list[weakref.ref[Token]] = []
        self.alive: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.alive.append(sum(token() is not None for token in self.tokens))
        output = self.network[0](x)
        token = Token()
        output.grad_fn.metadata["token"] = token
        self.tokens.append(weakref.ref(token))
        return output


def test_networks_are_compiled_once_before_threads_use_them(monkeypatch):
    compiled = []
    monkeypatch.setattr(stage_context, "partial_forward", lambda *about: compiled.append(about) or "forward")
    volume, model, segmentation = a_case(window=(16, 20, 24))
    run = StageContext.prepare(volume, model, model.spec.stages[0], segmentation, torch.device("cpu"))
    assert compiled == []
    run.make_ready()
    assert compiled == [(run.backend, network, torch.device("cpu")) for network in run.networks]
    assert run.forwards == ["forward"] * len(run.networks)
    assert len(compiled) == len(run.networks)


def test_no_window_is_held_while_the_next_is_read(monkeypatch):
    volume, old, labels = a_case(window=(16, 16, 16))
    (network,) = old.members(old.spec.stages[0])
    watched = Watched(network.requires_grad_(False))
    stage = vars(old.spec.stages[0])
    model = model_of([stage], {"all": [watched]})
    targets = ["liver", "tumor", "lesion:1"]
    expected = explain_all(volume, old, labels, targets, device="cpu")
    monkeypatch.setattr(stitching, "_SPOOL_BYTES", 1000)  # everything that is kept goes to disk
    answers = explain_all(volume, model, labels, targets, device="cpu")
    assert len(watched.alive) == answers[0].provenance["windows_run"] > 5
    assert max(watched.alive) == 0
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.heatmap.array == other.heatmap.array).all()


@pytest.mark.parametrize("layer", ["encoder", "bottleneck"])
def test_nothing_before_the_explained_layer_is_recorded(layer):
    volume, model, segmentation = a_case(window=(16, 16, 16))
    (network,) = model.members(model.spec.stages[0])
    recorded_layers = []
    handles = [
        getattr(network, name).register_forward_hook(
            lambda module, inputs, output, name=name: recorded_layers.append(name) if output.requires_grad else None
        )
        for name in ("encoder", "bottleneck", "decoder")
    ]
    explain_all(volume, model, segmentation, ["tumor"], layer=layer, device="cpu")
    for handle in handles:
        handle.remove()
    order = ["encoder", "bottleneck", "decoder"]
    assert set(recorded_layers) <= set(order[order.index(layer) :])
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_questions_to_two_stages_are_answered_by_their_own_stage_in_the_order_asked():
    stages = [
        tiny_stage(name="liver", channels=("background", "liver"), labels={"liver": ("liver",)}, window=(24, 24, 24)),
        tiny_stage(name="lesions", channels=("background", "lesion"), labels={"tumor": ("lesion",)}),
    ]
    model = model_of(stages, {stage["name"]: [TinyUNet(3, 2, seed)] for seed, stage in enumerate(stages)})
    volume, labels = ball_phantom(Grid((17, 24, 21), np.diag([2.2, 1.9, 2.6, 1.0])), 20.0, 7.0)
    segmentation = with_labels(volume, model, labels)
    seen = []
    targets = ["tumor", "liver", "lesion:1"]
    answers = explain_all(
        volume, model, segmentation, targets, device="cpu", progress=lambda stage, part: seen.append(part)
    )
    assert [str(answer.target) for answer in answers] == targets
    assert [answer.provenance["stage"] for answer in answers] == ["lesions", "liver", "lesions"]
    for answer in answers:
        (alone,) = explain_all(volume, model, segmentation, [answer.target], device="cpu")
        np.testing.assert_allclose(answer.heatmap.array, alone.heatmap.array, atol=1e-6)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert any(0.3 < part < 0.4 for part in seen)  # one question of three is answered by the first stage


def test_a_target_that_the_network_never_saw_is_refused():
    volume, model, segmentation = a_case(window=(16, 16, 16))
    (grid,) = segmentation.stage_grids.values()
    top = grid.cropped(Box(slice(12, 17), slice(0, 16), slice(0, 16)))
    elsewhere = dataclasses.replace(segmentation, stage_grids={"all": top})
    low = ",".join(map(str, (*volume.grid.to_lps((9, 9, 0)), *volume.grid.to_lps((11, 11, 2)))))
    with pytest.raises(EmptyTargetError, match="did not process why no tumor"):
        explain_all(volume, model, elsewhere, [f"why-not-tumor:box:lps:{low}"], device="cpu")


def test_a_device_without_enough_memory_is_named(monkeypatch):
    def fails(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    volume, model, segmentation = a_case(window=(16, 16, 16))
    monkeypatch.setattr(explainer, "stage_maps", fails)
    with pytest.raises(DeviceError, match="cpu ran out of memory"):
        explain_all(volume, model, segmentation, ["tumor"], device="cpu")


def test_of_a_long_scan_the_part_is_explained_in_which_most_of_the_contours_lie():
    """Contours that were drawn elsewhere do not say in which of the overlapping parts the network ran."""
    volume = Volume(np.zeros((60, 24, 24), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    model = threshold_model(window=None, spacing=None, size=(24, 24, 24), field_of_view_mm=(48.0, None, None))
    (stage,) = model.spec.stages
    parts = stage_grids(volume, stage)
    assert len(parts) > 2
    for part in parts:
        labels = np.zeros(volume.shape, np.uint8)
        first = round(part.origin[2] / 2)
        labels[first] = labels[first + 23] = 1  # its outermost slices
        drawn = Segmentation(volume.with_array(labels), (LIVER, TUMOR))
        assert StageContext.prepare(volume, model, stage, drawn, torch.device("cpu")).grid.matches(part)
