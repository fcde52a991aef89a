# SPDX-License-Identifier: Apache-2.0
"""Networks: shapes, named layers, refusal of unsuitable sizes, published weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from LiverXAILib.errors import ModelError
from LiverXAILib.networks import ObeliskUNet, UNet, build_network, default_layer
from LiverXAILib.networks.folding import fold_batch_norms
from LiverXAILib.volumes.box import Box

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize(("dimensions", "size"), [(2, (32, 48)), (3, (16, 32, 16))])
def test_logits_have_the_size_of_the_image(dimensions: int, size: tuple[int, ...], norm: str) -> None:
    network = UNet(dimensions, in_channels=2, out_channels=3, features=(4, 8, 12), norm=norm).eval()
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_a_size_that_does_not_fit_is_refused_with_the_divisor() -> None:
    network = UNet(2, features=(4, 8, 8))
    with pytest.raises(ValueError, match=r"divisible by \(4, 4\)"):
        network(torch.zeros(1, 1, 32, 33))


def test_anisotropic_strides_keep_the_thick_axis() -> None:
    network = UNet(3, features=(4, 8, 8), strides=[(1, 2, 2), (2, 2, 2)]).eval()
    assert network.divisor == (2, 4, 4)
    assert network(torch.zeros(1, 1, 2, 8, 8)).shape == (1, 2, 2, 8, 8)
    assert ("decoder.0", (1, 2, 2)) in network.explainable_layers()


def test_deep_supervision_adds_coarse_logits_in_training_only() -> None:
    network = UNet(2, out_channels=2, features=(4, 8, 8, 8), deep_supervision=True)
    image = torch.randn(2, 1, 32, 32)
    assert [tuple(x.shape) for x in network(image)] == [(2, 2, 32, 32), (2, 2, 16, 16), (2, 2, 8, 8)]
    assert network.eval()(image).shape == (2, 2, 32, 32)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_strided_stem_halves_the_work_and_still_answers_for_every_voxel(dimensions: int) -> None:
    network = UNet(dimensions, out_channels=3, features=(4, 8, 12), stem_stride=2).eval()
    assert network.divisor == (8,) * dimensions
    assert network.explainable_layers()[0] == ("encoder.0", (2,) * dimensions)
    size = (16, 24, 32)[:dimensions]
    assert network(torch.randn(1, 1, *size)).shape == (1, 3, *size)
    with pytest.raises(ValueError, match="stem_stride"):
        UNet(stem_stride=3)


def test_the_strided_stems_head_lays_voxels_out_as_pixel_shuffle_does() -> None:
    network = UNet(2, out_channels=3, features=(4, 8), stem_stride=2).eval()
    last: list[torch.Tensor] = []
    network.head.register_forward_hook(lambda module, inputs, output: last.append(output))
    logits = network(torch.randn(2, 1, 16, 24))
    assert torch.equal(logits, torch.nn.functional.pixel_shuffle(last[0], 2))


@pytest.mark.parametrize(
    "network",
    [UNet(3, features=(4, 8, 12, 16)), UNet(3, features=(4, 8, 12), stem_stride=2), ObeliskUNet()],
    ids=["UNet", "UNet with a strided stem", "ObeliskUNet"],
)
def test_every_named_stage_can_be_hooked_and_has_its_stated_stride(network: UNet | ObeliskUNet) -> None:
    network.eval()
    size = (32, 64, 32)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, _ in network.explainable_layers():
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, (output, output.detach().clone()))
        )
    network(torch.randn(1, 1, *size)).sum().backward()
    for name, stride in network.explainable_layers():
        output, at_the_time = seen[name]
        assert tuple(output.shape[2:]) == tuple(n // s for n, s in zip(size, stride, strict=True)), name
        assert torch.equal(output, at_the_time), f"{name} was changed in place after it was hooked"


def test_no_module_works_in_place() -> None:
    for network in (UNet(), ObeliskUNet()):
        assert not any(getattr(module, "inplace", False) for module in network.modules())


def test_the_default_stage_is_mid_decoder_and_never_the_last() -> None:
    stages = UNet(features=(4, 8, 12, 16, 16)).explainable_layers()
    assert default_layer(stages, (3.0, 3.0, 3.0)) == "decoder.1"
    assert default_layer(stages, (5.0, 3.0, 3.0)) == "decoder.2"
    assert default_layer(UNet(features=(4, 8)).explainable_layers(), (1.0, 1.0, 1.0)) == "bottleneck"


def test_only_listed_networks_are_built() -> None:
    assert isinstance(build_network("UNet", {"dimensions": 2}), UNet)
    with pytest.raises(ModelError, match="unknown"):
        build_network("os.system", {})
    with pytest.raises(ModelError, match="cannot be built"):
        build_network("UNet", {"colour": "red"})


def test_published_obelisk_weights_load_strictly() -> None:
    folder = os.environ.get("LIVERXAI_TEST_DATA")
    if not folder:
        pytest.skip("LIVERXAI_TEST_DATA is not set")
    for path in sorted((Path(folder) / "models" / "obelisk").glob("*.pth")):
        state = torch.load(path, map_location="cpu", weights_only=True)
        assert sum(value.numel() for value in state.values()) == 884_888
        ObeliskUNet().load_state_dict(state, strict=True)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_way_back_that_ends_in_the_decoder_gives_the_gradient_of_the_whole_graph(dimensions):
    """In the decoder the network convolves the encoder's and the decoder's channels separately."""
    torch.manual_seed(0)
    network = UNet(dimensions=dimensions, features=(4, 6, 8)).eval()
    image = torch.randn(1, 1, *[16] * dimensions)
    held: list[torch.Tensor] = []

    def leaf(_module, _inputs, output):
        held.append(output.detach().requires_grad_())
        return held[-1]

    def keep(_module, _inputs, output):
        held.append(output)

    handle = network.decoder[0].register_forward_hook(keep)
    whole = network(image)
    handle.remove()
    network.requires_grad_(False)
    network.decoder[0].register_forward_hook(leaf)
    ended = network(image)
    torch.testing.assert_close(ended, whole, rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad(out[0, 1].square().sum(), of)[0] for out, of in zip((whole, ended), held, strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("convolutions", [1, 2, 3])
@pytest.mark.parametrize("strides", [None, [(1, 2, 2), (2, 2, 2)]])
def test_logits_of_a_part_are_those_of_the_whole_image(stem_stride, convolutions, strides):
    torch.manual_seed(convolutions)
    network = UNet(3, features=(4, 6, 8), convolutions_per_stage=convolutions, strides=strides, stem_stride=stem_stride)
    fold_batch_norms(network)
    assert network.computes_parts
    image = torch.randn(2, 1, 16, 32, 24)
    with torch.inference_mode():
        whole = network(image)
        for start, stop in [((5, 13, 9), (8, 16, 14)), ((0, 0, 0), (3, 2, 1)), ((13, 31, 20), (16, 32, 24))]:
            part = Box.between(start, stop)
            torch.testing.assert_close(network(image, part), whole[..., part.k, part.j, part.i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(network(image, Box.full((16, 32, 24))), whole, rtol=1e-5, atol=1e-6)


def test_of_a_part_the_last_block_computes_no_more_than_its_convolutions_reach():
    network = UNet(3, features=(4, 6, 8)).eval()
    sizes = []
    network.decoder[-1].register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    network(torch.zeros(1, 1, 32, 32, 32), Box.between((14, 15, 0), (16, 17, 4)))
    assert sizes == [(6, 8, 6)]
    cropped = {name for name, _ in network.explainable_layers() if network.crops(name)}
    assert cropped == {"decoder.1"}
    assert network.crops("decoder.1.convolutions.0")
    assert network.crops("head")


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_network_with_statistics_of_the_image_refuses_parts(norm):
    part = Box.full((8, 8, 8))
    for network in (UNet(3, features=(4, 8), norm=norm).eval(), UNet(3, features=(4, 8)).train()):
        with pytest.raises(ValueError, match="logits of a part"):
            network(torch.zeros(1, 1, 8, 8, 8), part)
    assert not UNet(3, features=(4, 8), norm=norm).computes_parts
    assert not UNet(2, features=(4, 8)).computes_parts  # only for volumes
