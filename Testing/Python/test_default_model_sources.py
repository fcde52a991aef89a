# SPDX-License-Identifier: Apache-2.0
"""Sources from scans with labels, leaving out patients; and the refinement of a teacher's liver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import ball_phantom, threshold_model

from LiverXAILib.errors import InputError
from LiverXAILib.models import Model
from LiverXAILib.volumes.io import write_volume
from LiverXAILib.volumes.volume import Grid
from recipes.default_model import leave_out
from recipes.default_model import sources as sources_module
from recipes.default_model.card import data_of
from recipes.default_model.leave_out import evaluate_scan, write
from recipes.default_model.sources import WEIGHTS, load_sources
from recipes.default_model.synthesis import Tissue
from recipes.default_model.teacher import Region, apply_corrections, refine_teacher
from recipes.default_model.tissue_maps import tissues_by_hu
from recipes.real_ct import PATIENTS, collection_of

MM = 2.0
SIZE = (48, 60, 60)


def distance(center: tuple[float, float, float]) -> np.ndarray:
    """Distance from `center` in mm."""
    return np.linalg.norm(np.moveaxis(np.indices(SIZE), 0, -1) - np.array(center), axis=-1) * MM


def body(liver_hu: float, beside_hu: float) -> tuple[np.ndarray, np.ndarray]:
    """A ball of liver of 32 mm radius, its border 4 mm wide, in a body of `beside_hu`; and the radius of each voxel."""
    radius = distance((24, 30, 30))
    share = np.clip((32 - radius) / 4 + 0.5, 0, 1)
    ct = beside_hu + share * (liver_hu - beside_hu) + np.random.default_rng(0).normal(0, 8, SIZE)
    return ct.astype(np.int16), radius


def test_a_liver_cut_short_is_grown_and_its_visible_border_is_not_called_something_else() -> None:
    for beside in (-100, -800):  # fat and lung
        ct, radius = body(110, beside)
        liver, unknown = refine_teacher(ct, radius < 28, tissues_by_hu(ct), MM)
        assert liver[radius < 28].all()
        assert not liver[radius > 32].any()
        # A reader draws the outline at half the step to fat.
        visible = (radius < 33) & (ct > 20)
        assert (liver | unknown)[visible].mean() > 0.98
        assert not (liver | unknown)[radius > 40].any()


def test_what_is_brighter_than_liver_beside_it_is_known_not_to_be_liver() -> None:
    ct, radius = body(110, -100)
    cava = distance((24, 30, 48)) < 10
    ct[cava] = 190
    liver, unknown = refine_teacher(ct, (radius < 30) | cava, tissues_by_hu(ct), MM)
    inner = distance((24, 30, 48)) < 6
    assert not (liver | unknown)[inner].any()


def test_fluid_is_told_from_liver_by_its_hu_and_the_rest_is_left_out() -> None:
    ct, radius = body(60, 12)
    liver, unknown = radius < 30, np.zeros(SIZE, dtype=bool)
    liver[:, 54:58] = True  # the teacher segments some of the fluid as liver
    tissues = tissues_by_hu(ct)
    region = Region("fluid", posterior=(60, 9999))
    apply_corrections([region], ct, tissues, liver, unknown, MM)
    behind = np.indices(SIZE)[1] >= 30
    fluid, inside = behind & (radius > 38), behind & (radius < 26)
    assert not (liver | unknown)[fluid].any()
    assert (tissues[fluid] == Tissue.FLUID).all()
    assert unknown[inside].all()
    assert (tissues[~behind] != Tissue.FLUID).all()
    assert not unknown[~behind].any()


def test_the_other_verdicts_leave_out_or_forbid() -> None:
    ct, radius = body(60, 12)
    for verdict in ("unknown", "no liver"):
        liver, unknown = radius < 30, radius < 34
        apply_corrections([Region(verdict, left=(60, 9999))], ct, tissues_by_hu(ct), liver, unknown, MM)
        right = np.indices(SIZE)[2] < 30
        assert unknown[~right].all() == (verdict == "unknown")
        assert liver[~right & (radius < 30)].all() == (verdict == "unknown")
        assert np.array_equal(unknown[right], (radius < 34)[right])


def write_scans(folder: Path, *names: str) -> Path:
    """Write scans of a ball with a lesion in air, at 4 mm, and all label files."""
    matrix = np.diag([4.0, 4.0, 4.0, 1.0])
    image, labels = ball_phantom(Grid((36, 40, 40), matrix))
    edge = np.ones(image.shape, bool)
    edge[:, 4:-4, 4:-4] = False
    image = image.with_array(np.where(edge, -1000, image.array).astype(np.int16))
    for name in names:
        place = folder / "ct" / name
        place.mkdir(parents=True)
        write_volume(image, place / "image.nii.gz")
        write_volume(labels.with_array((labels.array > 0).astype(np.uint8)), place / "liver.nii.gz")
        write_volume(labels.with_array((labels.array == 2).astype(np.uint8)), place / "tumor.nii.gz")
    return folder


def test_a_labelled_scan_becomes_a_source_with_its_tumors_and_a_border_that_nobody_is_sure_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("hcc005_a1", "hcc006_p", "pancreas_cb001")
    monkeypatch.setattr(sources_module, "WEIGHTS", dict.fromkeys(names, 1.0))
    data = write_scans(tmp_path / "data", *names)
    labelled, unknown, healthy = load_sources(data, tmp_path / "cache", spacing_mm=4.0, phantoms=())
    assert labelled.tumors is not None
    volume_ml = labelled.tumors.sum() * 64 / 1000
    assert volume_ml == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.15)
    assert not (labelled.tumors & ~labelled.liver).any()
    assert labelled.phase == "arterial"
    assert [source.tumors_known for source in (labelled, unknown, healthy)] == [True, False, True]
    assert unknown.tumors is healthy.tumors is None
    assert (labelled.tissues[labelled.liver] == Tissue.LIVER).all()
    again = load_sources(tmp_path / "gone", tmp_path / "cache", spacing_mm=4.0, phantoms=())
    assert all(np.array_equal(a.tissues, b.tissues) for a, b in zip(again, (labelled, unknown, healthy), strict=True))


def test_leaving_a_patient_out_leaves_all_their_scans_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("hcc005_a1", "hcc005_a3", "hcc007_b2")
    monkeypatch.setattr(sources_module, "WEIGHTS", dict.fromkeys(names, 1.0))
    data = write_scans(tmp_path / "data", "hcc007_b2")
    (kept,) = load_sources(data, tmp_path / "cache", spacing_mm=4.0, phantoms=(), left_out=("hcc005",))
    assert kept.name == "hcc007_b2"
    with pytest.raises(InputError, match="hcc05"):
        load_sources(data, tmp_path / "cache", phantoms=(), left_out=("hcc05",))


def test_what_is_evaluated_is_never_trained_on_and_every_scan_has_its_collection() -> None:
    listed = {scan.name for scans in PATIENTS.values() for scan in scans}
    assert listed <= set(WEIGHTS)
    assert not {"chaos03", "ircad01"} & set(WEIGHTS)
    for name in WEIGHTS:
        assert collection_of(name).doi.startswith("10.")
    lines = data_of(("hcc005",))
    assert any("hcc007_b3" in line and "10.7937/TCIA.5FNA-0924" in line for line in lines)
    assert not any("hcc005" in line for line in lines)


def test_each_scan_of_a_patient_left_out_is_judged_and_means_are_by_phase(tmp_path: Path) -> None:
    data = write_scans(tmp_path, "hcc005_a1", "hcc006_p")
    scans = {name: PATIENTS[name] for name in ("hcc005", "hcc006")}
    rows = [evaluate_scan(data, name, own[0], "model", threshold_model()) for name, own in scans.items()]
    assert rows[0]["liver_dice"] > 0.9
    assert rows[0]["tumor_dice"] > 0.8
    assert rows[0]["lesions >20 mm"] == rows[0]["found >20 mm"] == 1
    assert rows[1]["liver_dice"] > 0.9
    assert "tumor_dice" not in rows[1], "nobody labelled its tumors"
    write(rows, tmp_path)
    table = (tmp_path / "leave-out.md").read_text(encoding="utf-8")
    assert "| model | arterial | 1 |" in table
    assert "1 of 1 >20 mm" in table
    assert "| model | portal | 1 |" in table


def test_a_trained_model_is_evaluated_only_on_patients_it_never_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_scans(tmp_path, "hcc006_p", "hcc011_2")
    model = threshold_model()
    runs = {"liver": {"left_out": ["hcc006"]}, "tuning": {"left_out": ["hcc006", "hcc011"]}}
    trained = Model(replace(model.spec, training={"runs": runs}), model.networks)
    models = {"toy": trained, "before": model}
    monkeypatch.setattr(leave_out, "load_model", lambda name: models[name])
    command = ["--data", str(data), "--output", str(tmp_path / "out"), "--model", "toy", "--compare", "before"]
    assert leave_out.main([*command, "--patients", "hcc006"]) == 0
    assert [line.split(" | ")[:3] for line in capsys.readouterr().out.strip().splitlines()[2:]] == [
        ["| left out", "portal", "1"],
        ["| before", "portal", "1"],
    ]
    assert leave_out.main([*command, "--patients", "hcc006", "hcc011"]) == 1
    assert "The model was trained on hcc011: use one that was not." in capsys.readouterr().err
