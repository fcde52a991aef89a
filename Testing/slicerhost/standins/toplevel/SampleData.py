# SPDX-License-Identifier: Apache-2.0
"""Stand-in for Slicer's module SampleData: it keeps what is registered and refuses what Slicer would not understand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import slicer


@dataclass(frozen=True)
class SampleDataSource:
    """One data set that the user can ask for."""

    sampleName: str | None = None
    uris: str | None = None
    fileNames: str | None = None
    nodeNames: str | None = None
    checksums: str | None = None
    customDownloader: Callable[[SampleDataSource], Any] | None = None
    thumbnailFileName: str | None = None
    loadFileType: str | None = None


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", **source: Any) -> None:
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        slicer.modules.sampleDataSources.setdefault(category, []).append(SampleDataSource(**source))
