# SPDX-License-Identifier: Apache-2.0
"""The console examples of docs/slicer.md work as printed, and its links are valid."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import slicerhost
from slicerhost.modules import load_module

from LiverXAILib.mrml import volume_to_node
from LiverXAILib.phantoms import make_phantom
from LiverXAILib.volumes.box import Box, bounding_box

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "slicer.md"


@pytest.mark.usefixtures("few_border_points")
def test_the_console_examples_run_one_after_the_other(scene, tmp_path, monkeypatch, capsys):
    import slicer
    import slicer.util

    load_module(slicerhost.start(), ROOT / "LiverXAI" / "LiverXAI.py")
    phantom = make_phantom(7, spacing_mm=(3.0, 3.0, 5.0))
    # The upper part of the liver, two thirds of it, with a lesion: each example takes less time.
    # Whole slices, because a flipped heat map must not lie on the liver.
    (k, _, _), (_, j, i) = bounding_box(phantom.truth.array > 0), Box.full(phantom.ct.shape)
    volume_to_node(phantom.ct.cropped(Box(slice((k.start + k.stop) // 2, k.stop), j, i)), scene, "CTLiver")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 5
    console = {"slicer": slicer}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), console)
    printed = capsys.readouterr().out
    assert "Liver" in printed
    assert console["liverMl"] > 500
    heat, liver = console["heat"], console["liver"] > 0
    assert heat[liver].mean() > 50 * heat[~liver].mean()  # flipped along an axis: at most 15 times
    assert "RAS" in console["whyHere"].GetAttribute("LiverXAI.Question")
    assert np.isfinite(slicer.util.arrayFromVolume(console["otherMethod"])).all()
    assert {path.name for path in tmp_path.iterdir()} == {"liver.seg.nrrd", "liver.mrb"}


def test_the_wheels_for_a_computer_without_internet_are_those_that_the_panel_asks_for(scene):
    from LiverXAILib.panel.installation import REPORT_PACKAGES

    (wheels,) = re.findall(r"pip download .* --dest wheels (.*)", PAGE.read_text(encoding="utf-8"))
    assert {*wheels.split(), "requests"} == set(REPORT_PACKAGES)  # Slicer includes requests
