# SPDX-License-Identifier: Apache-2.0
"""Stand-in for Slicer's module SampleData: it stores valid sources and refuses invalid ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer


class SampleDataSource:
    """One data set that the user can load: its fields are lists of equal length, as in Slicer."""

    def __init__(
        self,
        sampleName: str | None = None,
        sampleDescription: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        checksums: Any = None,
        loadFiles: Any = None,
        customDownloader: Callable[[SampleDataSource], Any] | None = None,
        thumbnailFileName: str | None = None,
        loadFileType: Any = None,
        loadFileProperties: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(uris, str):
            uris, fileNames, nodeNames = [uris], [fileNames], [nodeNames]
            loadFiles, checksums, loadFileType = [loadFiles], [checksums], [loadFileType]
        elif isinstance(uris, (list, tuple)):
            nodeNames = nodeNames or [None] * len(uris)
            loadFiles = loadFiles or [None] * len(uris)
            checksums = checksums or [None] * len(uris)
            if loadFileType is None or isinstance(loadFileType, str):
                loadFileType = [loadFileType] * len(uris)
        else:
            raise TypeError("Slicer's SampleDataSource needs uris, as text or as a list, in every case")
        if not len(uris) == len(fileNames) == len(nodeNames) == len(loadFiles) == len(checksums) == len(loadFileType):
            raise ValueError("all fields of a sample data source must have the same length")
        if any(not isinstance(name, str) for name in fileNames):
            raise TypeError("fileNames must be text")
        self.sampleName = sampleName
        self.sampleDescription = sampleName if sampleDescription is None else sampleDescription
        self.uris, self.fileNames, self.nodeNames = list(uris), list(fileNames), list(nodeNames)
        self.checksums, self.loadFiles, self.loadFileType = list(checksums), list(loadFiles), list(loadFileType)
        self.customDownloader = customDownloader
        self.thumbnailFileName = thumbnailFileName
        self.loadFileProperties = loadFileProperties or {}


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", **source: Any) -> None:
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        slicer.modules.sampleDataSources.setdefault(category, []).append(SampleDataSource(**source))
