# SPDX-License-Identifier: Apache-2.0
"""Public functions raise only LiverXAI's own errors, and give the same results every time, with any threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from followup_toys import liver_analysis
from toys import ball_phantom, threshold_model

import LiverXAILib as lx
from LiverXAILib.errors import DeviceError, InputError, LiverXAIError, UsageError, is_memory, own_errors, with_causes
from LiverXAILib.explain import explainer
from LiverXAILib.inference import segmenter
from LiverXAILib.measure import measuring
from LiverXAILib.volumes.volume import Grid, Volume

#: Largest difference of probabilities and heat maps (in [0, 1]) between different numbers of threads.
THREADS_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def scan():
    volume, _ = ball_phantom(Grid((20, 24, 24), np.diag([6.0, 6.0, 6.0, 1.0])))
    noise = np.random.default_rng(0).normal(scale=5, size=volume.shape)
    return volume.with_array((volume.array + noise).astype(np.float32))


@pytest.fixture(scope="module")
def model():
    return threshold_model()


@pytest.fixture(scope="module")
def segmentation(scan, model):
    return lx.segment(scan, model, device="cpu")


def asked(function, volume, model, segmentation):
    if function == "segment":
        return lx.segment(volume, model, device="cpu")
    if function == "explain":
        return lx.explain(volume, model, segmentation, "liver", device="cpu")
    return lx.measure(volume, segmentation)


FUNCTIONS = pytest.mark.parametrize("function", ["segment", "explain", "measure"])


@FUNCTIONS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_a_number_is_refused(function, value, scan, model, segmentation):
    array = scan.array.copy()
    array[3, 4, 5] = value
    with pytest.raises(InputError, match="not finite"):
        asked(function, scan.with_array(array), model, segmentation)


@FUNCTIONS
@pytest.mark.parametrize("dtype", [bool, complex, object, "U3", "datetime64[s]"])
def test_voxels_that_are_no_numbers_are_refused(function, dtype, scan, model, segmentation):
    volume = Volume(np.zeros(scan.shape, dtype), scan.ijk_to_lps)
    with pytest.raises(InputError, match="numbers"):
        asked(function, volume, model, segmentation)


@FUNCTIONS
@pytest.mark.parametrize("shape", [(0, 24, 24), (20, 24, 0)])
def test_an_image_without_voxels_is_refused(function, shape, scan, model, segmentation):
    with pytest.raises(InputError, match="voxels"):
        asked(function, Volume(np.zeros(shape, np.int16), scan.ijk_to_lps), model, segmentation)


@pytest.mark.parametrize("function", ["explain", "measure"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 24, 24), (24, 24, 20)])
def test_an_image_of_another_shape_than_its_segmentation_is_refused(function, shape, scan, model, segmentation):
    with pytest.raises(UsageError, match="grid"):
        asked(function, Volume(np.zeros(shape, np.int16), scan.ijk_to_lps), model, segmentation)


@FUNCTIONS
def test_what_is_not_an_image_is_refused_with_what_to_do(function, scan, model, segmentation):
    for thing in (scan.array, "ct.nii.gz", None):
        with pytest.raises(UsageError, match="read it first"):
            asked(function, thing, model, segmentation)


@pytest.mark.parametrize("other", [None, 3, np.zeros((20, 24, 24))])
def test_a_segmentation_of_another_kind_ends_in_one_of_our_errors(other, scan, model):
    for function in ("explain", "measure"):
        with pytest.raises(LiverXAIError):
            asked(function, scan, model, other)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), DeviceError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), DeviceError),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), DeviceError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), LiverXAIError),
        (KeyError("x"), LiverXAIError),
        (UsageError("No."), UsageError),
    ],
)
@pytest.mark.parametrize(
    ("function", "module", "name"),
    [
        ("segment", segmenter, "run_stage"),
        ("explain", explainer, "stage_maps"),
        ("measure", measuring, "numbered_lesions"),
    ],
)
def test_errors_of_other_libraries_leave_as_our_own(
    function, module, name, error, kind, scan, model, segmentation, monkeypatch
):
    def fails(*arguments, **named):
        raise error

    monkeypatch.setattr(module, name, fails)
    with pytest.raises(LiverXAIError) as raised:
        asked(function, scan, model, segmentation)
    assert type(raised.value) is kind
    assert raised.value is error or raised.value.__cause__ is error


#: For each public function, arguments of the right types, by name.
ARGUMENTS = {
    "analyze": ("volume", "model"),
    "compare": ("studies",),
    "explain": ("volume", "model", "segmentation"),
    "explain_all": ("volume", "model", "segmentation", "targets"),
    "explain_border": ("volume", "model", "segmentation"),
    "explain_lesions": ("volume", "model", "segmentation", "targets"),
    "explain_regions": ("volume", "model", "segmentation", "targets"),
    "list_series": ("path",),
    "load_model": ("name",),
    "measure": ("volume", "segmentation"),
    "read_segmentation": ("path", "volume"),
    "read_volume": ("path",),
    "refine": ("analysis", "decisions"),
    "save_model": ("card", "weights", "path"),
    "segment": ("volume", "model"),
    "write_analysis": ("analysis", "path"),
    "write_comparison": ("comparison", "path"),
    "write_volume": ("volume", "path"),
}
#: For each argument, values of other types that could be given for it by mistake, and what the message says to do.
MISTAKES = {
    "analysis": (["result", None], r"An analysis is needed, not .*: make it first, with analyze\(volume, model\)"),
    "card": (["default", None], "A model card is needed, not .*: give the ModelSpec, as in model.spec"),
    "comparison": (["result", None], r"A comparison is needed, not .*: make it first, with compare\(studies\)"),
    "decisions": ([3, "accept", ["accept"]], "A (list of decisions|decision) is needed, not "),
    "model": (["default", None], r"A model is needed, not .*: load it first, with load_model\(['\"]default"),
    "name": ([3, None], "A model's name or folder is needed, not .*: give it as text"),
    "path": ([3, None], "A path is needed, not .*: give the name of a file or folder|A list of paths is needed"),
    "segmentation": (["seg.nrrd", np.zeros(3)], r"A segmentation is needed, not .*or read it with read_segmentation"),
    "studies": (["result", 3, [3, 4]], "A (list of studies|result of analyze, a folder or a CT) is needed, not "),
    "targets": (["tumor", 3, [3]], "A (list of targets|target) is needed, not "),
    "volume": (["ct.nii.gz", np.zeros((3, 3, 3)), None], "An image is needed, not .*: read it first, with read_volume"),
}  # fmt: skip


@pytest.fixture(scope="module")
def comparison():
    return lx.compare([liver_analysis([((0, 0, 0), radius)]) for radius in (8, 10)], days=[0, 30])


def test_every_public_function_is_tried_with_wrong_types():
    assert ARGUMENTS.keys() == {name for name in lx.__all__ if name[0].islower() and callable(getattr(lx, name))}


@pytest.mark.parametrize(
    ("function", "place", "wrong"),
    [
        pytest.param(function, place, wrong, id=f"{function}-{name}-{type(wrong).__name__}")
        for function, names in ARGUMENTS.items()
        for place, name in enumerate(names)
        for wrong in MISTAKES.get(name, ([], ""))[0]
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_with_what_to_do(
    function, place, wrong, scan, model, segmentation, tmp_path, request
):
    right = {
        "volume": scan,
        "model": model,
        "segmentation": segmentation,
        "targets": ["liver"],
        "path": tmp_path,
        "name": "default",
        "analysis": liver_analysis([]),
        "decisions": [],
        "card": model.spec,
        "weights": {},
        "comparison": None,
        "studies": [],
    }
    names = ARGUMENTS[function]
    arguments = [right[name] for name in names]
    if function == "write_comparison" and place == 1:
        arguments[0] = request.getfixturevalue("comparison")
    arguments[place] = wrong
    with pytest.raises(UsageError, match=MISTAKES[names[place]][1]):
        getattr(lx, function)(*arguments)


def test_the_advice_repeats_the_path_that_was_given_instead(scan):
    with pytest.raises(UsageError, match=r"read_volume\('ct.nii.gz'\)"):
        lx.measure("ct.nii.gz", None)
    with pytest.raises(UsageError, match=r"load_model\('obelisk'\)"):
        lx.segment(scan, "obelisk")
    with pytest.raises(UsageError, match=r"read_segmentation\('seg.nrrd', volume\)"):
        lx.measure(scan, "seg.nrrd")


def test_causes_that_go_around_in_a_circle_are_each_looked_at_once():
    first, second, third = InputError("No."), RuntimeError("wrapped"), ValueError("around it")
    first.__context__, second.__cause__, third.__context__ = second, first, second
    assert [*with_causes(third)] == [third, second, first]
    assert not is_memory(third)
    second.__context__ = MemoryError()
    assert not is_memory(second)  # an explicit cause takes precedence over the context
    first.__context__ = MemoryError()
    assert is_memory(third)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_an_error(error):
    @own_errors("It failed")
    def fails():
        raise error

    with pytest.raises(error):
        fails()


def test_a_wrong_call_is_a_type_error():
    for function in (lx.segment, lx.explain, lx.explain_all, lx.explain_lesions, lx.measure, lx.analyze):
        with pytest.raises(TypeError, match="argument"):
            function()


# --- the same each time -------------------------------------------------------------------------------------------


def answer(scan, model, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        segmentation = lx.segment(scan, model, device="cpu")
        maps = [
            lx.explain(scan, model, segmentation, target, method, device="cpu").heatmap.array
            for target, method in (("liver", "seg-grad-cam"), ("tumor", "occlusion"), ("tumor", "seg-grad-cam"))
        ]
        return segmentation, maps, dataclasses.asdict(lx.measure(scan, segmentation))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(scan, model):
    return answer(scan, model, 1)


def test_labels_maps_and_measurements_are_identical_from_run_to_run(first, scan, model):
    labels, maps, measured = answer(scan, model, 1)
    np.testing.assert_array_equal(labels.labels.array, first[0].labels.array)
    for name, probability in labels.probabilities.items():
        np.testing.assert_array_equal(probability.array, first[0].probabilities[name].array)
    for one, other in zip(maps, first[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert measured == first[2]


@pytest.mark.parametrize("threads", [2, 3])
def test_labels_are_identical_and_maps_within_the_tolerance_with_other_numbers_of_threads(threads, first, scan, model):
    labels, maps, _ = answer(scan, model, threads)
    np.testing.assert_array_equal(labels.labels.array, first[0].labels.array)
    for name, probability in labels.probabilities.items():
        np.testing.assert_allclose(
            probability.array, first[0].probabilities[name].array, rtol=0, atol=THREADS_TOLERANCE
        )
    for one, other in zip(maps, first[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=THREADS_TOLERANCE)
