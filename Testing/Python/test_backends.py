# SPDX-License-Identifier: Apache-2.0
"""Every backend gives torch's results in single precision, and the choice is made once and reported."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from toys import ball_phantom, threshold_model

from LiverXAILib.errors import UsageError
from LiverXAILib.inference import backends, segment
from LiverXAILib.inference.backends import (
    REFERENCE,
    BackendChoice,
    available_backends,
    choose_backend,
    forward,
    label_agreement,
)
from LiverXAILib.inference.stages import stage_grids, stage_input
from LiverXAILib.models import load_model
from LiverXAILib.networks import UNet
from LiverXAILib.networks.folding import fold_batch_norms
from LiverXAILib.volumes.volume import Grid

CPU = torch.device("cpu")
BEYOND_THE_THRESHOLD = 10**9
#: Tolerance of each precision: the fraction of voxels whose labels must not change, on an image it was made for.
AGREEMENT = {"float32": 0.9999, "bfloat16": 0.99}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Isolate tests from earlier choices on this machine, and from the requests of other tests."""
    monkeypatch.delenv(backends.BACKEND_VARIABLE)
    monkeypatch.setattr(backends, "_cache_folder", lambda: tmp_path)
    return tmp_path


def a_body(model_stage):
    """A ball of liver with a lesion on the stage's grid: 64 voxels along each axis."""
    volume, truth = ball_phantom(Grid((64, 64, 64), np.diag([3.0, 3.0, 3.0, 1.0])), organ_mm=70, lesion_mm=20)
    center_hu = float(np.median(volume.array[truth.array > 0]))
    return stage_input(volume, model_stage, stage_grids(volume, model_stage)[0], center_hu)[:64, :64, :64]


@pytest.mark.parametrize("name", available_backends(CPU)[1:] or ["nothing beside torch float32 is installed"])
def test_every_backend_here_gives_the_bundled_models_labels(name):
    if name not in available_backends(CPU):
        pytest.skip(f"no other backend to compare: {name}")
    model = load_model("default")
    for stage in model.spec.stages:
        batch = a_body(stage)[None, None]
        for network in model.members(stage):
            with torch.inference_mode():
                expected = forward(REFERENCE, network, CPU)(batch)
                logits = forward(name, network, CPU)(batch)
            assert logits.dtype == torch.float32
            assert label_agreement(logits, expected, stage) >= AGREEMENT[name.split()[1]]


@pytest.mark.skipif("openvino float32" not in available_backends(CPU), reason="the extra openvino is not installed")
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_openvino_computes_any_norm_dimension_and_size(norm, dimensions, own_cache):
    torch.manual_seed(1)
    network = fold_batch_norms(UNet(dimensions=dimensions, features=(6, 8, 12), norm=norm))
    run = forward("openvino float32", network, CPU)
    for sizes in ((16, 24, 20), (8, 8, 12)):
        image = torch.randn(1, 1, *sizes[:dimensions])
        with torch.inference_mode():
            torch.testing.assert_close(run(image), network(image), rtol=1e-3, atol=1e-4)
    # The conversion is stored: another process only compiles it.
    (kept,) = own_cache.glob("openvino/*/*.xml")
    assert kept.with_suffix(".bin").is_file()


def a_stage_and_network():
    model = threshold_model()
    stage = model.spec.stages[0]
    return stage, model.members(stage)[0]


def with_another(monkeypatch, another, slowness: float = 0.02):
    """A machine with a slow reference and `another` backend."""
    monkeypatch.setattr(backends, "available_backends", lambda device: [REFERENCE, "openvino float32"])

    def fake(name, network, device):
        def slow(batch):
            time.sleep(slowness)
            return network(batch)

        return slow if name == REFERENCE else lambda batch: another(network, batch)

    monkeypatch.setattr(backends, "forward", fake)


def choose(stage, network, voxels=BEYOND_THE_THRESHOLD, requested="auto") -> BackendChoice:
    sample = torch.linspace(-200, 300, 8**3).reshape(8, 8, 8)
    return choose_backend(network, stage, CPU, sample, voxels, requested)


def test_the_faster_backend_that_agrees_is_chosen_once_for_this_machine(monkeypatch, own_cache):
    calls = []

    def quick(network, batch):
        calls.append(1)
        return network(batch)

    with_another(monkeypatch, quick)
    stage, network = a_stage_and_network()
    choice = choose(stage, network)
    assert choice.backend == "openvino float32"
    assert choice.tests["openvino float32"]["agreement"] == 1.0
    assert choice.tests["openvino float32"]["seconds"] < choice.tests[REFERENCE]["seconds"]
    tested = len(calls)
    again = choose(stage, network)
    assert (again.backend, again.tests) == (choice.backend, choice.tests)
    assert "earlier" in again.reason
    assert len(calls) == tested > 0
    # Other weights need a new decision.
    network.smooth.weight.data *= 2
    choose(stage, network)
    assert len(calls) > tested
    assert len(json.loads((own_cache / "backends.json").read_text())) == 2


@pytest.mark.parametrize("fault", ["other labels", "an error", "slower"])
def test_a_backend_that_is_wrong_or_slow_is_not_chosen(fault, monkeypatch):
    def faulty(network, batch):
        if fault == "an error":
            raise RuntimeError("unsupported operation")
        if fault == "slower":
            time.sleep(0.06)
        return network(batch) if fault == "slower" else -network(batch)

    with_another(monkeypatch, faulty)
    choice = choose(*a_stage_and_network())
    assert choice.backend == REFERENCE
    assert ("failed" in choice.tests["openvino float32"]) == (fault == "an error")


def test_small_images_are_not_tested_and_a_damaged_cache_is_none(monkeypatch, own_cache):
    stage, network = a_stage_and_network()
    with_another(monkeypatch, lambda network, batch: network(batch))
    assert choose(stage, network, voxels=1000) == BackendChoice(REFERENCE, "too little work for a self-test")
    for damage in ("{", "[]", '{"x": 1}', '{"x": {"backend": ""}}'):
        (own_cache / "backends.json").write_text(damage)
        assert choose(stage, network).reason == "self-test"


def test_what_is_asked_for_is_taken_or_refused_in_words(monkeypatch):
    stage, network = a_stage_and_network()
    assert choose(stage, network, requested=REFERENCE).reason == "requested"
    with pytest.raises(UsageError, match="use one of: torch float32"):
        choose(stage, network, requested="abacus float32")
    monkeypatch.setattr(backends, "available_backends", lambda device: [REFERENCE, "openvino float32"])
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "openvino float32")
    assert choose(stage, network).backend == "openvino float32"
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "")  # as if not set
    assert choose(stage, network, voxels=1000).reason == "too little work for a self-test"


@pytest.mark.skipif("openvino float32" not in available_backends(CPU), reason="the extra openvino is not installed")
def test_a_compiled_network_answers_two_threads():
    network = UNet(3, 1, 2, features=(4, 8), convolutions_per_stage=1).eval()
    run = forward("openvino float32", network, CPU)
    images = torch.rand((4, 1, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0))
    expected = [run(image) for image in images]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(run, images.repeat(8, 1, 1, 1, 1, 1)))
    for number, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[number % 4], atol=0, rtol=0)


@pytest.mark.parametrize("supported", [False, True])
def test_bfloat16_is_tried_only_where_the_cpu_has_it(supported, monkeypatch):
    for unit in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{unit}_supported", lambda: supported, raising=False)
    assert ("torch bfloat16" in available_backends(CPU)) == supported


def test_graphics_cards_are_offered_half_precision():
    assert (
        available_backends(torch.device("cuda"))
        == available_backends(torch.device("mps"))
        == [REFERENCE, "torch float16"]
    )


def test_half_precision_by_autocast_gives_the_labels_of_single_precision():
    # The code path of graphics cards and of CPUs with bfloat16, on this CPU, on an image of a few voxels.
    stage, network = a_stage_and_network()
    batch = torch.linspace(-200, 300, 8**3).reshape(1, 1, 8, 8, 8)
    logits = forward("torch bfloat16", network, CPU)(batch)
    assert logits.dtype == torch.float32
    assert label_agreement(logits, network(batch), stage) >= AGREEMENT["bfloat16"]


def test_the_provenance_says_what_computed():
    volume, _ = ball_phantom(Grid((40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0])))
    (stage,) = segment(volume, threshold_model(), device="cpu").provenance["stages"]
    assert stage["backend"]["backend"] == REFERENCE
    assert stage["backend"]["reason"]
    assert set(stage["seconds"]) == {"input", "self_test", "network", "labels"}
    (requested,) = segment(volume, threshold_model(), device="cpu", backend=REFERENCE).provenance["stages"]
    assert requested["backend"]["reason"] == "requested"
