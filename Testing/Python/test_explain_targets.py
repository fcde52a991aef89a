# SPDX-License-Identifier: Apache-2.0
"""Questions are parsed, written, described and located as the user meant them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from explain_toys import tiny_model, tiny_stage
from toys import ball_phantom, model_of

from LiverXAILib.errors import UsageError
from LiverXAILib.explain import (
    BoxTarget,
    Contrast,
    EmptyTargetError,
    LabelTarget,
    LesionTarget,
    PointTarget,
    Target,
    WhyNot,
)
from LiverXAILib.explain.score import positive_and_negative_channels, score_terms
from LiverXAILib.inference import Segmentation
from LiverXAILib.models import LIVER, TUMOR
from LiverXAILib.volumes.volume import Grid

TEXTS = [
    "liver",
    "tumor",
    "lesion:3",
    "voxel:lps:12.5,-30,100",
    "voxel:ras:12.5,-30,100",
    "box:lps:0,0,0,10,20,30",
    "liver:box:ras:0,-5,0,10,20,30",
    "tumor-vs-liver",
    "lesion:2-vs-liver",
    "voxel:lps:1,2,3-vs-tumor",
    "why-not-tumor:box:lps:0,0,0,10,20,30",
    "why-not-tumor:voxel:ras:-1,2,3",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_target_survives_text_and_json(text):
    target = Target.parse(text)
    assert str(target) == text
    assert Target.parse(target) is target
    assert Target.parse(json.loads(json.dumps(str(target)))) == target


@pytest.mark.parametrize("seed", range(20))
def test_a_place_survives_text_to_the_last_bit(seed):
    scale = 10.0 ** np.random.default_rng(seed).integers(-9, 9)
    numbers = tuple(np.random.default_rng(seed).normal(0, scale, 6))
    for place in (BoxTarget(numbers, "ras"), PointTarget(numbers[:3], "lps", "tumor")):
        for target in (place, Contrast(place, "liver"), *([WhyNot(place)] if place.label else [])):
            assert Target.parse(str(target)) == target
            assert hash(Target.parse(str(target))) == hash(target)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelTarget(""),
        lambda: LabelTarget("a:b"),
        lambda: LabelTarget("tumor-vs-liver"),
        lambda: LabelTarget("why-not-tumor"),
        lambda: LabelTarget(" tumor"),
        lambda: LesionTarget(0),
        lambda: PointTarget((1, 2)),
        lambda: PointTarget((1, 2, float("inf"))),
        lambda: BoxTarget((1, 2, 3)),
        lambda: PointTarget((1, 2, 3), "mni"),
        lambda: PointTarget((1, 2, 3), "lps", "lesion:1"),
        lambda: Contrast(LabelTarget("tumor"), ""),
        lambda: Contrast(Contrast(LabelTarget("tumor"), "liver"), "liver"),
        lambda: WhyNot(PointTarget((1, 2, 3))),
    ],
)
def test_a_target_that_no_text_could_say_cannot_be_made(make):
    with pytest.raises(UsageError, match=r"\w \w+"):
        make()


@pytest.mark.parametrize("text", TEXTS)
def test_a_slug_is_a_safe_and_telling_file_name(text):
    slug = Target.parse(text).slug
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug)
    assert len({Target.parse(other).slug for other in TEXTS}) == len(TEXTS)


def test_a_slug_reads_like_the_target():
    assert Target.parse("lesion:2").slug == "lesion-2"
    assert Target.parse("voxel:lps:12.5,-30,100").slug == "voxel-lps-12.5_m30_100"
    assert Target.parse("why-not-tumor:voxel:ras:-1,2,3").slug == "why-not-tumor-voxel-ras-m1_2_3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lesion:0",
        "lesion:x",
        "lesion:-1",
        "voxel:1,2,3",
        "voxel:lps:1,2",
        "voxel:lps:1,2,nan",
        "box:lps:1,2,3",
        "box:mni:1,2,3,4,5,6",
        "why-not-tumor",
        "why-not-box:lps:0,0,0,1,1,1",
        "why-not-tumor:box:lps:0,0,0,1,1,1-vs-liver",
    ],
)
def test_what_is_not_a_question_is_refused_with_examples(text):
    with pytest.raises(UsageError, match="Write a label"):
        Target.parse(text)


def test_questions_are_described_in_plain_words():
    assert Target.parse("tumor").describe() == "tumor"
    assert Target.parse("lesion:2-vs-liver").describe() == "lesion 2 rather than liver"
    assert Target.parse("tumor:voxel:ras:1,-2.5,3").describe() == "tumor at RAS (1, -2.5, 3) mm"
    assert Target.parse("voxel:lps:1,2,3").describe() == "what was found at LPS (1, 2, 3) mm"
    assert (
        Target.parse("why-not-tumor:box:lps:0,1,2,7,8,9").describe()
        == "why no tumor in the box from LPS (0, 1, 2) mm to LPS (7, 8, 9) mm"
    )


def test_each_target_asks_its_question_in_words():
    assert Target.parse("lesion:2").question() == "What made the model call lesion 2 a tumor?"
    contrast = Target.parse("lesion:2-vs-liver").question()
    assert contrast == "What made the model call lesion 2 a tumor rather than liver?"
    assert Target.parse("tumor-vs-liver").question() == "What made the model say “tumor rather than liver”?"
    assert Target.parse("why-not-tumor:voxel:lps:1,2,3").question() == "Why no tumor at LPS (1, 2, 3) mm?"


def test_pictures_look_where_the_target_is():
    labels = np.ones((40, 44, 48), np.uint8)
    labels[20:25, 10:15, 30:35] = 2
    segmentation = a_segmentation(labels)
    center = segmentation.labels.grid.to_lps((32, 12, 22))
    np.testing.assert_allclose(Target.parse("lesion:1").focus(segmentation), center)
    np.testing.assert_allclose(Target.parse("lesion:1-vs-liver").focus(segmentation), center)
    np.testing.assert_allclose(Target.parse("voxel:ras:1,2,3").focus(segmentation), (-1, -2, 3))
    np.testing.assert_allclose(Target.parse("why-not-tumor:box:lps:0,0,0,4,6,8").focus(segmentation), (2, 3, 4))
    assert Target.parse("liver").focus(segmentation) is None


def a_segmentation(labels=None):
    matrix = np.diag([2.0, 2.0, 2.5, 1.0])
    matrix[:3, 3] = (-30.0, -20.0, 5.0)
    volume, truth = ball_phantom(Grid((40, 44, 48), matrix))
    return Segmentation(volume.with_array(truth.array if labels is None else labels), (LIVER, TUMOR))


def test_lesions_are_numbered_as_in_the_table():
    labels = np.ones((40, 44, 48), np.uint8)
    labels[5:8, 5:8, 5:8] = 2
    labels[20:25, 20:25, 20:25] = 2
    segmentation = a_segmentation(labels)
    assert Target.parse("lesion:1").mask(segmentation).sum() == 125
    assert Target.parse("lesion:2").mask(segmentation).sum() == 27
    with pytest.raises(EmptyTargetError, match="no lesion 3; the number of lesions found is 2"):
        Target.parse("lesion:3").mask(segmentation)


def test_a_point_means_the_same_place_in_both_coordinate_systems():
    segmentation = a_segmentation()
    grid = segmentation.labels.grid
    k, j, i = (int(n) for n in np.argwhere(segmentation.labels.array == 2)[10])
    x, y, z = grid.to_lps((i, j, k)) + np.array((0.4, -0.4, 0.4))
    lps = Target.parse(f"voxel:lps:{x},{y},{z}")
    ras = Target.parse(f"voxel:ras:{-x},{-y},{z}")
    expected = np.zeros(grid.shape, bool)
    expected[k, j, i] = True
    np.testing.assert_array_equal(lps.mask(segmentation), expected)
    np.testing.assert_array_equal(ras.mask(segmentation), expected)
    assert lps.resolve(segmentation).label == "tumor"


@pytest.mark.parametrize("axis", range(3))
def test_a_point_lies_in_the_image_up_to_its_outermost_voxels(axis):
    grid = a_segmentation().labels.grid
    for index, inside in ((-1, False), (0, True), (grid.shape[2 - axis] - 1, True), (grid.shape[2 - axis], False)):
        voxel = [5, 5, 5]
        voxel[axis] = index
        point = PointTarget(tuple(grid.to_lps(voxel)))
        if inside:
            assert np.argwhere(point.place(grid)).tolist() == [voxel[::-1]]
        else:
            with pytest.raises(UsageError, match="lies outside the image"):
                point.place(grid)


def test_a_box_holds_the_label_s_voxels_whose_centers_lie_in_it():
    segmentation = a_segmentation()
    array = segmentation.labels.array
    grid = segmentation.labels.grid
    # Corners in any order; this one cuts through the organ next to the lesion.
    corner_a, corner_b = grid.to_lps((30.4, 10.4, 8.4)), grid.to_lps((2.6, 20.4, 15.4))
    text = ",".join(f"{number:.4f}" for number in (*corner_a, *corner_b))
    mask = Target.parse(f"box:lps:{text}").mask(segmentation)
    expected = np.zeros_like(array, bool)
    expected[9:16, 11:21, 3:31] = array[9:16, 11:21, 3:31] > 0
    assert not (array[9:16, 11:21, 3:31] == 2).any()
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_box_in_an_oblique_image_holds_all_voxels_whose_centers_lie_in_it(seed):
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(3, 3)))[0] * random.uniform(0.5, 3.0, 3)
    matrix = np.eye(4)
    matrix[:3] = np.column_stack((axes, random.normal(0, 50, 3)))
    grid = Grid((9, 11, 13), matrix)
    k, j, i = np.indices(grid.shape)
    centers = grid.to_lps(np.stack((i, j, k), axis=-1))
    inside = centers[tuple(random.integers(0, grid.shape))]
    numbers = np.stack((inside, inside + random.normal(0, 10.0 ** random.integers(0, 4), 3)))
    expected = ((centers >= numbers.min(axis=0)) & (centers <= numbers.max(axis=0))).all(axis=-1)
    np.testing.assert_array_equal(BoxTarget(tuple(numbers.ravel())).place(grid), expected)


def test_a_box_of_huge_numbers_holds_the_whole_image():
    grid = a_segmentation().labels.grid
    assert BoxTarget((-1e308, -1e308, -1e308, 1e308, 1e308, 1e308)).place(grid).all()


def test_why_not_asks_about_the_voxels_that_are_not_the_label():
    segmentation = a_segmentation()
    grid = segmentation.labels.grid
    low, high = grid.to_lps((-0.4, -0.4, -0.4)), grid.to_lps((47.4, 43.4, 39.4))
    text = ",".join(f"{number:.3f}" for number in (*low, *high))
    mask = Target.parse(f"why-not-tumor:box:lps:{text}").mask(segmentation)
    np.testing.assert_array_equal(mask, segmentation.labels.array != 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tumor", "No tumor was found"),
        ("liver", "No liver"),
        ("voxel:lps:0,0,40", "Nothing was found"),
        ("lesion:1", "found is 0"),
    ],
)
def test_nothing_found_is_an_answer_of_its_own_kind(text, words):
    segmentation = a_segmentation(np.zeros((40, 44, 48), np.uint8))
    with pytest.raises(EmptyTargetError, match=words):
        Target.parse(text).mask(segmentation)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tumor:voxel:lps:-20,-10,15", "No tumor was found there. Ask 'why-not-tumor:…' instead."),
        ("why-not-liver:voxel:lps:-20,-10,15", "All of it is liver"),
    ],
)
def test_what_a_place_does_not_show_is_said_and_nothing_else_is_explained(text, words):
    with pytest.raises(EmptyTargetError, match=words):
        Target.parse(text).mask(a_segmentation(np.ones((40, 44, 48), np.uint8)))


@pytest.mark.parametrize("text", ["spleen", "voxel:lps:1000,0,0", "box:ras:500,500,500,600,600,600"])
def test_an_impossible_question_is_an_error(text):
    with pytest.raises(UsageError) as caught:
        Target.parse(text).mask(a_segmentation())
    assert not isinstance(caught.value, EmptyTargetError)


def terms_of(text, segmentation, model):
    target = Target.parse(text)
    mask = target.mask(segmentation)
    return score_terms(target, mask, segmentation, model.spec, model.spec.stages[0]), mask


def test_the_liver_is_scored_by_the_channel_that_decided_each_voxel():
    segmentation, model = a_segmentation(), tiny_model()
    terms, mask = terms_of("liver", segmentation, model)
    assert {term.channels: (term.sign, int(term.mask.sum())) for term in terms} == {
        (2,): (1.0, int((segmentation.labels.array == 2).sum())),
        (1,): (1.0, int((segmentation.labels.array == 1).sum())),
    }
    assert sum(term.mask.sum() for term in terms) == mask.sum()


def test_nested_channels_have_no_rivals():
    stage = tiny_stage(activation="sigmoid", channels=("liver", "tumor"))
    stage["labels"] = {"liver": ("liver",), "tumor": ("tumor",)}
    model = model_of([stage], {"all": []})
    (term,), _ = terms_of("tumor-vs-liver", a_segmentation(), model)
    assert (term.channels, term.sign) == ((1,), 1.0)
    (term,), _ = terms_of("liver", a_segmentation(), model)
    assert (term.channels, term.sign) == ((0,), 1.0)


def test_a_rival_the_stage_does_not_know_is_everything_else():
    stage = tiny_stage(channels=("background", "lesion"), labels={"tumor": ("lesion",)}, name="lesions")
    other = tiny_stage(name="liver", labels={"liver": ("liver", "tumor")})
    model = model_of([other, stage], {"lesions": [], "liver": []})
    assert positive_and_negative_channels(Target.parse("tumor-vs-liver"), model.spec, model.spec.stages[1]) == (
        (1,),
        (0,),
    )
    assert positive_and_negative_channels(
        Target.parse("why-not-tumor:voxel:lps:0,0,0"), model.spec, model.spec.stages[1]
    ) == ((0,), (1,))


def test_what_shares_all_channels_with_its_rival_cannot_be_told_from_it():
    """Wherever the tumor's channel decides, it is liver as well."""
    model = tiny_model()
    with pytest.raises(UsageError, match="liver cannot be distinguished from tumor"):
        positive_and_negative_channels(Target.parse("liver-vs-tumor"), model.spec, model.spec.stages[0])


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("liver", {"is_whole_label"}),
        ("lesion:2", {"is_lesion", "lesion", "asks_for_changed_cts"}),
        ("lesion:2-vs-liver", {"lesion", "compared_with"}),
        ("tumor-vs-liver", {"compared_with"}),
        ("voxel:lps:1,2,3", set()),
        ("why-not-tumor:voxel:lps:1,2,3", {"is_why_not", "asks_for_changed_cts"}),
    ],
)
def test_a_target_says_what_kind_of_question_it_is(text, asks):
    target = Target.parse(text)
    kinds = ("is_whole_label", "is_lesion", "lesion", "is_why_not", "asks_for_changed_cts", "compared_with")
    assert {kind for kind in kinds if getattr(target, kind)} == asks


def test_a_target_about_a_lesion_can_be_asked_about_another_one():
    for text in ("lesion:2", "lesion:2-vs-liver"):
        target = Target.parse(text)
        assert target.lesion == 2
        assert str(target.of_lesion(5)) == text.replace("2", "5")
    with pytest.raises(ValueError, match="not about a lesion"):
        Target.parse("liver").of_lesion(1)


def test_nobody_else_tests_for_classes_of_targets():
    """A new kind of target is one class: what others need to know is asked of the target."""
    classes = "Target|LabelTarget|LesionTarget|PlaceTarget|PointTarget|BoxTarget|Contrast|WhyNot"
    library = Path(__file__).parents[2] / "LiverXAILib"
    found = [
        f"{path.relative_to(library)}: {line.strip()}"
        for path in sorted(library.rglob("*.py"))
        if path != library / "explain" / "targets.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(rf"isinstance\(.*\b({classes})\b", line)
    ]
    assert found == []
