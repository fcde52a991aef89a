# SPDX-License-Identifier: Apache-2.0
"""The operating points of the default model: measured, and written into its card."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from toys import threshold_model

from LiverXAILib.evaluation.froc import FrocCase
from LiverXAILib.models import ModelSpec, registered
from recipes.default_model import sensitivity


def score(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def cases() -> list[FrocCase]:
    """Ten cases with a lesion each; two false findings at logits of 2.1 and 4.1."""
    lesions = [((2, score(1.1 + number / 2)),) for number in range(10)]
    false = [(score(4.1),), (score(2.1),), *[()] * 8]
    return [FrocCase(scores, found) for scores, found in zip(false, lesions, strict=True)]


def test_the_points_are_the_lowest_peaks_for_what_is_accepted():
    points = sensitivity.operating_points(cases())
    assert [(point.peak, point.false_per_case) for point in points] == [
        (7.0, 0.0),
        (4.25, 0.0),
        (2.25, 0.1),
        (0.0, 0.2),
    ]
    assert [point.sensitivity for point in points] == pytest.approx([0.0, 0.3, 0.7, 1.0])
    text = sensitivity.table(cases(), points)
    assert "| 2.25 | 0.10" in text


def test_the_models_own_point_is_written_with_the_others(tmp_path):
    spec = threshold_model(peak_threshold={"tumor": 5.0}).spec
    card = tmp_path / "card.json"
    card.write_text(spec.to_json(), encoding="utf-8")
    points = sensitivity.operating_points(cases())
    sensitivity.write_points(card, points)
    (stage,) = ModelSpec.from_json(card.read_text(encoding="utf-8")).stages
    assert stage.operating_points == {"tumor": points}
    assert stage.peak_threshold == {"tumor": 2.25}
    assert dataclasses.replace(stage, operating_points={}, peak_threshold={"tumor": 5.0}) == spec.stages[0]


def test_the_bundled_card_states_the_measures_of_the_recipe():
    path = Path(sensitivity.__file__).with_name("quality.json")
    assert registered("default").spec().quality == json.loads(path.read_text(encoding="utf-8"))
