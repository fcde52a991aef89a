# SPDX-License-Identifier: Apache-2.0
"""The model's output for a changed CT: a lesion removed, moved or isolated; liver made as dark as a lesion."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from toys import Thresholds, ball_phantom, model_of, threshold_model

from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.explain import Answer, Counterfactual, NeededChange, Target, explain_lesions
from LiverXAILib.explain.answers.answer import probability_text
from LiverXAILib.explain.counterfactual import FarContextError, changes, examined
from LiverXAILib.explain.fill import plausible_fill
from LiverXAILib.inference import segment
from LiverXAILib.inference.lesions import lesion_components
from LiverXAILib.models import MODELS_VARIABLE, Model, StageSpec, load_model
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.pipeline import analyze
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.volume import Grid, Volume
from LiverXAILib.worker.wire import pack_answer, unpack_answer

DATA = os.environ.get("LIVERXAI_TEST_DATA")


def a_grid():
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = (-60.0, -60.0, -60.0)
    return Grid((64, 64, 64), matrix)


@cache
def a_case():
    """Noisy liver of 100 HU with a lesion of 200, found by a threshold at 150."""
    volume, _ = ball_phantom(a_grid(), lesion_mm=10.0)
    noise = np.random.default_rng(0).normal(0, 4, volume.shape)
    return Volume(np.rint(volume.array + noise).astype(np.int16), volume.ijk_to_lps)


@cache
def a_model(network=None):
    model = threshold_model(window=(64, 64, 64))
    if network is None:
        return model
    (stage,) = (dataclasses.asdict(stage) for stage in model.spec.stages)
    fields = {name: getattr(model.spec.stages[0], name) for name in stage}
    return model_of([fields], {"all": [network()]})


@cache
def a_segmentation(network=None):
    return segment(a_case(), a_model(network), device="cpu")


@cache
def an_answer():
    """What an explanation of the lesion finds without further options."""
    (answer,) = explain_lesions(a_case(), a_model(), a_segmentation(), ["lesion:1"])
    return answer


def test_what_decides_by_the_lesion_alone_loses_it_with_the_lesion_and_finds_it_anywhere():
    (answer,) = explain_lesions(a_case(), a_model(), a_segmentation(), ["lesion:1"], draws=3)
    assert isinstance(answer, Counterfactual)
    evidence = answer.evidence
    assert evidence["probability"] > 0.9
    assert max(evidence["draws"]) < 0.05
    assert len(evidence["draws"]) == 3
    assert evidence["elsewhere"] > 0.9
    assert evidence["alone"] > 0.9
    assert evidence["level_hu"] == pytest.approx(100, abs=3)
    assert f"from {evidence['probability']:.2f} to" in answer.sentence
    assert "recognized there as well" in answer.sentence
    assert "is enough" in answer.sentence


class NeedsMarker(nn.Module):
    """A ball of 200 HU is a tumor only if there is something of 290 HU or more anywhere in the image: an AND gate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = (x.amax(dim=(2, 3, 4), keepdim=True) > 260).float()
        tumor = (x - 150).clamp(max=40) / 10 * (x < 250)
        return torch.cat([(x - 50) / 10, torch.where(gate * (x < 250) > 0, tumor, -10.0)], dim=1)


def with_marker(volume, lps):
    array = volume.array.copy()
    i, j, k = np.rint(volume.grid.to_ijk(np.array(lps, float))).astype(int)
    array[k : k + 3, j : j + 3, i : i + 3] = 290
    return volume.with_array(array)


def test_what_needs_its_surroundings_is_told_from_what_does_not():
    volume, model = with_marker(a_case(), (-20, -10, -20)), a_model(NeedsMarker)
    segmentation = segment(volume, model, device="cpu")
    assert lesion_components(segmentation).max() == 1
    (answer,) = explain_lesions(volume, model, segmentation, ["lesion:1"])
    assert answer.evidence["without"] < 0.05
    assert answer.evidence["alone"] < 0.05
    assert "is not enough: the model needs its surroundings" in answer.sentence


class Everywhere(nn.Module):
    """Segments a tumor at a fixed place, whatever the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tumor = torch.full_like(x, -10.0)
        tumor[:, :, 28:36, 28:36, 28:36] = 5.0
        return torch.cat([(x - 50) / 10, tumor], dim=1)


def test_a_model_that_does_not_look_at_the_lesion_is_exposed():
    (answer,) = explain_lesions(a_case(), a_model(Everywhere), a_segmentation(Everywhere), ["lesion:1"])
    assert answer.evidence["without"] == pytest.approx(answer.evidence["probability"], abs=0.01)
    assert "for a reason other than this lesion" in answer.sentence
    assert "is not recognized there: the place matters" in answer.sentence


def test_what_depends_on_the_far_is_refused_rather_than_answered_wrongly():
    """No single window gives the lesion's probability in the segmentation, 0.2."""
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    volume, _ = ball_phantom(Grid((64, 64, 140), matrix), organ_mm=55.0, lesion_mm=10.0)
    noise = np.random.default_rng(0).normal(0, 4, volume.shape)
    volume = Volume(np.rint(volume.array + noise).astype(np.int16), volume.ijk_to_lps)
    model = a_model()
    segmentation = segment(volume, model, device="cpu")
    claimed = dataclasses.replace(
        segmentation,
        probabilities={
            name: Volume(np.full_like(probability.array, 0.2), probability.ijk_to_lps)
            for name, probability in segmentation.probabilities.items()
        },
    )
    with pytest.raises(FarContextError, match=r"0\.20 in the whole image, but 0\.9"):
        explain_lesions(volume, model, claimed, ["lesion:1"])
    refusals: list[str] = []
    assert explain_lesions(volume, model, claimed, ["lesion:1"], refusals=refusals) == []
    assert refusals[0].startswith("Not examined without it: lesion 1. The model's confidence")


def test_why_not_gets_the_contrast_and_the_size_that_would_make_it_a_lesion():
    volume, model, segmentation = a_case(), a_model(Dark), a_segmentation(Dark)
    (answer,) = explain_lesions(volume, model, segmentation, ["why-not-tumor:voxel:lps:-8,-8,-8"])
    assert isinstance(answer, NeededChange)
    evidence = answer.evidence
    assert evidence["probability"] < 0.01
    # The network segments tumor below 60 HU, the liver has 100: the first change tried that suffices is -45 HU.
    assert evidence["needed"] == [-45.0, -45.0, -45.0]
    assert np.shape(evidence["probabilities"]) == (len(evidence["diameters_mm"]), len(evidence["contrasts_hu"]))
    assert answer.sentence.endswith("It would say tumor if the liver here were 45 HU darker over 10 mm.")


class MuchDark(nn.Module):
    """Liver is a tumor if more than 1200 voxels (10 ml) anywhere in the image have 20 to 65 HU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dark = ((x > 20) & (x < 65)).sum(dim=(1, 2, 3, 4), keepdim=True)
        return torch.cat([(x - 5) / 2, torch.where(x > 5, (dark - 1200) / 100, -10.0)], dim=1)


def test_why_not_makes_a_ball_of_the_diameter_that_it_names():
    volume, model, segmentation = a_case(), a_model(MuchDark), a_segmentation(MuchDark)
    (answer,) = explain_lesions(volume, model, segmentation, ["why-not-tumor:voxel:lps:-8,-8,-8"])
    # A ball of 30 mm has 14 ml, one of 20 mm 4.
    assert answer.evidence["needed"] == [None, None, -45.0]
    probability = answer.evidence["probabilities"][2][answer.evidence["contrasts_hu"].index(-45.0)]
    darkened = 1200 + 100 * np.log(probability / (1 - probability))
    assert darkened == pytest.approx(4 / 3 * np.pi * 7.5**3, rel=0.05)
    assert answer.sentence.endswith("It would say tumor if the liver here were 45 HU darker over 30 mm.")


class Dark(nn.Module):
    """Tumor is liver below 60 HU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([(x - 5) / 2, torch.where(x > 5, (60 - x) / 2, -10.0)], dim=1)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (
            "why-not-tumor:voxel:lps:-58,-58,-58",
            "Not examined: why no tumor at LPS (-58, -58, -58) mm. It lies",
        ),
        ("why-not-liver:voxel:lps:-58,-58,-58", "Not examined: why no liver at LPS (-58, -58, -58) mm. Only lesions"),
        ("voxel:lps:-8,-8,-8", "Not examined without it: liver at LPS (-8, -8, -8) mm. Only lesions"),
        ("liver", "Not examined without it: liver. Only lesions"),
    ],
)
def test_what_no_change_of_a_lesion_answers_is_said_and_not_answered(target, says):
    volume, model, segmentation = a_case(), a_model(), a_segmentation()
    refusals: list[str] = []
    assert explain_lesions(volume, model, segmentation, [target], refusals=refusals) == []
    (sentence,) = refusals
    assert sentence.startswith(says)
    with pytest.raises(UsageError, match=r"outside the liver|Only lesions"):
        explain_lesions(volume, model, segmentation, [target])


def test_where_little_healthy_liver_is_near_a_larger_part_of_the_image_is_examined(monkeypatch):
    volume, model, segmentation = a_case(), a_model(), a_segmentation()
    near = an_answer()
    monkeypatch.setattr(examined, "_ENOUGH_HEALTHY", 10**9)
    (far,) = explain_lesions(volume, model, segmentation, ["lesion:1"])
    assert max(near.provenance["box_mm"]) < 64
    assert far.provenance["box_mm"] == [128, 128, 128]
    assert far.evidence["without"] == pytest.approx(near.evidence["without"], abs=0.01)


@pytest.mark.parametrize("window", [(1, 64, 64), (1, 40, 40)])
def test_for_a_network_of_slices_a_lesion_is_removed_from_all_of_them(window):
    volume, three = a_case(), a_model()
    fields = {field.name: getattr(three.spec.stages[0], field.name) for field in dataclasses.fields(StageSpec)}
    model = model_of([{**fields, "dimensions": 2, "window": window, "divisor": (1, 4, 4)}], {"all": [Thresholds(2)]})
    segmentation = segment(volume, model, device="cpu")
    (answer,) = explain_lesions(volume, model, segmentation, ["lesion:1"])
    assert answer.evidence["probability"] == pytest.approx(an_answer().evidence["probability"], abs=0.01)
    assert answer.evidence["without"] < 0.05
    lesion = lesion_components(segmentation) == 1
    edited = answer.volumes["without"]
    low = np.rint(volume.grid.to_ijk(edited.grid.origin)).astype(int)[::-1]
    part = lesion[tuple(slice(n, n + m) for n, m in zip(low, edited.shape, strict=True))]
    assert part.sum() == lesion.sum()
    assert edited.array[part].max() < 130
    assert answer.volumes["alone"].shape[0] > np.ptp(np.nonzero(lesion)[0])


def test_the_edited_ct_is_the_ct_but_for_the_lesion():
    volume, segmentation, answer = a_case(), a_segmentation(), an_answer()
    edited = answer.volumes["without"]
    low = np.rint(volume.grid.to_ijk(edited.grid.origin)).astype(int)[::-1]
    part = tuple(slice(n, n + m) for n, m in zip(low, edited.shape, strict=True))
    lesion = lesion_components(segmentation)[part] == 1
    before, after = volume.array[part], edited.array
    assert edited.array.dtype == np.int16
    assert before[lesion].mean() > 190
    assert after[lesion].mean() == pytest.approx(100, abs=4)
    assert after[lesion].std() == pytest.approx(4, abs=2)
    distant = np.abs(np.indices(lesion.shape) - np.argwhere(lesion).mean(axis=0).reshape(3, 1, 1, 1)).max(axis=0) > 10
    assert distant.any()
    np.testing.assert_array_equal(after[distant], before[distant])


def test_the_pictures_show_the_lesion_where_the_answer_says_it_is(monkeypatch):
    def fill(*about):
        made = plausible_fill(*about)
        assert made.fitted == pytest.approx(1, abs=0.01)
        return dataclasses.replace(made, fitted=0.98765)

    monkeypatch.setattr(changes, "plausible_fill", fill)
    monkeypatch.setattr(changes, "time", SimpleNamespace(perf_counter=iter((1.0, 3.45678)).__next__))
    volume, model, segmentation = a_case(), a_model(), a_segmentation()
    (answer,) = explain_lesions(volume, model, segmentation, ["lesion:1"])
    here, there = Target.parse("lesion:1").focus(segmentation), answer.evidence["elsewhere_lps_mm"]

    def distances(image, lps):
        k, j, i = np.indices(image.shape)
        return np.linalg.norm(image.grid.to_lps(np.stack([i, j, k], axis=-1)) - lps, axis=-1)

    moved, alone = answer.volumes["elsewhere"], answer.volumes["alone"]
    assert volume.array[distances(volume, there) < 8].mean() == pytest.approx(100, abs=3)
    assert moved.array[distances(moved, there) < 8].mean() == pytest.approx(200, abs=3)
    assert alone.array[distances(alone, here) < 8].mean() == pytest.approx(200, abs=3)
    # The liver's surface and the water beyond it lie within the picture, but in it all is liver.
    around = alone.array[distances(alone, here) > 16]
    np.testing.assert_allclose(np.quantile(around, (0.01, 0.5, 0.99)), (90, 100, 110), atol=4)
    assert answer.evidence["fill"] == {"level": "ring", "fitted": 0.988}
    box_mm = answer.provenance.pop("box_mm")
    assert min(box_mm) > 40
    assert answer.provenance == {"stage": "all", "model": model.provenance, "device": "cpu", "seconds": 2.457}


def test_where_the_probabilities_were_not_kept_the_answer_is_the_same():
    volume, model, segmentation = a_case(), a_model(), a_segmentation()
    bare = dataclasses.replace(segmentation, probabilities={})
    kept, (made,) = an_answer(), explain_lesions(volume, model, bare, ["lesion:1"])
    assert made.evidence["in_image"] == pytest.approx(kept.evidence["in_image"], abs=1e-3)
    assert made.sentence == kept.sentence


def test_answers_survive_json_and_the_worker_s_wire(tmp_path):
    answer = an_answer()
    again = unpack_answer(json.loads(json.dumps(pack_answer(answer, tmp_path))), tmp_path)
    assert type(again) is type(answer)
    assert again.to_dict() == answer.to_dict()
    assert again.target == Target.parse("lesion:1")
    for name, image in answer.volumes.items():
        np.testing.assert_array_equal(again.volumes[name].array, image.array)
        assert again.volumes[name].grid.matches(image.grid)
    with pytest.raises(InputError, match="does not support explanations of kind 'oracle'"):
        Answer.from_dict({**answer.to_dict(), "kind": "oracle"})


def test_an_analysis_answers_for_each_lesion_unless_nothing_is_explained():
    volume, model = a_case(), a_model()
    analysis = analyze(volume, model, targets=["lesion:1", "why-not-tumor:voxel:lps:-8,-8,-8"], device="cpu")
    assert [str(answer.target) for answer in analysis.answers] == ["lesion:1", "why-not-tumor:voxel:lps:-8,-8,-8"]
    assert [values["sentence"] for values in analysis.provenance["answers"]] == [a.sentence for a in analysis.answers]
    assert analyze(volume, model, targets=["tumor"], answers=False, device="cpu").answers == ()
    assert analyze(volume, model, targets=[], device="cpu").answers == ()


def test_a_lesion_without_healthy_liver_is_a_warning_and_not_a_failure():
    volume, model = a_case(), a_model()
    array = np.where(volume.array > 50, 200, 0).astype(np.int16)
    analysis = analyze(volume.with_array(array), model, targets=["tumor"], device="cpu")
    assert analysis.answers == ()
    (warning,) = (text for text in analysis.provenance["warnings"] if "without it" in text)
    assert "too little healthy tissue" in warning
    with pytest.raises(UsageError, match="too little healthy tissue"):
        explain_lesions(volume.with_array(array), model, analysis.segmentation, ["lesion:1"])


def the_lesions_are_gone(volume, model, segmentation):
    """Test each lesion that the model found: three draws each."""
    count = int(lesion_components(segmentation).max())
    answers = explain_lesions(volume, model, segmentation, [f"lesion:{n + 1}" for n in range(count)], draws=3)
    for answer in answers:
        assert answer.evidence["probability"] > 0.5
        assert max(answer.evidence["draws"]) < 0.05
    return answers


def test_no_lesion_of_a_phantom_outlasts_its_replacement():
    volume, model = make_phantom(7).ct, load_model("default")
    assert len(the_lesions_are_gone(volume, model, segment(volume, model, device="cpu"))) == 2


def one_of_four(name):
    """A model that has four networks with the first alone, a quarter of the time."""
    model = load_model(name)
    (stage,) = model.spec.stages
    assert len(stage.weights) == 4
    alone = dataclasses.replace(stage, weights=stage.weights[:1], sha256=stage.sha256[:1])
    return Model(dataclasses.replace(model.spec, stages=(alone,)), {stage.name: model.members(stage)[:1]})


@pytest.mark.skipif(not DATA, reason="LIVERXAI_TEST_DATA is not set: no real CT with lesions")
def test_in_a_real_ct_the_lesions_are_gone_and_an_independent_model_sees_the_same_liver(segmented, monkeypatch):
    volume, segmentation = read_volume(Path(str(DATA)) / "ct" / "ircad01" / "image.nii.gz"), segmented("ircad01")
    answers = the_lesions_are_gone(volume, load_model("default"), segmentation)
    assert len(answers) >= 3
    edited, touched = volume.array.copy(), np.zeros(volume.shape, bool)
    for answer in answers:
        part = answer.volumes["without"]
        low = np.rint(volume.grid.to_ijk(part.grid.origin)).astype(int)[::-1]
        box = tuple(slice(n, n + m) for n, m in zip(low, part.shape, strict=True))
        changed = part.array != volume.array[box]
        edited[box][changed] = part.array[changed]
        touched[box] |= changed
    monkeypatch.setenv(MODELS_VARIABLE, str(Path(str(DATA)) / "models"))
    other = one_of_four("obelisk")
    found = [segment(image, other, device="cpu") for image in (volume, volume.with_array(edited))]
    liver = [one.mask("liver") for one in found]
    lesions = segmentation.mask("tumor")
    # For a network trained by others on other scans, the largest lesion was hardly liver; its replacement is.
    assert liver[0][lesions].mean() < 0.85
    assert liver[1][lesions].mean() > 0.99
    assert ((liver[0] ^ liver[1]) & ~touched).sum() < 0.01 * liver[0].sum()


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"probability": 0.9, "in_image": 0.9, "without": 0.01}, "goes from 0.90 to 0.01. By itself"),
        ({"probability": 0.8, "in_image": 0.9, "without": 0.01},
         "goes from 0.80 to 0.01 in the examined part of the CT (0.90 in the whole CT). By itself"),
        ({"probability": 0.9, "in_image": 0.9, "without": 0.88},
         " for a reason other than this lesion. In plain liver the model says tumor here as"),
        ({"probability": 0.9, "in_image": 0.9, "without": 0.88, "alone": 0.2},
         " for a reason other than this lesion. By itself, in plain liver, it is not enough"),
        ({"probability": 0.42, "in_image": 0.55, "without": 0.35}, "(0.55 in the whole CT): part of the reason lies"),
        ({"probability": 0.3, "in_image": 0.3, "without": 0.7, "elsewhere": 0.9}, "it is recognized there: the place"),
        ({"probability": 0.3, "in_image": 0.3, "without": 0.7, "elsewhere": 0.2}, "it is not recognized there either"),
        ({"probability": 0.9, "in_image": 0.9, "without": 0.5}, "to 0.50: part of the reason lies elsewhere."),
        ({"probability": 0.9, "in_image": 0.9, "without": 0.6}, "to 0.60: part of the reason lies elsewhere."),
        ({"probability": 0.9, "in_image": 0.9, "without": 0.4}, "to 0.40. By itself"),
        ({"probability": 0.3, "in_image": 0.3, "without": 0.7}, "to 0.70: the model says tumor here only without it."),
        ({"probability": 0.04, "in_image": 0.04, "without": 0.03},
         ": the model does not say tumor here, with it or without, and 0.80 in plain liver."),
        ({"probability": 0.04, "in_image": 0.04, "without": 0.03, "elsewhere": 0.6},
         "with it or without; it is 0.60 where the lesion was moved to, and 0.80 in plain liver."),
    ],
)  # fmt: skip
def test_a_sentence_tells_what_its_confidences_are_and_claims_nothing_of_a_tumor_that_the_model_does_not_see(
    numbers, says
):
    evidence = {"elsewhere": None, "alone": 0.8, **numbers}
    sentence = Counterfactual(Target.parse("lesion:1"), evidence).sentence
    assert says in sentence
    seen = max(numbers["in_image"], numbers["without"]) > 0.5
    assert ("is enough" in sentence) == (seen and evidence["alone"] > 0.5 and "for a reason other" not in sentence)


@pytest.mark.parametrize(("in_image", "needed"), [(0.86, None), (0.86, -15.0)])
def test_of_a_place_where_the_model_says_tumor_no_change_is_asked(in_image, needed):
    evidence = {
        "probability": 0.9,
        "in_image": in_image,
        "diameters_mm": [10.0],
        "contrasts_hu": [-15.0],
        "needed": [needed],
    }
    sentence = NeededChange(Target.parse("why-not-tumor:voxel:lps:0,0,0"), evidence).sentence
    assert sentence.endswith("It already says tumor here, although this is not counted.")


@pytest.mark.parametrize(
    ("needed", "says"),
    [
        ([-60.0, -45.0, -15.0],
         "if the liver here were 60 HU darker over 10 mm or 45 HU darker over 20 mm or 15 HU darker over 30 mm."),
        ([None, -90.0, -90.0], "if the liver here were 90 HU darker over 20 mm."),
        ([-90.0, -45.0, -60.0], "if the liver here were 90 HU darker over 10 mm or 45 HU darker over 20 mm."),
        ([None, None, 15.0], "if the liver here were 15 HU brighter over 30 mm."),
        ([None, None, None],
         "No ball up to 30 mm across and up to 90 HU darker than the liver would make it say tumor here."),
    ],
)  # fmt: skip
def test_of_larger_balls_only_those_that_need_less_are_named(needed, says):
    evidence = {
        "probability": 0.2,
        "in_image": 0.5,
        "diameters_mm": [10.0, 20.0, 30.0],
        "contrasts_hu": [-15.0, -90.0],
        "needed": needed,
    }
    sentence = NeededChange(Target.parse("why-not-tumor:voxel:lps:0,0,0"), evidence).sentence
    assert sentence.startswith(
        "The model's confidence in tumor at LPS (0, 0, 0) mm is 0.20 in the examined part of the CT (0.50 in the whole"
    )
    assert sentence.endswith(says)


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.0004, "below 0.001"),
        (0.0005, "0.001"),
        (0.0006, "0.001"),
        (0.0049, "0.005"),
        (0.0051, "0.01"),
        (0.9949, "0.99"),
        (0.9951, "0.995"),
        (0.9994, "0.999"),
        (0.9995, "above 0.999"),
        (0.9996, "above 0.999"),
    ],
)
def test_a_confidence_has_the_digits_that_tell_it_from_none_and_from_certainty(probability, text):
    assert probability_text(probability) == text
