# SPDX-License-Identifier: Apache-2.0
"""Every backend gives torch's results in single precision, and the choice is made once and reported."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import ball_phantom, threshold_model

from LiverXAILib.errors import UsageError
from LiverXAILib.inference import backends, device, segment
from LiverXAILib.inference.backends import (
    REFERENCE,
    BackendChoice,
    available_backends,
    choose_backend,
    forward,
    label_agreement,
    partial_forward,
)
from LiverXAILib.inference.stages import stage_grids, stage_input
from LiverXAILib.models import load_model
from LiverXAILib.networks import UNet
from LiverXAILib.networks.folding import fold_batch_norms
from LiverXAILib.volumes.box import Box
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


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled model, and a folder for its networks as OpenVINO's, which are converted once for both precisions."""
    return load_model("default"), tmp_path_factory.mktemp("converted")


@pytest.mark.parametrize("name", available_backends(CPU)[1:] or ["nothing beside torch float32 is installed"])
def test_every_backend_here_gives_the_bundled_models_labels(name, bundled, monkeypatch):
    if name not in available_backends(CPU):
        pytest.skip(f"no other backend to compare: {name}")
    model, converted = bundled
    monkeypatch.setattr(backends, "_cache_folder", lambda: converted)
    for stage in model.spec.stages:
        batch = a_body(stage)[None, None]
        for network in model.members(stage):
            with torch.inference_mode():
                expected = forward(REFERENCE, network, CPU)(batch)
                logits = forward(name, network, CPU)(batch)
            assert logits.dtype == torch.float32
            assert label_agreement(logits, expected, stage) >= AGREEMENT[name.split()[1]]


@pytest.mark.skipif("openvino float32" not in available_backends(CPU), reason="the extra openvino is not installed")
def test_openvino_is_used_without_its_telemetry():
    """The package would send a message whenever it is imported."""
    import openvino.tools.ovc.telemetry_utils as used

    assert used.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert "openvino_telemetry" not in sys.modules


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


def with_clock(monkeypatch, seconds: dict[str, list[float]], answers=None) -> list[torch.Tensor]:
    """A machine whose backends take these seconds in turn, by its own clock; the batches that they are given."""
    now, batches = [0.0], []
    left = {name: iter(values) for name, values in seconds.items()}
    monkeypatch.setattr(backends, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(backends, "available_backends", lambda device: list(seconds))

    def fake(name, network, device):
        def run(batch):
            now[0] += next(left[name])
            batches.append(batch)
            logits = torch.cat([batch, batch], dim=1) - 50
            return logits if name == REFERENCE or answers is None else answers(logits)

        return run

    monkeypatch.setattr(backends, "forward", fake)
    return batches


FLOAT, HALF = "openvino float32", "torch bfloat16"


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({REFERENCE: [9, 5, 4.4, 5], FLOAT: [1, 5, 5, 4.1]}, REFERENCE),  # not faster by a tenth
        ({REFERENCE: [9, 5, 4.4, 5], FLOAT: [9, 5, 5, 3.9]}, FLOAT),
        ({REFERENCE: [1, 8, 8, 8], FLOAT: [1, 4, 4, 4], HALF: [1, 3.9, 4, 4]}, HALF),  # however little faster
        ({REFERENCE: [1, 8, 8, 8], FLOAT: [1, 3.9, 4, 4], HALF: [1, 4, 4, 4]}, FLOAT),
        ({REFERENCE: [1, 8, 8, 8], FLOAT: [1, 7.9, 8, 8], HALF: [1, 7.5, 8, 8]}, REFERENCE),
    ],
)
def test_the_best_time_after_the_first_decides_and_a_small_gain_is_none(seconds, chosen, monkeypatch):
    with_clock(monkeypatch, seconds)
    choice = choose(*a_stage_and_network())
    assert choice.backend == chosen
    assert {name: (test["first_seconds"], test["seconds"]) for name, test in choice.tests.items()} == {
        name: pytest.approx((values[0], min(values[1:]))) for name, values in seconds.items()
    }


def test_times_are_recorded_to_a_fraction_of_a_millisecond_and_the_agreement_to_a_millionth(monkeypatch):
    def one_differs(logits):
        return torch.cat([logits[..., :1] * -1, logits[..., 1:]], dim=-1)

    with_clock(monkeypatch, {REFERENCE: [2.00049, 0.25, 0.50006, 0.75], HALF: [1.0006, 3.00004, 4.0, 5.0]}, one_differs)
    assert choose(*a_stage_and_network()).tests == {
        REFERENCE: {"first_seconds": 2.0, "seconds": 0.25, "agreement": 1.0},
        HALF: {"first_seconds": 1.001, "seconds": 3.0, "agreement": 0.875},
    }


@pytest.mark.parametrize(
    ("name", "wrong", "taken"),
    [
        *((FLOAT, 0, True), (FLOAT, 1, False)),
        *(("torch float16", 2, True), ("torch float16", 3, False)),
        *((HALF, 5, True), (HALF, 6, False)),
    ],
)
def test_each_precision_has_its_own_share_of_voxels_that_may_differ(name, wrong, taken, monkeypatch):
    def changed(logits):
        logits = logits.clone()
        logits[0, 0].view(-1)[:wrong] *= -1
        return logits

    with_clock(monkeypatch, {REFERENCE: [9] * 4, name: [1] * 4}, changed)
    choice = choose(*a_stage_and_network())
    assert choice.backend == (name if taken else REFERENCE)
    assert choice.tests[name]["agreement"] == pytest.approx(1 - wrong / 512, abs=1e-6)


def test_labels_agree_where_all_regions_or_the_best_channels_do():
    nested = threshold_model().spec.stages[0]
    labels = {"liver": ("liver", "tumor"), "tumor": ("tumor",)}
    exclusive = replace(nested, activation="softmax", channels=("background", "liver", "tumor"), labels=labels)
    one, other = torch.ones(1, 2, 1, 1, 4), torch.ones(1, 2, 1, 1, 4)
    other[0, 0, 0, 0, 1], other[0, 1, 0, 0, 2], other[0, :, 0, 0, 3] = -1, 0, 3
    assert label_agreement(one, other, nested) == 0.5
    best = torch.eye(3)[None, :, None, None]
    assert label_agreement(best, best * 5 - 7, exclusive) == 1.0
    assert label_agreement(best, best[:, [0, 2, 1]], exclusive) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("dimensions", "shape"), [(3, (1, 1, 8, 8, 8)), (2, (8, 1, 8, 8))])
def test_the_slices_of_a_sample_are_a_batch_for_a_network_that_reads_slices(dimensions, shape, monkeypatch):
    batches = with_clock(monkeypatch, {REFERENCE: [1] * 4, FLOAT: [1] * 4})
    choose(threshold_model(dimensions=dimensions).spec.stages[0], a_stage_and_network()[1])
    assert {tuple(batch.shape) for batch in batches} == {shape}


def test_there_is_nothing_to_test_for_little_work_a_compiled_model_or_torch_alone(monkeypatch):
    stage, network = a_stage_and_network()
    with_clock(monkeypatch, {REFERENCE: [9] * 8, FLOAT: [1] * 8})
    assert choose(stage, network, voxels=499_999).reason == "too little work for a self-test"
    compiled = replace(stage, network="TorchScript", arguments={}, layers=(), default_layer="")
    assert choose(compiled, network) == BackendChoice(REFERENCE, "the model is compiled")
    assert choose(stage, network, voxels=500_000).backend == FLOAT
    with_clock(monkeypatch, {REFERENCE: [9] * 4})
    network.smooth.weight.data *= 2
    assert choose(stage, network) == BackendChoice(REFERENCE, "nothing else is available here")


def test_a_choice_that_cannot_be_kept_is_made_again(monkeypatch, own_cache, caplog):
    with_clock(monkeypatch, {REFERENCE: [9] * 8, FLOAT: [1] * 8})
    (own_cache / "file").write_text("")
    monkeypatch.setattr(backends, "_cache_folder", lambda: own_cache / "file")
    for _ in range(2):
        choice = choose(*a_stage_and_network())
        assert (choice.backend, choice.reason) == (FLOAT, "self-test")
        assert "cannot be saved" in caplog.text


class Summing(torch.nn.Module):
    """A network that counts what it is given, and computes a part alone if it may."""

    def __init__(self, local: bool, dimensions: int) -> None:
        super().__init__()
        self.computes_parts = local
        self.layer = (torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d)(1, 2, 1)
        self.parts: list[object] = []

    def forward(self, x: torch.Tensor, part: Box | None = None) -> torch.Tensor:
        self.parts.append(part)
        return self.layer(x if part is None else x[(..., *part)])


@pytest.mark.parametrize("name", [REFERENCE, "torch bfloat16"])
@pytest.mark.parametrize(("local", "dimensions"), [(True, 3), (False, 3), (False, 2)])
def test_the_logits_of_a_part_are_that_part_of_the_whole_logits(name, local, dimensions):
    torch.manual_seed(2)
    network = Summing(local, dimensions)
    batch = torch.randn(2, 1, 6, 7, 8) if dimensions == 3 else torch.randn(6, 1, 7, 8)
    part = Box.between((1, 2, 3), (4, 6, 5))
    with torch.inference_mode():
        found = partial_forward(name, network, CPU)(batch, part)
        whole = forward(name, network, CPU)(batch)
    index = (slice(None), slice(None), *part) if dimensions == 3 else (slice(None), slice(None), *part[1:])
    torch.testing.assert_close(found, whole[index])
    assert found.dtype == torch.float32
    assert network.parts == [part if local else None, None]


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


@pytest.mark.parametrize(("capabilities", "offered"), [(["FP32", "BF16"], True), (["FP32"], False)])
def test_openvino_offers_bfloat16_only_where_the_cpu_computes_in_it(capabilities, offered, monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: name == "openvino")
    core = SimpleNamespace(get_property=lambda device, name: {"CPU": capabilities}[device])
    monkeypatch.setattr(backends, "_core", lambda: core)
    names = available_backends(CPU)
    assert (names[0], "openvino float32" in names) == (REFERENCE, True)
    assert ("openvino bfloat16" in names) == offered
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert not [name for name in available_backends(CPU) if name.startswith("openvino")]


def test_a_choice_holds_for_one_network_on_one_machine_with_as_many_threads(monkeypatch):
    _, network = a_stage_and_network()
    keys = [backends._decision_key(network, CPU), backends._decision_key(network, CPU)]
    assert keys[0] == keys[1]
    keys.append(backends._decision_key(a_stage_and_network()[1].requires_grad_(False), CPU))
    assert keys[2] == keys[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 123)
    keys.append(backends._decision_key(network, CPU))
    monkeypatch.setattr(backends, "_processor", lambda device: "another processor")
    keys.append(backends._decision_key(network, CPU))
    network.smooth.weight.data *= 2
    keys.append(backends._decision_key(network, CPU))
    monkeypatch.setattr(backends.metadata, "version", lambda name: "another version")
    monkeypatch.setattr(backends, "find_spec", lambda name: name == "openvino")
    keys.append(backends._decision_key(network, CPU))
    assert len(set(keys)) == 5


def test_freed_memory_is_kept_until_the_outermost_block_ends_even_by_an_error(monkeypatch):
    asked = []
    libc = SimpleNamespace(mallopt=lambda *pair: asked.append(pair), malloc_trim=lambda pad: asked.append(pad))
    monkeypatch.setattr(backends, "_glibc", lambda: libc)
    monkeypatch.setattr(backends, "_keeping", 0)
    # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD: nothing mapped anew, nothing returned.
    keep, return_ = [(-4, 0), (-1, 2**31 - 1)], [(-4, 65536), (-1, 128 * 1024), 0]
    for _ in range(2):
        with suppress(KeyError), backends.keep_freed_memory(CPU):
            with backends.keep_freed_memory(CPU):
                assert asked == keep
            assert asked == keep
            raise KeyError
        assert asked == [*keep, *return_]
        del asked[:]
    with backends.keep_freed_memory(torch.device("meta")):
        assert asked == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Made: up 3000\nmodel name\t: Other\n", "Made: up 3000"),
        ("processor\t: 0\n", "arm"),
        (None, "arm"),
    ],
)
def test_a_processor_is_called_as_the_system_calls_it(text, name, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(device, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    monkeypatch.setattr(device.platform, "processor", lambda: "")
    monkeypatch.setattr(device.platform, "machine", lambda: "arm")
    assert device.processor_name() == name
    monkeypatch.setattr(device.platform, "processor", lambda: "cortex")
    assert device.processor_name() == ("cortex" if name == "arm" else name)
