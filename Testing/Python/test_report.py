# SPDX-License-Identifier: Apache-2.0
"""The report shows the patient in the right orientation, has all required statements, and is self-contained."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import json
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation
from toys import ball_phantom, threshold_model

from LiverXAILib.analysis import Analysis
from LiverXAILib.colors import heat_color
from LiverXAILib.errors import UsageError
from LiverXAILib.explain.answers import BorderNeed, Counterfactual, NeededChange, RegionShares
from LiverXAILib.explain.explanation import Explanation
from LiverXAILib.explain.targets import Target
from LiverXAILib.inference.segmentation import Segmentation
from LiverXAILib.measure import measure
from LiverXAILib.models.spec import LIVER, TUMOR
from LiverXAILib.report import html, pictures, write_report, write_segmentation_file, write_tables
from LiverXAILib.report.canvas import Picture, heat_opacity
from LiverXAILib.volumes.box import Box
from LiverXAILib.volumes.volume import Grid, Volume

OBLIQUE = Rotation.from_euler("xyz", (12, -8, 20), degrees=True).as_matrix()
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "left-handed": np.diag([-1.0, 1.0, 1.0]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
    "oblique": OBLIQUE,
    "sheared": np.array([[1.0, 0, 0], [0, 1.0, 0.3], [0, 0, 0.954]]),
}
FAITHFULNESS = {
    "passed": False,
    "sentence": "This map did not pass: 10 HU of noise change it.",
    "curves": {"fractions": [0.0, 0.125, 1.0], "deletion": [0.9, 0.4, 0.1], "insertion": [0.1, 0.3, 0.9], "gain": 0.21},
    "controls": {"edges": {"fractions": [0, 1], "deletion": [0.9, 0.1], "insertion": [0.1, 0.9], "gain": -0.04}},
}


def _grid(direction: np.ndarray) -> Grid:
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.array([3.0, 3.0, 3.5])
    matrix[:3, 3] = (10, -300, 70)
    return Grid((40, 44, 44), matrix)


def _analysis(
    direction: np.ndarray = DIRECTIONS["LPS"], *, tumor: bool = True, target: str = "tumor", **metadata: object
) -> Analysis:
    image, labels = ball_phantom(_grid(direction))
    volume = Volume(image.array, image.ijk_to_lps, {"modality": "CT", "warnings": [], **metadata})
    found = labels.array if tumor else np.minimum(labels.array, 1)
    segmentation = Segmentation(labels.with_array(found), (LIVER, TUMOR) if tumor else (LIVER,))
    heat = Volume((labels.array == 2).astype(np.float32), image.ijk_to_lps)
    explanation = Explanation(heat, 2.5, Target.parse(target), "seg-grad-cam", "smooth", FAITHFULNESS, ("A warning.",))
    provenance = {"warnings": [], "input": {"shape": list(volume.shape), **volume.metadata}}
    spec = dataclasses.replace(
        threshold_model().spec, quality={"case <1>": {"Dice": 0.97}}, limits=("Not for children.",), citation="Nobody"
    )
    return Analysis(volume, spec, segmentation, (explanation,), measure(volume, segmentation), provenance)


class _Page(HTMLParser):
    """Collects the elements that tests check."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.links += [value for name, value in attrs if name in ("src", "href") and value is not None]
        assert tag not in ("link", "iframe")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def plain(self) -> str:
        return " ".join(" ".join(self.words).split())


def _report(analysis: Analysis, folder: Path, *, viewer: bool = False) -> _Page:
    write_report(analysis, folder / "report.html", viewer=viewer)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return _Page(folder / "report.html")


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    identifiers = {"series_instance_uid": "1.2.840.99", "series": {"description": "DOE^JANE"}, "path": "/home/jane"}
    return _analysis(warnings=["The slices were resampled."], **identifiers)


@pytest.fixture(scope="module")
def page(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> _Page:
    return _report(analysis, tmp_path_factory.mktemp("report"), viewer=True)


@functools.cache
def _panels(name: str) -> list[Picture]:
    """The three CT slices of an overview of an image with the orientation `name`."""
    return list(pictures.render_planes(_analysis(DIRECTIONS[name])).values())


def _middle(mask: np.ndarray) -> np.ndarray:
    """Center of a mask as (right, down) in pixels."""
    return np.argwhere(mask).mean(axis=0)[::-1]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_left_is_on_the_right_and_anterior_on_top_whatever_way_the_image_lies(name: str) -> None:
    # The lesion lies to the left, posterior and superior of the organ's center.
    for plane, picture in zip(("axial", "coronal", "sagittal"), _panels(name), strict=True):
        right, down = _middle(picture.hu > 150) - _middle(picture.hu > 50)
        assert right > 5, f"{plane}: the lesion is not right of the organ's center"
        assert (down > 5) if plane == "axial" else (down < -5), f"{plane}: the lesion is on the wrong side"


@pytest.mark.parametrize("name", DIRECTIONS)
def test_pictures_have_the_same_scale_everywhere_and_balls_stay_round(name: str) -> None:
    panels = _panels(name)
    assert len({picture.pixel_mm for picture in panels}) == 1
    for picture in panels:
        assert picture.pixels().shape == (*picture.hu.shape, 3)
        height, width = np.ptp(np.argwhere(picture.hu > 150), axis=0) * picture.pixel_mm
        assert height == pytest.approx(24, abs=3.6)  # the ball's diameter, give or take a voxel
        assert width == pytest.approx(24, abs=3.6)


def test_a_slice_is_shown_in_its_window_black_and_white_beyond() -> None:
    hu = np.array([[-500.0, -160.0], [40.0, 240.0], [900.0, 140.0]], np.float32)
    gray = Picture(hu, pictures.WINDOW_HU, (0.0, 0.0), 1.0).pixels()
    np.testing.assert_array_equal(gray[..., 0], [[0, 0], [128, 255], [255, 191]])
    np.testing.assert_array_equal(gray, np.repeat(gray[..., :1], 3, axis=2))


def test_heat_is_painted_only_where_there_is_some_and_warm_is_influential() -> None:
    analysis = _analysis()
    picture = pictures.render_planes(analysis, analysis.explanations[0])["axial"]
    cold = dataclasses.replace(picture, heat=None)
    changed = (picture.pixels().astype(int) != cold.pixels()).any(axis=2)
    assert not changed[picture.hu < 120].mean() > 0.02
    inside = picture.hu > 195
    assert (heat_opacity(picture.heat[inside]) > 0.5).all()
    red, _, blue = heat_color(picture.heat[inside]).mean(axis=0) / 255
    assert red > 0.8 > blue


def test_an_outline_runs_along_the_border_of_what_it_surrounds_with_a_dark_halo_on_both_sides() -> None:
    analysis = _analysis()
    picture = pictures.render_planes(analysis)["axial"]
    liver = next(line for line in picture.lines if line.color == LIVER.color)
    columns, rows = picture.to_pixels(liver.points).T
    only = dataclasses.replace(picture, lines=[liver], texts=[])
    drawn, plain = only.pixels().astype(int), dataclasses.replace(only, lines=[]).pixels()
    at = drawn[rows.astype(int), columns.astype(int)]
    assert np.abs(at - LIVER.color).mean() < 25
    darker = (drawn < plain).all(axis=2)
    assert 0 < darker.mean() < 0.1
    assert (np.abs(drawn - plain).max(axis=2) > 0).mean() < 0.1  # pixels far from the line are unchanged


#: Simulation of red-green blindness, on linear sRGB: Machado, Oliveira and Fernandes 2009, severity 1.
COLOR_VISIONS = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("vision", COLOR_VISIONS)
def test_colors_run_from_cold_to_warm_and_more_influence_is_always_lighter(vision: str) -> None:
    srgb = heat_color(np.linspace(0, 1, 64)) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(COLOR_VISIONS[vision]).T, 0, 1)
    assert (np.diff(seen @ [0.2126, 0.7152, 0.0722]) > 0).all()
    (cold_red, _, cold_blue), (warm_red, _, warm_blue) = seen[0], seen[-1]
    assert cold_blue > 4 * cold_red
    assert warm_red > 4 * warm_blue


def test_an_explanation_of_a_place_is_shown_at_that_place() -> None:
    analysis = _analysis(target="voxel:ras:20,330,60")
    planes = pictures.render_planes(analysis, analysis.explanations[0])
    places = {name: {text.text for text in picture.texts} for name, picture in planes.items()}
    assert "S 60 mm" in places["axial"]
    assert "A 330 mm" in places["coronal"]
    assert "R 20 mm" in places["sagittal"]


def test_lesions_bear_their_numbers_in_the_slices_that_cut_them() -> None:
    for picture in pictures.render_planes(_analysis()).values():
        assert "1" in {text.text for text in picture.texts}


def test_a_lesion_that_a_slice_does_not_cut_has_no_number_there_however_long_it_is() -> None:
    array = np.zeros((60, 60, 60), np.uint8)
    array[5:55, 5:55, 5:55] = 1
    k, j, i = np.ogrid[:60, :60, :60]
    array[(k - 25) ** 2 + (j - 30) ** 2 + (i - 30) ** 2 <= 64] = 2
    array[38:40, 29:31, 10:50] = 2  # 80 mm long, along the axial slices, 26 mm above the middle of the other one
    volume = Volume(np.where(array == 2, 40, np.where(array == 1, 110, -100)).astype(np.int16), np.diag([2, 2, 2, 1.0]))
    segmentation = Segmentation(volume.with_array(array), (LIVER, TUMOR))
    base = _analysis()
    analysis = dataclasses.replace(
        base, volume=volume, segmentation=segmentation, measurements=measure(volume, segmentation), explanations=()
    )
    texts = {name: {text.text for text in one.texts} for name, one in pictures.render_planes(analysis).items()}
    assert {name: texts[name] & {"1", "2"} for name in texts} == {
        "axial": {"1"}, "coronal": {"1", "2"}, "sagittal": {"1", "2"},
    }  # fmt: skip


def test_a_faint_lesion_can_be_seen_in_the_window_centered_on_the_liver() -> None:
    analysis = _analysis()
    abdomen, liver = pictures.render_lesion(analysis, analysis.measurements.lesions[0])
    assert abdomen.window_hu == (-160, 240)
    mean = analysis.measurements.liver_mean_hu
    assert liver.window_hu == (pytest.approx(mean - 75), pytest.approx(mean + 75))
    np.testing.assert_array_equal(liver.hu, abdomen.hu)


def test_the_calipers_end_where_the_measurement_ends() -> None:
    analysis = _analysis(OBLIQUE)
    lesion = analysis.measurements.lesions[0]
    marked, _ = pictures.render_lesion(analysis, lesion)
    long_axis, short_axis = (line.points for line in marked.lines[-3:-1])  # then the scale bar
    assert np.linalg.norm(long_axis[1] - long_axis[0]) == pytest.approx(lesion.axial.long_mm, abs=1e-3)
    assert np.linalg.norm(short_axis[1] - short_axis[0]) == pytest.approx(lesion.axial.short_mm, abs=1e-3)


def test_the_report_is_one_file_that_needs_no_network(page: _Page) -> None:
    assert page.links  # scripts are inline, or they would be among the links
    assert all(link.startswith(("data:image/webp;base64,", "data:image/png;base64,")) for link in page.links)
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_every_picture_has_a_text_for_those_who_cannot_see_it(page: _Page) -> None:
    assert len(page.images) == 8  # three slices, a lesion, three slices with the heat map, curves
    assert all(len(image["alt"] or "") > 30 for image in page.images)


def test_the_report_says_what_it_must(page: _Page, analysis: Analysis) -> None:
    lesion = analysis.measurements.lesions[0]
    for words in (
        "For research use only",
        "The slices were resampled.",
        "What made the model say “tumor”?",
        "Method Seg-Grad-CAM, layer",
        "one value every 2 × 2 × 2 mm",
        "Do not rely on this map.",
        FAITHFULNESS["sentence"],
        "this map 0.21, edges −0.04.",
        "A warning.",
        "Not for children.",
        "Apache-2.0",
        f"{lesion.volume_ml:.2f}",
        f"{lesion.axial.long_mm:.1f} × {lesion.axial.short_mm:.1f}",
        "It does not show that the prediction is right",
    ):
        assert str(words) in page.plain
    assert page.plain.index("The slices were resampled.") < page.plain.index("Segmentation")


def test_what_could_identify_the_patient_stays_out_of_the_report(page: _Page) -> None:
    for secret in ("1.2.840.99", "JANE", "jane"):
        assert secret not in page.text


def test_the_report_of_a_model_without_tumors_says_nothing_of_them(tmp_path: Path) -> None:
    analysis = _analysis(tumor=False, target="liver")
    analysis = dataclasses.replace(analysis, model=dataclasses.replace(analysis.model, title="Liver", description=""))
    page = _report(analysis, tmp_path, viewer=True)
    said = page.plain[page.plain.index("Liver CT") : page.plain.index("Model card")].lower()
    assert "tumor" not in said
    assert "lesion" not in said


def test_the_volumes_of_the_lesions_add_up_to_the_total_that_is_shown(tmp_path: Path) -> None:
    analysis = _analysis()
    one = analysis.measurements.lesions[0]
    three = tuple(dataclasses.replace(one, number=n, volume_ml=1.004) for n in (1, 2, 3))
    measured = dataclasses.replace(analysis.measurements, lesions=three, lesion_count=3, tumor_volume_ml=3.012)
    page = _report(dataclasses.replace(analysis, measurements=measured, explanations=()), tmp_path)
    assert "All lesions (3) 3.00" in page.plain
    assert page.plain.count("1.00 ") == 3


def test_the_case_is_named_in_title_and_heading_if_it_has_a_label(tmp_path: Path) -> None:
    page = _report(dataclasses.replace(_analysis(case_label="Study 7 <b>"), explanations=()), tmp_path)
    assert "<title>Study 7 &lt;b&gt; – LiverXAI report" in page.text
    assert "Study 7 <b>: liver CT" in page.plain


def test_the_model_card_is_closed_and_tells_nothing_of_training_runs(page: _Page) -> None:
    assert "<details>\n  <summary>Model card</summary>" in page.text
    assert "<dt>Training</dt>" not in page.text


def test_an_empty_result_is_said_plainly(tmp_path: Path) -> None:
    analysis = _analysis()
    nothing = Segmentation(analysis.volume.with_array(np.zeros(analysis.volume.shape, np.uint8)), (LIVER, TUMOR))
    empty = dataclasses.replace(
        analysis, segmentation=nothing, explanations=(), measurements=measure(analysis.volume, nothing)
    )
    page = _report(empty, tmp_path, viewer=True)
    assert "No liver was found." in page.plain


def test_pictures_are_drawn_at_the_same_time_and_figures_are_not(analysis, monkeypatch):
    def at_once(*_):
        both.wait(timeout=60)

    def alone(*_, **__):
        assert saving.acquire(blocking=False), "two figures are drawn at the same time"
        threading.Event().wait(0.05)
        saving.release()

    both, saving = threading.Barrier(2), threading.Lock()
    monkeypatch.setattr(html, "_viewer", at_once)
    monkeypatch.setattr(html, "_planes", at_once)
    monkeypatch.setattr(html, "_pictured", lambda *_: None)
    monkeypatch.setattr(html, "_explanation", lambda *_: html.embedded(pictures.render_curves(FAITHFULNESS["curves"])))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", alone)
    several = dataclasses.replace(analysis, explanations=analysis.explanations * 8)
    assert len(html.draw_report(several)["explanations"]) == len(several.explanations)


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    with pytest.raises(UsageError, match="pip install jinja2"):
        write_report(_analysis(), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_tables_hold_every_lesion_and_what_does_not_exist_stays_empty(tmp_path: Path) -> None:
    measured = _analysis().measurements
    write_tables(measured, tmp_path / "m.json", tmp_path / "m.csv")
    data = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert data["liver_volume_ml"] == pytest.approx(measured.liver_volume_ml, rel=1e-5)
    assert len(data["lesions"]) == measured.lesion_count == 1
    assert data["lesions"][0]["mean_probability"] is None
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["structure"] for row in rows] == ["liver", "tumor", "lesion"]
    assert float(rows[2]["axial_long_mm"]) == pytest.approx(measured.lesions[0].axial.long_mm, rel=1e-5)
    assert rows[2]["mean_probability"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "m.json"]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_segmentation_file_keeps_place_labels_and_meaning(name: str, tmp_path: Path) -> None:
    segmentation = _analysis(DIRECTIONS[name]).segmentation
    write_segmentation_file(segmentation, tmp_path / "s.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "s.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), segmentation.labels.array)
    corner = (7, 11, 13)
    expected = segmentation.labels.grid.to_lps(np.array(corner))
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(corner), expected, atol=1e-6)
    assert image.GetMetaData("Segment1_Name") == "tumor"
    assert image.GetMetaData("Segment1_LabelValue") == "2"
    assert "SCT^4147007^Mass" in image.GetMetaData("Segment1_Tags")
    i0, i1, j0, j1, k0, k1 = map(int, image.GetMetaData("Segment1_Extent").split())
    inside = segmentation.labels.array[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] == 2
    assert inside.sum() == (segmentation.labels.array == 2).sum()
    assert all(np.take(inside, end, axis).any() for axis in range(3) for end in (0, -1))


def test_the_report_shows_the_changed_cts_with_the_sentence_about_them(tmp_path):
    analysis = dataclasses.replace(_analysis(), explanations=())
    part = analysis.volume.cropped(Box.between((10, 10, 10), (35, 35, 35)))
    evidence = {
        "probability": 0.94, "in_image": 0.94, "without": 0.003, "draws": [0.003], "elsewhere": 0.96, "alone": 0.2,
        "elsewhere_lps_mm": [20.0, -250.0, 120.0], "level_hu": 100.0, "fill": {"level": "ring", "fitted": 1.0},
    }  # fmt: skip
    answers = (
        Counterfactual(Target.parse("lesion:1"), evidence, dict.fromkeys(("without", "elsewhere", "alone"), part)),
        NeededChange(
            Target.parse("why-not-tumor:voxel:lps:50,-250,120"),
            {
                "probability": 0.02, "in_image": 0.02, "level_hu": 100.0,
                "diameters_mm": [10.0, 20.0], "contrasts_hu": [-15.0, -30.0],
                "probabilities": [[0.1, 0.2], [0.3, 0.8]], "needed": [None, -30.0],
            },
        ),
    )  # fmt: skip
    write_report(dataclasses.replace(analysis, answers=answers), tmp_path / "report.html", viewer=False)
    page = _Page(tmp_path / "report.html")
    text = " ".join(" ".join(page.words).split())
    for answer in answers:
        assert answer.sentence in text
    for caption in ("as it is: 0.94", "without it: 0.003", "moved elsewhere: 0.96", "alone in plain liver: 0.20"):
        assert caption in text
    assert sum("If the lesion were not there" in str(image["alt"]) for image in page.images) == 4
    write_report(analysis, tmp_path / "none.html", viewer=False)
    assert "predicts for a changed CT" not in (tmp_path / "none.html").read_text(encoding="utf-8")


def test_the_report_shows_the_border_with_its_sentence_its_places_and_what_the_colors_mean(tmp_path):
    analysis = dataclasses.replace(_analysis(), explanations=())
    box = Box.between((10, 10, 10), (30, 30, 30))
    need = np.zeros((20, 20, 20), np.int16)
    need[5, 3:15, 3:15], need[15, 3:15, 3:15] = 12, 36
    evidence = {
        "points": 40, "radii_mm": [8.0, 12.0, 16.0, 24.0], "counts": [0, 30, 0, 4, 6], "tolerance_mm": 2.0,
        "compared_within_mm": 6.0, "replaced_by": "reflected",
        "far": [{"lps_mm": [20.0, -250.0, 120.0], "points": 6, "where": "on the left at the top"}],
    }  # fmt: skip
    volume = Volume(need, analysis.volume.grid.cropped(box).ijk_to_lps)
    answer = BorderNeed(Target.parse("liver"), evidence, {"need": volume})
    write_report(dataclasses.replace(analysis, answers=(answer,)), tmp_path / "report.html", viewer=False)
    page = _Page(tmp_path / "report.html")
    text = " ".join(" ".join(page.words).split())
    assert answer.sentence in text
    assert "needs to see no more than 12 mm around it at half of 40 points. At 6" in answer.sentence
    assert "At 6 points (15%) the border depends on" in answer.sentence
    assert "on the left at the top: 6 points around LPS 20, −250, 120 mm" in text
    for words in ("surface, from the front", "axial slice through the largest far place", "more than 24 mm"):
        assert words in text
    assert "predicts for a changed CT" not in text


def test_the_report_shows_the_shares_of_the_parts(tmp_path):
    parts = [("the lesion's core", True, 0.5), ("the lesion's rim", True, 0.1), ("what lies farther away", False, 0.3)]
    evidence = {
        "probability": 0.95, "replaced": 0.05, "in_image": 0.95, "beyond": 0.0, "alone": 0.9,
        "parts": [{"name": n, "of_lesion": own, "ml": 2.0, "share": share, "tried": {}} for n, own, share in parts],
    }  # fmt: skip
    answer = RegionShares(Target.parse("lesion:1"), evidence)
    write_report(
        dataclasses.replace(_analysis(), answers=(answer,), explanations=()), tmp_path / "report.html", viewer=False
    )
    page = _Page(tmp_path / "report.html")
    text = " ".join(" ".join(page.words).split())
    assert answer.sentence in text
    assert "+0.50 comes from the lesion's core, +0.30 from what lies farther away" in answer.sentence
    assert "Which part of the image the prediction depends on" in text
    assert "predicts for a changed CT" not in text
    assert any("Which part the prediction depends on, lesion 1" in str(image["alt"]) for image in page.images)


@pytest.mark.parametrize("shares", [(0.54, -0.19, 0.03), (0.31, -0.03, 0.0), (0.05, -0.4, -0.001), (0.5, 0.1, 0.3)])
def test_the_numbers_beside_the_bars_of_the_shares_stay_within_the_diagram(shares):
    from LiverXAILib.report import answer_pictures

    names = ("the lesion's rim", "what lies outside the liver within 3 cm", "what lies farther away")
    parts = [{"name": name, "of_lesion": False, "share": share} for name, share in zip(names, shares, strict=True)]
    figure = answer_pictures._shares(RegionShares(Target.parse("lesion:1"), {"parts": parts}))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    for label in axes.texts:
        box = label.get_window_extent()
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.004, 2, "0.00"), (-0.4, 0, "0"), (-0.0, 1, "0.0"), (-0.006, 2, "−0.01"), (None, 1, "–")],
)
def test_a_number_that_rounds_to_zero_has_no_sign(value, digits, text):
    assert html._number(value, digits) == text


def test_the_report_has_recist_phase_and_each_lesion_s_place(page: _Page, analysis: Analysis) -> None:
    measured = analysis.measurements
    assert measured.recist is not None
    assert f"Sum of diameters {measured.recist.sum_mm} mm" in page.plain
    lesion = measured.lesions[0]
    assert lesion.contrast_hu is not None
    assert f"{abs(lesion.contrast_hu):.0f} HU brighter than the liver" in page.plain
    assert str(lesion.location) in page.plain
