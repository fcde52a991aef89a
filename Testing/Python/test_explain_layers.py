# SPDX-License-Identifier: Apache-2.0
"""A layer whose map is meaningless is detected, and the user is told why."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batch_toys import write_model
from explain_toys import LESIONS_LPS, tiny_stage, trained_model, two_lesion_case, with_labels
from torch import nn
from toys import ball_phantom, model_of

from LiverXAILib.cli import main
from LiverXAILib.errors import UsageError
from LiverXAILib.explain import explain, explain_all, explainer
from LiverXAILib.explain.layers import is_linear
from LiverXAILib.models import LayerSpec, load_model
from LiverXAILib.networks.folding import fold_batch_norms
from LiverXAILib.volumes.volume import Grid


class Net(nn.Module):
    """One convolution, a normalization, a (possibly in-place) activation, and a decoder with a pointwise head."""

    def __init__(self, norm: nn.Module, inplace: bool = False, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 4, 3, 2, 1)
        self.norm = norm
        self.activation = nn.LeakyReLU(0.01, inplace=inplace)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.ReLU())
        self.unused = nn.Conv3d(4, 4, 1)
        self.head = nn.Conv3d(4, 3, 1)
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.norm(self.conv(x)))
        x = self.decoder(self.up(x))
        if self.twice:
            x = self.decoder(x)
        return self.head(x)


class DeadNet(Net):
    """A network with a branch whose activations are all 0."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm3d(4))
        self.dead = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.dead(-x.square() - 1)


class SideNet(Net):
    """A network with a side branch that ends in a function of its output."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(nn.BatchNorm3d(4))
        self.side = nn.Conv3d(1, 3, 1)
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.end(self.side(x))


class StemNet(nn.Module):
    """Works at half resolution throughout: its last layer is followed by a pointwise head and an interpolation."""

    def __init__(self, up: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv3d(4, 3, 1)
        self.up = up()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.head(self.decoder(self.conv(x))))


def a_case(network):
    volume, labels = ball_phantom(Grid((16, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0])), 14.0, 26.0)
    names = [name for name, _ in network.named_modules() if name]
    coarse = names if isinstance(network, StemNet) else ("conv", "norm", "activation")
    layers = tuple(LayerSpec(name, (2, 2, 2) if name in coarse else (1, 1, 1)) for name in names)
    stage = tiny_stage(window=(16, 16, 16), layers=layers, default_layer="conv")
    model = model_of([stage], {"all": [network]})
    return volume, model, with_labels(volume, model, labels)


def warning_for(network, layer, method="seg-grad-cam"):
    volume, model, segmentation = a_case(network)
    return " ".join(explain(volume, model, segmentation, "tumor", method, layer, device="cpu").warnings)


@pytest.mark.parametrize(
    ("norm", "word"),
    [
        (nn.InstanceNorm3d(4), "mean"),
        (nn.GroupNorm(2, 4), "group mean"),
        (nn.GroupNorm(1, 4), "group mean"),
        (nn.LayerNorm((4, 8, 8, 8)), "overall mean"),
    ],
)
def test_a_convolution_before_a_norm_is_flagged(norm, word):
    warning = warning_for(Net(norm), "conv")
    assert f"feeds a normalization that removes its {word}, " in warning
    assert "whole block" in warning


@pytest.mark.parametrize("norm", [nn.InstanceNorm3d(4), nn.GroupNorm(2, 4), nn.BatchNorm3d(4)])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_whole_block_is_not_flagged(norm, inplace):
    assert warning_for(Net(norm, inplace), "activation") == ""


def test_a_convolution_before_a_batch_norm_in_evaluation_is_fine():
    assert warning_for(Net(nn.BatchNorm3d(4)), "conv") == ""


@pytest.mark.parametrize("norm", [nn.InstanceNorm3d(4), nn.BatchNorm3d(4)])
def test_an_in_place_activation_changes_nothing(norm):
    maps = []
    for inplace in (False, True):
        volume, model, segmentation = a_case(Net(norm, inplace))
        maps.append(
            [
                explain(volume, model, segmentation, "tumor", "hires-cam", layer, device="cpu").heatmap.array
                for layer in ("conv", "norm", "activation")
            ]
        )
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.ptp(maps[0][1]) > 0


@pytest.mark.parametrize("target", ["tumor", "liver"])
@pytest.mark.parametrize("folded", [False, True])
def test_the_last_stage_is_flagged_as_a_copy_of_the_score(target, folded):
    network = Net(nn.BatchNorm3d(4))
    if folded:  # as in every loaded model
        network = fold_batch_norms(network).requires_grad_(False)
    volume, model, segmentation = a_case(network)
    (warning,) = explain(volume, model, segmentation, target, layer="decoder", device="cpu").warnings
    assert "copy of the network's score" in warning


@pytest.mark.parametrize(
    "up",
    [
        lambda: nn.Upsample(scale_factor=2, mode="trilinear"),
        lambda: nn.ConvTranspose3d(3, 3, 2, 2),
        lambda: nn.Upsample(scale_factor=2),
    ],
    ids=["trilinear", "transposed convolution", "nearest"],
)
def test_the_last_stage_of_a_network_that_works_at_half_size_is_flagged_as_well(up):
    assert "copy of the network's score" in warning_for(StemNet(up), "decoder")
    assert warning_for(StemNet(up), "conv") == ""


def test_a_dead_layer_is_flagged():
    assert "dead" in warning_for(DeadNet(), "dead", "hires-cam")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda side: side * 0, "Nothing at layer 'side' influences the score: the map is empty."),
        (lambda side: (side - side.detach()).sqrt(), "The gradient at layer 'side' is not finite"),
        (lambda side: -side.square(), "No feature at layer 'side' increases the score of tumor: the map is empty."),
    ],
)
def test_a_map_with_nothing_in_it_says_why(end, words):
    assert warning_for(SideNet(end), "side", "hires-cam").startswith(words)


def test_the_map_of_the_last_stage_is_the_logit_map_whatever_is_asked():
    """The algebra behind the warning: S = sum of w A over the target, so sum_k alpha_k A_k is w A everywhere."""
    volume, model, segmentation = a_case(Net(nn.BatchNorm3d(4)))
    boxes = ["tumor:box:lps:0,0,0,10,30,30", "tumor:box:lps:20,0,0,30,30,30"]
    first, second = explain_all(volume, model, segmentation, boxes, "seg-grad-cam", "decoder", device="cpu")
    assert "copy of the network's score" in first.warnings[0]
    assert np.ptp(first.heatmap.array) == 1
    np.testing.assert_allclose(first.heatmap.array, second.heatmap.array, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "layer", "words"),
    [
        (Net(nn.BatchNorm3d(4)), "unused", "is not used in the prediction"),
        (Net(nn.BatchNorm3d(4), twice=True), "decoder", "several times"),
        (Net(nn.BatchNorm3d(4)), "encoder.7", "Choose one of: conv, norm"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_an_error_in_words(network, layer, words):
    volume, model, segmentation = a_case(network)
    with pytest.raises(UsageError, match=words):
        explain(volume, model, segmentation, "tumor", layer=layer, device="cpu")
    # No hooks remain on the network.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_every_model_lists_its_stages_with_their_size_in_mm(capsys):
    assert main(["models", "show", "default", "--layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    spec = load_model("default").spec
    for stage in spec.stages:
        for layer in stage.layers:
            (line,) = [line for line in lines if line.split()[:1] == [layer.name]][-1:]
            size = " x ".join(f"{step * mm:.3g}" for step, mm in zip(layer.stride, stage.spacing, strict=True))
            if stage is spec.stages[-1]:
                assert f"{size} mm" in line
                assert ("(default)" in line) == (layer.name == stage.default_layer)


def test_an_unknown_method_is_an_error_that_lists_the_methods():
    volume, model, segmentation = a_case(Net(nn.BatchNorm3d(4)))
    with pytest.raises(UsageError, match="seg-grad-cam"):
        explain(volume, model, segmentation, "tumor", "grad-cam", device="cpu")


def test_the_command_line_shows_the_layers_and_the_card_of_a_model_in_a_folder(tmp_path, capsys):
    folder = write_model(tmp_path / "toy")
    assert main(["models", "show", str(folder), "--layers"]) == 0
    assert "bottleneck" in capsys.readouterr().out
    assert main(["models", "show", str(folder)]) == 0
    assert '"default_layer": "bottleneck"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "takes_folders"), [("show", True), ("trust", True), ("verify", False), ("remove", False)]
)
def test_only_what_takes_folders_proposes_one(action, takes_folders, capsys):
    assert main(["models", action, "nobody"]) == 1
    assert ("or give a model's folder" in capsys.readouterr().err) == takes_folders


def test_lesions_far_apart_get_different_maps_at_the_default_layer():
    model = trained_model()
    volume, segmentation = two_lesion_case(model)
    for method in ("hires-cam", "seg-xres-cam", "layer-cam"):
        first, second = explain_all(volume, model, segmentation, ["lesion:1", "lesion:2"], method, device="cpu")
        assert first.warnings == second.warnings == ()
        assert np.corrcoef(first.heatmap.array.ravel(), second.heatmap.array.ravel())[0, 1] < 0.9
        for number, explanation in enumerate((first, second)):
            peak = np.unravel_index(explanation.heatmap.array.argmax(), volume.shape)
            lps = volume.grid.to_lps(np.array(peak[::-1]))
            assert np.linalg.norm(lps - LESIONS_LPS[number]) < 15


@pytest.mark.parametrize(("norm", "linear"), [(nn.BatchNorm3d, True), (nn.InstanceNorm3d, False)])
def test_a_norm_is_linear_if_its_statistics_do_not_come_from_the_image(norm, linear):
    layer, network = nn.Conv3d(1, 3, 1), nn.Sequential(norm(3), nn.Conv3d(3, 1, 1)).eval()
    held = layer(torch.rand(1, 1, 4, 4, 4)).detach().requires_grad_()
    assert is_linear(network(held.clone()).sum(), held) == linear


@pytest.mark.parametrize(
    ("step", "linear"),
    [
        (lambda held: held * 2, True),
        (lambda held: held / 2, True),
        (lambda held: torch.full_like(held, 2) * held, True),
        (lambda held: held * torch.full_like(held, 2), True),
        (lambda held: held / torch.full_like(held, 2), True),
        (lambda held: torch.full_like(held, 2) / held, False),
        (lambda held: held * held, False),
        (lambda held: held.relu(), False),
        (lambda held: held + held.relu(), False),
    ],
)
def test_a_scaling_is_linear_and_what_multiplies_or_divides_by_the_layer_is_not(step, linear):
    held = torch.rand(1, 3, 4, 4, 4).requires_grad_()
    assert is_linear(step(held.clone()).sum(), held) == linear


def test_the_size_of_the_cells_of_a_layer_that_the_model_does_not_list_is_found_from_its_output(monkeypatch):
    clock = iter((1.0, 3.45678, 4.0, 5.0, 5.1234, 6.0))
    monkeypatch.setattr(explainer, "time", SimpleNamespace(perf_counter=clock.__next__))
    volume, model, segmentation = a_case(Net(nn.BatchNorm3d(4)))
    (stage,) = model.spec.stages
    listed = explain(volume, model, segmentation, "tumor", layer="activation", device="cpu")
    fewer = {**vars(stage), "layers": tuple(layer for layer in stage.layers if layer.name != "activation")}
    model = model_of([fewer], {"all": model.members(stage)})
    found = explain(volume, model, segmentation, "tumor", layer="activation", device="cpu")
    assert listed.provenance["cell_mm"] == [4, 4, 4]
    assert found.provenance["cell_mm"] is None
    about = {"stage": "all", "device": "cpu", "seconds": 2.457}
    assert {name: listed.provenance[name] for name in about} == about
    assert found.provenance["seconds"] == 0.123
    assert listed.heatmap.array.max() == 1
    np.testing.assert_array_equal(found.heatmap.array, listed.heatmap.array)
