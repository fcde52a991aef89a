# SPDX-License-Identifier: Apache-2.0
"""The messages between worker and client: JSON for small data, ``.npy`` files in a private folder for images.

The files are memory-mapped by the reader, so an image is neither copied nor sent through a pipe.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import Analysis, Decision
from ..errors import Cancelled, DeviceError, InputError, LiverXAIError, ModelError, UsageError
from ..explain.answers import Answer
from ..explain.explanation import Explanation
from ..explain.targets import Target
from ..inference.segmentation import Segmentation
from ..measure.measurements import Measurements
from ..models.serialization import from_json_value
from ..models.spec import ModelSpec
from ..volumes.volume import Grid, Volume

#: The "kind" of a failure and its class, most specific first; the client reports the same class.
KINDS: dict[str, type[LiverXAIError]] = {
    "cancelled": Cancelled,
    "input": InputError,
    "model": ModelError,
    "device": DeviceError,
    "usage": UsageError,
}


def pack_volume(volume: Volume, folder: Path) -> dict[str, Any]:
    """Write the voxels into `folder`; return the message for :func:`unpack_volume`, JSON-ready."""
    name = f"{uuid.uuid4().hex}.npy"
    np.save(folder / name, volume.array, allow_pickle=False)
    return {"file": name, "ijk_to_lps": volume.ijk_to_lps.tolist(), "metadata": dict(volume.metadata)}


def unpack_volume(message: Mapping[str, Any], folder: Path) -> Volume:
    """The volume, with its voxels memory-mapped from the file, read-only."""
    array = np.load(folder / message["file"], mmap_mode="r", allow_pickle=False)
    return Volume(array, np.array(message["ijk_to_lps"]), message["metadata"])


def _pack_volumes(volumes: Mapping[str, Volume], folder: Path) -> dict[str, Any]:
    return {name: pack_volume(volume, folder) for name, volume in volumes.items()}


def _unpack_volumes(message: Mapping[str, Any], folder: Path) -> dict[str, Volume]:
    return {name: unpack_volume(volume, folder) for name, volume in message.items()}


def pack_segmentation(segmentation: Segmentation, folder: Path) -> dict[str, Any]:
    """Pack labels, probabilities, grids and provenance."""
    return {
        "labels": pack_volume(segmentation.labels, folder),
        "probabilities": _pack_volumes(segmentation.probabilities, folder),
        "network_probabilities": _pack_volumes(segmentation.network_probabilities, folder),
        "stage_grids": {
            name: {"shape": list(grid.shape), "ijk_to_lps": grid.ijk_to_lps.tolist()}
            for name, grid in segmentation.stage_grids.items()
        },
        "stage_centers": dict(segmentation.stage_centers),
        "provenance": dict(segmentation.provenance),
    }


def unpack_segmentation(message: Mapping[str, Any], folder: Path, model: ModelSpec) -> Segmentation:
    """The segmentation, with the labels of `model`."""
    grids = {
        name: Grid(tuple(grid["shape"]), np.array(grid["ijk_to_lps"])) for name, grid in message["stage_grids"].items()
    }
    return Segmentation(
        unpack_volume(message["labels"], folder),
        model.labels,
        _unpack_volumes(message["probabilities"], folder),
        grids,
        message["provenance"],
        message["stage_centers"],
        _unpack_volumes(message["network_probabilities"], folder),
    )


def pack_explanation(explanation: Explanation, folder: Path) -> dict[str, Any]:
    """Pack a heat map with all its attributes."""
    return {
        "heatmap": pack_volume(explanation.heatmap, folder),
        "raw_maximum": explanation.raw_maximum,
        "target": str(explanation.target),
        "method": explanation.method,
        "layer": explanation.layer,
        "faithfulness": None if explanation.faithfulness is None else dict(explanation.faithfulness),
        "warnings": list(explanation.warnings),
        "provenance": dict(explanation.provenance),
    }


def unpack_explanation(message: Mapping[str, Any], folder: Path) -> Explanation:
    """The reverse of :func:`pack_explanation`."""
    return Explanation(
        **{
            **message,
            "heatmap": unpack_volume(message["heatmap"], folder),
            "target": Target.parse(message["target"]),
            "warnings": tuple(message["warnings"]),
        }
    )


def pack_answer(answer: Answer, folder: Path) -> dict[str, Any]:
    """Pack an explanation in numbers with its images."""
    return {"answer": answer.to_dict(), "volumes": _pack_volumes(answer.volumes, folder)}


def unpack_answer(message: Mapping[str, Any], folder: Path) -> Answer:
    """The reverse of :func:`pack_answer`."""
    volumes = _unpack_volumes(message["volumes"], folder)
    return Answer.from_dict(message["answer"], volumes)


@dataclass(frozen=True)
class Explained:
    """The result of a request for explanations: heat maps in the order of the questions, explanations in
    numbers, warnings."""

    explanations: tuple[Explanation, ...]
    answers: tuple[Answer, ...] = ()
    warnings: tuple[str, ...] = ()


def pack_explained(explained: Explained, folder: Path) -> dict[str, Any]:
    """Pack heat maps and explanations in numbers with their images."""
    return {
        "explanations": [pack_explanation(explanation, folder) for explanation in explained.explanations],
        "answers": [pack_answer(answer, folder) for answer in explained.answers],
        "warnings": list(explained.warnings),
    }


def unpack_explained(message: Mapping[str, Any], folder: Path) -> Explained:
    """The reverse of :func:`pack_explained`."""
    return Explained(
        tuple(unpack_explanation(explanation, folder) for explanation in message["explanations"]),
        tuple(unpack_answer(answer, folder) for answer in message["answers"]),
        tuple(message["warnings"]),
    )


def pack_analysis(analysis: Analysis, folder: Path) -> dict[str, Any]:
    """Pack an analysis without its image, which the client already has."""
    return {
        "model": analysis.model.to_json(),
        "segmentation": pack_segmentation(analysis.segmentation, folder),
        "explanations": [pack_explanation(explanation, folder) for explanation in analysis.explanations],
        "measurements": dataclasses.asdict(analysis.measurements),
        "provenance": dict(analysis.provenance),
        "answers": [pack_answer(answer, folder) for answer in analysis.answers],
        "decisions": [decision.to_dict() for decision in analysis.decisions],
    }


def unpack_analysis(message: Mapping[str, Any], folder: Path, volume: Volume) -> Analysis:
    """The analysis of `volume`."""
    model = ModelSpec.from_json(message["model"])
    return Analysis(
        volume,
        model,
        unpack_segmentation(message["segmentation"], folder, model),
        tuple(unpack_explanation(explanation, folder) for explanation in message["explanations"]),
        from_json_value(Measurements, message["measurements"]),
        message["provenance"],
        tuple(unpack_answer(answer, folder) for answer in message["answers"]),
        tuple(map(Decision.from_dict, message["decisions"])),
    )
