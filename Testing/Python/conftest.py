# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test files share."""

from __future__ import annotations

import pytest


@pytest.fixture
def scene():
    """Slicer's scene in the test host, empty before and after the test."""
    import slicerhost

    host = slicerhost.start()
    host.clear()
    yield host.scene
    host.clear()
