# SPDX-License-Identifier: Apache-2.0
"""The confidence in a lesion attributed to regions: exact, and correct for networks with a known mechanism."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_explain_counterfactual import NeedsMarker, a_case, a_model, with_marker

from LiverXAILib.errors import UsageError
from LiverXAILib.explain import Answer, RegionShares, Target, explain_lesions, explain_regions
from LiverXAILib.explain.regions import coalitions, name_parts, shapley, shapley_values
from LiverXAILib.inference import segment
from LiverXAILib.models import LIVER, TUMOR, load_model
from LiverXAILib.pipeline import analyze
from LiverXAILib.volumes.io import read_volume

DATA = os.environ.get("LIVERXAI_TEST_DATA")
pytestmark = pytest.mark.usefixtures("one_thread")
LESION, RIM, FAR = "the lesion's core", "the lesion's rim", "what lies farther away"


@pytest.mark.parametrize("players", [1, 3, 6])
def test_shapley_values_are_the_means_over_all_orders_and_sum_to_the_difference(players):
    random = np.random.default_rng(players)
    worth = {coalition: random.normal() for coalition in coalitions(players)}
    assert len(worth) == 2**players
    ours = shapley_values(list(worth.values()))
    theirs = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            theirs[player] += (worth[before | {player}] - worth[before]) / len(orders)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert sum(ours) == pytest.approx(worth[frozenset(range(players))] - worth[frozenset()])


def shares_of(volume, network=None) -> tuple[RegionShares, dict[str, float]]:
    model = a_model(network)
    (answer,) = explain_regions(volume, model, segment(volume, model, device="cpu"), ["lesion:1"])
    shares = {part["name"]: part["share"] for part in answer.evidence["parts"]}
    evidence = answer.evidence
    assert sum(shares.values()) == pytest.approx(evidence["probability"] - evidence["replaced"], abs=1e-9)
    assert evidence["probability"] > 0.9
    box_ml = np.prod(answer.provenance["box_mm"]) / 1000
    assert sum(part["ml"] for part in evidence["parts"]) == pytest.approx(box_ml, abs=0.05)
    return answer, shares


def test_what_decides_by_the_lesion_alone_comes_from_the_lesion(monkeypatch):
    monkeypatch.setattr(shapley, "time", SimpleNamespace(perf_counter=iter((1.0, 3.45678)).__next__))
    answer, shares = shares_of(a_case())
    assert shares[LESION] + shares[RIM] == pytest.approx(answer.evidence["probability"], abs=0.02)
    assert all(abs(share) < 0.02 for name, share in shares.items() if name not in (LESION, RIM))
    assert answer.sentence.endswith("It comes from the lesion itself.")
    about = {name: answer.provenance[name] for name in ("stage", "model", "device", "seconds")}
    assert about == {"stage": "all", "model": a_model().provenance, "device": "cpu", "seconds": 2.457}
    # All coalitions of the parts, and each part outside the liver with each tissue.
    tried = [part["tried"] for part in answer.evidence["parts"] if part["tried"]]
    assert answer.provenance["passes"] == 2 ** len(shares) + sum(map(len, tried))


def test_an_and_gate_with_a_far_marker_is_exposed_with_equal_shares():
    """The lesion counts only if there is a marker 65 mm away, outside the liver: each gets half of the score."""
    answer, shares = shares_of(with_marker(a_case(), (-50, -50, -50)), NeedsMarker)
    assert shares[FAR] == pytest.approx(answer.evidence["probability"] / 2, abs=0.05)
    assert shares[LESION] + shares[RIM] == pytest.approx(answer.evidence["probability"] / 2, abs=0.05)
    assert "The prediction depends on what lies farther away, and not on the lesion alone" in answer.sentence


def test_a_marker_in_the_liver_is_told_from_one_far_away():
    _, shares = shares_of(with_marker(a_case(), (-20, -10, -20)), NeedsMarker)
    assert shares.get(FAR, 0.0) == pytest.approx(0, abs=0.02)
    assert shares["vessels and other structures in the liver"] > 0.25


class Planted(torch.nn.Module):
    """A ball of 200 HU is a tumor where `sees` allows it.

    `sees` gets the fraction of the image that is darker than tissue, and whether there is something of 290 HU in it.
    About seven tenths of the toy are dark; without the far region less than a tenth is, and in plain liver nothing.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = (1, 2, 3, 4)
        sees = self.sees((x < 30).float().mean(dim=whole), x.amax(dim=whole) > 260)[:, None, None, None, None]
        tumor = torch.where(sees & (x < 250), (x - 150).clamp(max=40) / 10, -10.0)
        return torch.cat([(x - 50) / 10, tumor], dim=1)


class Disturbed(Planted):
    """Needs only the lesion, but fails in an image that is nearly all bright, unlike any patient."""

    def sees(self, dark, marker):
        return (dark < 0.01) | (dark > 0.3)


class NeedsDark(Planted):
    """Needs something dark in addition to the lesion, such as fat or air."""

    def sees(self, dark, marker):
        return dark > 0.3


class NeedsMarkerOrLiver(Planted):
    """Needs a marker, unless there is bright tissue everywhere."""

    def sees(self, dark, marker):
        return marker | (dark < 0.01)


BY_ITSELF = "In plain liver the lesion is enough by itself (0.98), but among its own surroundings "


@pytest.mark.parametrize(
    ("network", "replaced_by", "far", "says"),
    [
        (Disturbed, "fat", 0,
         "It comes from the lesion itself. It can be disturbed from elsewhere: if plain liver took the place of what "
         "lies farther away, the confidence would be below 0.001."),
        (NeedsDark, "fat", 0,
         "Most of it comes from the lesion, but in plain liver the lesion is not enough by itself (below 0.001): the "
         "model needs something around it, even if only what replaced the parts. It can be disturbed from elsewhere: "
         "if plain liver took the place of what lies farther away, the confidence would be below 0.001."),
        (NeedsMarkerOrLiver, "soft tissue", 1 / 3,
         f"{BY_ITSELF}the prediction depends on {FAR} as well: look there."),
    ],
)  # fmt: skip
def test_what_is_said_of_the_far_never_denies_what_the_lesion_alone_shows(network, replaced_by, far, says):
    """A region is needed only if the lesion is lost whatever replaces the region."""
    volume = with_marker(a_case(), (-50, -50, 50))
    answer, shares = shares_of(volume, network)
    (change,) = explain_lesions(volume, a_model(network), segment(volume, a_model(network), device="cpu"), ["lesion:1"])
    assert answer.evidence["alone"] == pytest.approx(change.evidence["alone"], abs=1e-4)
    (part,) = (part for part in answer.evidence["parts"] if part["name"] == FAR)
    assert part["replaced_by"] == replaced_by
    assert set(part["tried"]) == {"soft tissue", "fat", "air", "plain liver"}
    assert shares[FAR] == pytest.approx(far * answer.evidence["probability"], abs=0.05)
    assert answer.sentence.endswith(says)


@pytest.mark.skipif(not DATA, reason="LIVERXAI_TEST_DATA is not set: no real CT with lesions")
def test_in_a_real_ct_a_lesion_that_is_enough_by_itself_does_not_depend_on_the_far(segmented, monkeypatch):
    """With soft tissue far away the bundled model loses the lesion; with fat or air it does not."""
    monkeypatch.setattr(
        shapley, "name_parts", lambda examined: [part for part in name_parts(examined) if part.name == FAR]
    )
    volume, asked = read_volume(Path(str(DATA)) / "ct" / "ircad01" / "image.nii.gz"), ["lesion:1"]
    model, segmentation = load_model("default"), segmented("ircad01")
    (answer,) = explain_regions(volume, model, segmentation, asked, device="cpu")
    (change,) = explain_lesions(volume, model, segmentation, asked, device="cpu")
    (part,) = answer.evidence["parts"]
    assert answer.evidence["alone"] == pytest.approx(change.evidence["alone"], abs=1e-3)
    assert change.evidence["alone"] > 0.9
    assert abs(part["share"]) < 0.05
    assert min(part["tried"].values()) < 0.1


class Everywhere(torch.nn.Module):
    """Segments a tumor at a fixed place, whatever the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tumor = torch.full_like(x, -10.0)
        tumor[:, :, 28:36, 28:36, 28:36] = 5.0
        return torch.cat([(x - 50) / 10, tumor], dim=1)


def test_an_answer_that_comes_from_nowhere_is_said_to():
    answer, shares = shares_of(a_case(), Everywhere)
    assert all(abs(share) < 0.01 for share in shares.values())
    assert "for another reason" in answer.sentence


def test_parts_are_divided_on_request_and_survive_json():
    volume, model = a_case(), a_model()
    analysis = analyze(volume, model, targets=["lesion:1"], regions=True, device="cpu")
    assert [answer.kind for answer in analysis.answers] == ["counterfactual", "regions"]
    values = analysis.provenance["answers"][1]
    again = Answer.from_dict(json.loads(json.dumps(values)))
    assert again.sentence == analysis.answers[1].sentence == values["sentence"]
    with pytest.raises(UsageError, match="name a lesion"):
        explain_regions(volume, model, analysis.segmentation, ["liver"])


def test_what_cannot_be_divided_is_said_where_the_caller_asks_for_sentences():
    """A missing lesion, a part of the liver, and a question of another kind: none of them aborts the run."""
    volume, model = a_case(), a_model()
    segmentation = segment(volume, model, device="cpu")
    for target, reason in (
        ("lesion:7", "lesion 7"),
        ("liver", "name a lesion"),
        ("why-not-tumor:voxel:lps:0,0,0", "name a lesion"),
        ("voxel:lps:900,0,0", "outside the image"),
    ):
        refusals: list[str] = []
        assert explain_regions(volume, model, segmentation, [target], refusals=refusals, device="cpu") == []
        (sentence,) = refusals
        assert sentence.startswith("Not divided among parts: ")
        assert reason in sentence
        with pytest.raises(UsageError, match=reason):
            explain_regions(volume, model, segmentation, [target], device="cpu")


CORE, VESSELS, NEAR, REST = (
    LESION,
    "vessels and other structures in the liver",
    "what lies outside the liver within 3 cm",
    "the rest of the liver",
)


def sentence_of(shares, *, probability=0.9, in_image=None, beyond=0.0, alone=0.9, tried=None):
    """The sentence for shares by name; the rest of the probability remains with every region replaced."""
    parts = [
        {"name": name, "of_lesion": name in (LESION, RIM), "ml": 1.0, "share": share, "tried": {}}
        for name, share in shares.items()
    ]
    parts[-1]["tried"] = tried or {}
    evidence = {
        "probability": probability,
        "replaced": probability - sum(shares.values()),
        "in_image": probability if in_image is None else in_image,
        "beyond": beyond,
        "alone": alone,
        "parts": parts,
    }
    return RegionShares(Target.parse("lesion:1"), evidence).sentence


ENOUGH = "In plain liver the lesion is enough by itself (0.90), but among its own surroundings the prediction"
NOT_ENOUGH = "Most of it comes from the lesion, but in plain liver the lesion is not enough by itself (0.30): the model"


@pytest.mark.parametrize(
    ("shares", "enough", "says"),
    [
        ({CORE: 0.7, RIM: 0.1}, True, "It comes from the lesion itself."),
        ({CORE: 0.5, RIM: 0.1, VESSELS: -0.04}, True, "It comes from the lesion itself."),
        ({CORE: 0.7, RIM: 0.1, VESSELS: -0.3}, True, f"It comes from the lesion itself. It is lowered by {VESSELS}."),
        ({CORE: 0.7, RIM: 0.1}, False,
         f"{NOT_ENOUGH} needs something around it, even if only what replaced the parts."),
        ({CORE: 0.4, NEAR: 0.4}, False, f"The prediction depends on {NEAR}, and not on the lesion alone: look there."),
        ({CORE: 0.4, NEAR: 0.4}, True, f"{ENOUGH} depends on {NEAR} as well: look there."),
        ({CORE: 0.02, NEAR: 0.7}, False, f"The prediction depends on {NEAR}, and hardly on the lesion: look there."),
        ({CORE: 0.02, NEAR: 0.7}, True, f"{ENOUGH} depends on {NEAR} and hardly on the lesion: look there."),
        ({CORE: -0.2, NEAR: 0.7, REST: 0.2}, False,
         f"The prediction depends on {NEAR} and {REST}, and hardly on the lesion: look there."),
        ({CORE: 0.02, VESSELS: 0.04, NEAR: 0.04, REST: 0.04, FAR: 0.04}, False,
         "It comes from the surroundings as a whole, and hardly from the lesion."),
        ({CORE: 0.02, VESSELS: 0.04, NEAR: 0.04, REST: 0.04, FAR: 0.04}, True,
         f"{ENOUGH} comes from the surroundings as a whole, and hardly from the lesion."),
        ({CORE: 0.3, VESSELS: 0.12, NEAR: 0.12, REST: 0.12, FAR: 0.12}, False,
         "It comes from the surroundings as a whole and from the lesion."),
        ({CORE: 0.3, NEAR: -0.3}, True,
         "Together these parts do not raise it: what the lesion adds (+0.30), other parts take away."),
        ({CORE: -0.3, NEAR: 0.1}, True,
         "Together these parts do not raise it: the model says tumor for another reason."),
        ({CORE: 0.01, NEAR: 0.01}, True, "What it sees here hardly matters: the model says tumor for another reason."),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_all_shares_whatever_their_sign(shares, enough, says):
    assert sentence_of(shares, alone=0.9 if enough else 0.3).endswith(f". {says}")


def test_what_takes_the_place_of_a_part_is_said_where_it_would_decide():
    tried = {"fat": 0.9, "soft tissue": 0.4}
    says = " It can be disturbed from elsewhere: if soft tissue took the place of what lies farther away, the"
    assert sentence_of({CORE: 0.8, FAR: 0.01}, tried=tried).endswith(f"{says} confidence would be 0.40.")
    assert "disturbed" not in sentence_of({CORE: 0.8, FAR: 0.01}, tried={**tried, "soft tissue": 0.5})
    assert "disturbed" not in sentence_of({CORE: 0.4, FAR: 0.4}, tried=tried)  # it is reported to depend on that
    assert "disturbed" not in sentence_of({CORE: 0.8, FAR: 0.01}, tried=tried, in_image=0.4)


def test_the_shares_in_a_sentence_sum_to_the_difference_that_it_names():
    sentence = sentence_of({CORE: 0.5, RIM: -0.11, VESSELS: 0.04, NEAR: 0.03, REST: -0.01}, beyond=-0.06)
    assert "is 0.90; with every part replaced it is 0.45." in sentence
    assert (
        f"Of the difference, +0.50 comes from {CORE}, −0.11 from {RIM} and +0.06 from the other 3 parts together."
        in sentence
    )
    assert "What lies beyond the examined box changes it by −0.06." in sentence
    sentence = sentence_of({CORE: 0.5, RIM: 0.004}, beyond=0.04)
    assert f"+0.50 comes from {CORE} and 0.00 from the other part." in sentence
    assert "beyond the examined box" not in sentence


def test_a_lesion_that_the_model_does_not_see_is_not_said_to_be_seen_for_another_reason():
    assert sentence_of({CORE: 0.01, NEAR: 0.01}, probability=0.05).endswith(": the model does not say tumor here.")
    assert sentence_of({CORE: 0.3, NEAR: -0.3}, in_image=0.4).endswith(": the model does not say tumor here.")


def test_two_confidences_in_one_lesion_are_told_apart():
    assert "is 0.90 in the examined part of the CT (0.93 in the whole CT); with" in sentence_of(
        {CORE: 0.8}, in_image=0.93
    )
    assert "is 0.90; with" in sentence_of({CORE: 0.8}, in_image=0.904)


def a_run(**masks):
    """The input of :func:`name_parts`: a ball of liver of uniform HU in a cube, 2 mm voxels, with labels in it."""
    hu = torch.where(masks["liver"], 100.0, 0.0) + torch.from_numpy(np.random.default_rng(1).normal(0, 3, (48, 48, 48)))
    none = torch.zeros((48, 48, 48), dtype=torch.bool)
    return SimpleNamespace(
        spacing=(2.0, 2.0, 2.0),
        organ="liver",
        hu=hu.float(),
        mask=lambda name: masks.get(name, none),
        segmentation=SimpleNamespace(specs=(LIVER, TUMOR)),
    )


def ball(center, radius):
    k, j, i = torch.meshgrid(*(torch.arange(48),) * 3, indexing="ij")
    return (k - center[0]) ** 2 + (j - center[1]) ** 2 + (i - center[2]) ** 2 <= radius**2


def parts_of(lesion, *others, liver=None):
    tumor = torch.stack([lesion, *others]).any(dim=0)
    liver = ball((24, 24, 24), 18) if liver is None else liver
    examined = SimpleNamespace(run=a_run(liver=liver, tumor=tumor), weights=lesion.float())
    parts = name_parts(examined)
    assert (torch.stack([part.mask for part in parts]).sum(dim=0) == 1).all()  # each voxel is in one region
    return {part.name: part for part in parts}


def test_another_lesion_is_a_part_of_its_own():
    lesion, other = ball((24, 24, 16), 4), ball((24, 24, 32), 4)
    parts = parts_of(lesion, other)
    assert torch.equal(parts["other lesions"].mask, other)
    assert not parts["other lesions"].outside
    assert VESSELS not in parts
    assert "other lesions" not in parts_of(lesion)


def test_parts_lie_at_the_distance_from_the_lesion_that_their_names_say():
    """The lesion lies at the surface of a liver with a hollow on the other side."""
    lesion, hollow = ball((24, 24, 16), 6), ball((24, 24, 39), 4)
    liver = (ball((24, 24, 24), 16) | lesion) & ~hollow
    parts = {name: part.mask.numpy() for name, part in parts_of(lesion, liver=liver).items()}

    def mm(mask):  # from the nearest voxel that is not in it
        return 2.0 * ndimage.distance_transform_edt(mask)

    away, cube = mm(~lesion), np.ones((3, 3, 3))
    core = mm(ndimage.binary_erosion(lesion, cube)) > 4
    rim = (away <= 2) & ~core
    outside = ~liver.numpy() & ~rim
    # No ball of 14 mm outside the liver reaches the bottom of the hollow.
    fissure = (mm(mm(~liver) <= 14) > 14) & outside & (away <= 30)
    assert fissure[hollow].any()
    assert not fissure[~hollow].any()
    expected = {
        CORE: core,
        RIM: rim,
        "the liver's fissures and gallbladder": fissure,
        NEAR: outside & ~fissure & (away <= 30),
        FAR: outside & (away > 30),
        REST: liver.numpy() & ~core & ~rim,
    }
    assert set(parts) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(parts[name], mask)


def test_structures_beside_a_lesion_begin_beyond_its_surroundings():
    """Voxels of 4 x 2 x 2 mm: 8 mm around the lesion are its surroundings, and the next 4 mm border on them."""
    lesion = ball((24, 24, 12), 4)
    run = a_run(liver=torch.ones((48, 48, 48), dtype=torch.bool), tumor=lesion)
    run.spacing = (4.0, 2.0, 2.0)
    run.hu[14:34, 12:36, 12:36] += 80  # a large vessel that begins at the lesion
    (vessels,) = (
        part.mask for part in name_parts(SimpleNamespace(run=run, weights=lesion.float())) if part.name == VESSELS
    )
    surroundings = ndimage.distance_transform_edt(~lesion.numpy(), sampling=run.spacing) <= 8
    beyond = ndimage.distance_transform_edt(~surroundings, sampling=run.spacing) > 4
    within = np.s_[20:28, 18:30, 16:30]  # far from healthy liver
    assert 0 < beyond[within].sum() < beyond[within].size
    np.testing.assert_array_equal(vessels[within], beyond[within])


def test_a_part_with_few_voxels_is_counted_to_its_own_side_of_the_livers_border():
    """The far region is only a corner of the box outside the liver, and the core is small, in the lesion."""
    liver = torch.ones((48, 48, 48), dtype=torch.bool)
    liver[:2, :2, :1] = False
    parts = parts_of(ball((24, 24, 24), 4), liver=liver)
    assert int(parts[FAR].mask.sum()) == 4
    assert parts[FAR].outside
    assert liver[parts[REST].mask].all()
    tiny = ball((24, 24, 24), 2)
    assert [name for name, part in parts_of(tiny).items() if part.of_lesion] == [RIM]
    assert parts_of(tiny)[RIM].mask[tiny].all()


def test_the_organ_is_the_liver_wherever_it_stands_in_the_list_of_labels():
    volume, model = a_case(), a_model()
    segmentation = segment(volume, model, device="cpu")
    assert [spec.name for spec in segmentation.specs] == ["liver", "tumor"]
    turned = dataclasses.replace(segmentation, specs=segmentation.specs[::-1])
    sentences = [
        [answer.sentence for answer in explain_regions(volume, model, one, ["lesion:1"], device="cpu")]
        for one in (segmentation, turned)
    ]
    assert sentences[0] == sentences[1]
