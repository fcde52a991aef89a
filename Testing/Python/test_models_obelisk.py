# SPDX-License-Identifier: Apache-2.0
"""The published OBELISK U-Net, in the whole pipeline, on CT with manual labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toys import dice

from LiverXAILib.models import MODELS_VARIABLE, registered
from LiverXAILib.volumes.io import read_volume

DATA = os.environ.get("LIVERXAI_TEST_DATA")


def test_its_card_can_be_read_and_its_licenses_are_known():
    spec = registered("obelisk").spec()
    assert spec.stages[0].labels == {"liver": ("liver",)}
    assert "MIT" in spec.license
    assert len(spec.stages[0].weights) == 4


@pytest.mark.skipif(not DATA, reason="LIVERXAI_TEST_DATA is not set: no CT with a manual label and no weights")
@pytest.mark.parametrize("case", ["chaos03", "ircad01"])
def test_it_finds_the_liver_as_well_as_published(case, segmented, monkeypatch):
    data = Path(str(DATA))
    monkeypatch.setenv(MODELS_VARIABLE, str(data / "models"))
    truth = read_volume(data / "ct" / case / "liver.nii.gz", force=True)
    assert dice(segmented(case, "obelisk").mask("liver"), truth.array > 0) >= 0.94
