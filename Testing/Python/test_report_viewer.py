# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: the viewer by clicks, keys and pixels, and the page at three widths and in print."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_report import DIRECTIONS, _analysis
from toys import without_evidence

from LiverXAILib.analysis import Analysis
from LiverXAILib.report import write_report
from LiverXAILib.report.viewer import MAX_VOXELS, viewer_data, viewer_grid
from LiverXAILib.volumes.box import bounding_box

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browser_needed = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (.ci/install-system-packages)"
)
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1100,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return _analysis()


@pytest.fixture(scope="module")
def report(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "report.html"
    write_report(analysis, path)
    return path


@pytest.fixture(scope="module")
def browser(report: Path) -> Iterator[object]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: object, report: Path) -> object:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(report.as_uri())
    WebDriverWait(browser, 60).until(
        lambda driver: driver.execute_script("return document.getElementById('viewer').dataset.ready") == "true"
    )
    _settle(browser)
    return browser


def _settle(browser: object) -> None:
    """Wait until all requested drawing is done."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def _pixels(browser: object, plane: str) -> np.ndarray:
    """A canvas as RGB (rows, columns, 3)."""
    data, width, height = browser.execute_script(
        "const c = document.querySelector(`canvas[data-plane=${arguments[0]}]`);"
        "const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let s = ''; for (const b of p) s += String.fromCharCode(b); return [btoa(s), c.width, c.height];",
        plane,
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3].astype(int)


def _reddish(pixels: np.ndarray) -> int:
    return int((pixels[..., 0] - pixels[..., 2] > 60).sum())


def _set(browser: object, control: str, value: object) -> None:
    browser.execute_script(
        "const c = document.querySelector(`[data-control=${arguments[0]}]`);"
        "if (c.type === 'checkbox') c.checked = arguments[1]; else c.value = arguments[1];"
        "c.dispatchEvent(new Event('input')); c.dispatchEvent(new Event('change'));",
        control,
        value,
    )
    _settle(browser)


def _status(browser: object) -> str:
    return browser.execute_script("return document.querySelector('[data-status]').textContent")


@browser_needed
def test_a_browser_that_cannot_unpack_the_images_says_so_in_place_of_the_viewer(browser, report):
    script = {"source": "delete window.DecompressionStream"}
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        browser.get(report.as_uri())
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    shown = browser.execute_script("const v = document.getElementById('viewer'); return v.hidden ? '' : v.innerText")
    assert "This browser is too old for the viewer" in shown
    assert browser.execute_script("return document.querySelectorAll('#viewer canvas').length") == 0


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_viewer_holds_the_image_upright_whatever_way_it_lies(name: str) -> None:
    analysis = _analysis(DIRECTIONS[name])
    data = viewer_data(analysis)
    labels = np.frombuffer(gzip.decompress(base64.b64decode(data["labels"])), np.uint8).reshape(data["shape"])
    for value, mask in ((1, analysis.segmentation.labels.array == 1), (2, analysis.segmentation.mask("tumor"))):
        kji = np.argwhere(labels == value).mean(axis=0)
        found = np.array(data["origin"]) + kji[::-1] * data["spacing"]
        true = analysis.volume.grid.to_lps(np.argwhere(mask).mean(axis=0)[::-1])
        assert np.abs(found - true).max() < 1.5
        volume = (labels == value).sum() * np.prod(data["spacing"])
        assert volume == pytest.approx(mask.sum() * analysis.volume.grid.voxel_volume_mm3, rel=0.1)


def _without_lesion(analysis: Analysis) -> Analysis:
    """The analysis with an answer whose changed CT has 70 HU where the lesion is."""
    from LiverXAILib.explain import Counterfactual, Target

    box = bounding_box(analysis.segmentation.mask("tumor")).grown((4, 4, 4), analysis.volume.shape)
    part = analysis.volume.cropped(box)
    lesion = analysis.segmentation.mask("tumor")[box]
    changed = part.with_array(np.where(lesion, 70, part.array).astype(np.int16))
    answer = Counterfactual(Target.parse("lesion:1"), without_evidence(), {"without": changed})
    return dataclasses.replace(analysis, answers=(answer,))


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_viewer_holds_the_ct_without_a_lesion_and_elsewhere_the_ct(name: str) -> None:
    data = viewer_data(_without_lesion(_analysis(DIRECTIONS[name])))
    image, labels = (
        np.frombuffer(gzip.decompress(base64.b64decode(data[key])), np.uint8).reshape(data["shape"])
        for key in ("image", "labels")
    )
    (edit,) = data["edits"]
    assert edit["title"] == "without lesion 1"
    values = np.frombuffer(gzip.decompress(base64.b64decode(edit["data"])), np.uint8).reshape(edit["shape"])
    there = tuple(slice(a, a + n) for a, n in zip(edit["start"], edit["shape"], strict=True))
    inside = ndimage.binary_erosion(labels[there] == 2)
    outside = ~ndimage.binary_dilation(labels[there] == 2, iterations=2)
    hu = data["lowest_hu"] + data["step_hu"] * values.astype(float)
    assert np.abs(hu[inside] - 70).max() <= data["step_hu"]
    assert np.abs(values[outside].astype(int) - image[there][outside]).max() <= 1


def _with_candidate(analysis: Analysis) -> tuple[Analysis, np.ndarray]:
    """An analysis with a ball of low confidence in the liver, and the mask of the ball (bool, k, j, i)."""
    from LiverXAILib.measure import measure

    labels = analysis.segmentation.labels
    liver, tumor = labels.array == 1, labels.array == 2
    distance = ndimage.distance_transform_edt(liver)
    center = np.unravel_index(int(distance.argmax()), labels.shape)
    places = np.stack(np.indices(labels.shape), -1) - center
    ball = np.linalg.norm(places * labels.spacing[::-1], axis=-1) < 8
    probability = np.where(tumor, 0.98, np.where(ball, 0.7, 0.01)).astype(np.float16)
    provenance = {**analysis.segmentation.provenance, "peak_probability": {"tumor": 0.9}}
    segmentation = dataclasses.replace(
        analysis.segmentation, probabilities={"tumor": labels.with_array(probability)}, provenance=provenance
    )
    measured = measure(analysis.volume, segmentation)
    assert len(measured.candidates) == 1
    return dataclasses.replace(analysis, segmentation=segmentation, measurements=measured), ball


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_viewer_holds_candidates_where_they_are_until_they_are_accepted(name: str) -> None:
    analysis, ball = _with_candidate(_analysis(DIRECTIONS[name]))
    data = viewer_data(analysis)
    mask = np.frombuffer(gzip.decompress(base64.b64decode(data["candidates"]["data"])), np.uint8).reshape(data["shape"])
    found = np.array(data["origin"]) + np.argwhere(mask).mean(axis=0)[::-1] * data["spacing"]
    true = analysis.volume.grid.to_lps(np.argwhere(ball).mean(axis=0)[::-1])
    assert np.abs(found - true).max() < 1.0
    assert mask.sum() * np.prod(data["spacing"]) == pytest.approx(
        ball.sum() * analysis.volume.grid.voxel_volume_mm3, rel=0.1
    )
    accepted = tuple(dataclasses.replace(one, status="accepted") for one in analysis.measurements.candidates)
    measured = dataclasses.replace(analysis.measurements, candidates=accepted)
    assert viewer_data(dataclasses.replace(analysis, measurements=measured))["candidates"]["data"] is None


@browser_needed
def test_candidates_are_outlined_can_be_hidden_and_are_a_click_away(browser: object, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    analysis, _ = _with_candidate(_analysis())
    write_report(analysis, tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    WebDriverWait(browser, 60).until(
        lambda driver: driver.execute_script("return document.getElementById('viewer').dataset.ready") == "true"
    )
    browser.execute_script("document.querySelector('details.candidates').open = true;")
    browser.find_element("css selector", "button[data-candidate='1']").click()
    _settle(browser)
    assert _status(browser).endswith("liver, a candidate")
    _set(browser, "map", "-1")
    _set(browser, "outlines", False)

    def yellow() -> int:
        pixels = _pixels(browser, "axial")[60:-60, 60:-60]
        return int(((pixels[..., 0] - pixels[..., 2] > 60) & (pixels[..., 1] - pixels[..., 2] > 60)).sum())

    assert yellow() > 20
    _set(browser, "candidates", False)
    assert yellow() == 0


@browser_needed
def test_without_candidates_there_is_no_switch_for_them(page: object) -> None:
    hidden = "return document.querySelector('[data-control=candidates]').parentElement.offsetParent === null"
    assert page.execute_script(hidden)


def test_large_images_are_kept_small_and_whole() -> None:
    from LiverXAILib.inference.segmentation import Segmentation
    from LiverXAILib.models.spec import LIVER
    from LiverXAILib.volumes.volume import Volume

    matrix = np.diag([0.7, 0.7, 1.0, 1.0])
    labels = np.zeros((300, 512, 512), np.uint8)
    labels[::299, ::511, ::511] = 1
    volume = Volume(np.broadcast_to(np.int16(0), labels.shape), matrix)
    segmentation = Segmentation(Volume(labels, matrix), (LIVER,))
    grid = viewer_grid(Analysis(volume, _analysis().model, segmentation, (), _analysis().measurements, {}))
    assert np.prod(grid.shape) <= MAX_VOXELS
    extent = np.array(grid.shape[::-1]) * grid.spacing
    assert np.abs(extent - np.array([512 * 0.7, 512 * 0.7, 300])).max() < 2 * max(grid.spacing)


@browser_needed
def test_a_click_on_a_lesion_goes_there(page: object, analysis: Analysis) -> None:
    page.execute_script("document.querySelector('input[data-plane=axial]').value = 0;")
    page.find_element("css selector", "input[data-plane=axial]").send_keys("\ue010")  # End
    _settle(page)
    page.find_element("css selector", "button[data-lesion='1']").click()
    _settle(page)
    x, y, z = analysis.measurements.lesions[0].centroid_lps_mm
    shown = _status(page)
    for name, value in (("L" if x >= 0 else "R", x), ("P" if y >= 0 else "A", y), ("S" if z >= 0 else "I", z)):
        number = next(
            float(word)
            for letter, word in (part.split()[:2] for part in shown.replace(" mm", "").split(":")[0].split(", "))
            if letter == name
        )
        assert abs(number - abs(value)) <= 2
    assert shown.endswith("tumor")


@browser_needed
def test_keys_scroll_and_change_the_window(page: object) -> None:
    canvas = page.find_element("css selector", "canvas[data-plane=axial]")
    before, slices = (
        _pixels(page, "axial"),
        page.execute_script("return document.querySelector('input[data-plane=axial]').value"),
    )
    page.execute_script("arguments[0].focus()", canvas)
    canvas.send_keys("\ue013")  # arrow up
    _settle(page)
    after = page.execute_script("return document.querySelector('input[data-plane=axial]').value")
    assert int(after) == int(slices) + 1
    canvas.send_keys("2")
    _settle(page)
    narrow = _pixels(page, "axial")
    assert narrow.std() > before.std()  # a narrower window has more contrast


@browser_needed
def test_outlines_and_heat_maps_are_switched_and_thresholded(page: object) -> None:
    _set(page, "map", "-1")
    _set(page, "outlines", False)
    plain = _pixels(page, "axial")
    assert np.ptp(plain[60:-60, 60:-60], axis=-1).max() <= 6  # gray, except for letters and ticks at the edges
    _set(page, "outlines", True)
    assert np.ptp(_pixels(page, "axial")[60:-60, 60:-60], axis=-1).max() > 60
    _set(page, "outlines", False)
    _set(page, "map", "0")
    warm = _reddish(_pixels(page, "axial"))
    assert warm > 100
    _set(page, "opacity", "0")
    assert _reddish(_pixels(page, "axial")) == 0
    _set(page, "opacity", "0.5")
    _set(page, "threshold", "1")
    assert _reddish(_pixels(page, "axial")) <= warm


@browser_needed
def test_a_click_in_a_slice_moves_the_others_there(page: object) -> None:
    from selenium.webdriver import ActionChains

    canvas = page.find_element("css selector", "canvas[data-plane=axial]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    sagittal = page.execute_script("return document.querySelector('input[data-plane=sagittal]').value")
    ActionChains(page).move_to_element_with_offset(canvas, -60, 0).click().perform()
    _settle(page)
    moved = page.execute_script("return document.querySelector('input[data-plane=sagittal]').value")
    assert int(moved) < int(sagittal)  # to the patient's right, which is on the left


@browser_needed
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_the_page_fits_its_width_and_logs_no_error(page: object, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    _settle(page)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        canvases = page.find_elements("css selector", "#viewer canvas")
        tops = {canvas.rect["y"] for canvas in canvases}
        assert len(tops) == (3 if width < 640 else 1)  # stacked on a phone, side by side elsewhere
        assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@browser_needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(page: object, scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3 (level AA): a contrast ratio of at least 4.5."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    colors = page.execute_script(
        "const s = getComputedStyle(document.documentElement);"
        "return Object.fromEntries(['paper','ink','soft','accent','bad','note','tint']"
        ".map((n) => [n, s.getPropertyValue('--' + n).trim()]))"
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def luminance(text: str) -> float:
        digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
        srgb = np.array([int(digits[n : n + 2], 16) for n in (0, 2, 4)]) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    pairs = [(text, "paper") for text in ("ink", "soft", "accent", "bad")]
    for text, ground in [*pairs, ("ink", "note"), ("ink", "tint"), ("soft", "tint")]:
        low, high = sorted((luminance(colors[text]), luminance(colors[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{scheme}: {text} on {ground}"
    assert (luminance(colors["paper"]) < 0.1) == (scheme == "dark")


@browser_needed
def test_the_report_prints_on_a4_without_the_viewer(page: object) -> None:
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert b"/MediaBox [0 0 594" in pdf or b"/MediaBox [0 0 595" in pdf
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = page.execute_script("return getComputedStyle(document.getElementById('viewer')).display")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == "none"


def test_the_page_stays_under_ten_megabytes_and_the_viewer_can_be_left_out(
    report: Path, analysis: Analysis, tmp_path: Path
) -> None:
    assert report.stat().st_size < 10e6
    write_report(analysis, tmp_path / "plain.html", viewer=False)
    text = (tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<canvas" not in text


def test_viewer_and_case_label_are_options_of_an_analysis(analysis: Analysis, tmp_path: Path) -> None:
    from LiverXAILib.options import Options
    from LiverXAILib.volumes.io import write_volume

    write_volume(analysis.volume, tmp_path / "ct.nrrd")
    options = Options(viewer=False, case_label="Study 7", write=("report",), force=True)
    volume = options.read(tmp_path / "ct.nrrd")
    options.save(dataclasses.replace(analysis, volume=volume), tmp_path / "result")
    text = (tmp_path / "result" / "report.html").read_text(encoding="utf-8")
    assert "<canvas" not in text
    assert "<title>Study 7 – LiverXAI report" in text
