# SPDX-License-Identifier: Apache-2.0
"""The bridge to 3D Slicer's scene: nodes to data types and back, and a scene as a file.

The scene is always an argument, so the same code works in Slicer, its batch scripts, and plain Python with the
`slicer-core` wheel. Importing this package loads neither: a function's module is imported at its first use.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .changed_cts import changed_ct_steps, prepare_changed_cts, show_changed_ct
    from .display import set_heat_opacity, set_heat_threshold, show_overlay, show_surfaces
    from .heatmaps import explanation_to_node, hottest_place, hottest_point, uncertainty_to_node
    from .nodes import all_results, bring_back, find_results, input_of, put_aside, sets_aside
    from .placing import place_result, place_results
    from .plots import curves_to_chart
    from .results import (
        AnalysisNodes,
        analysis_to_nodes,
        node_steps,
        prepare_heatmaps,
        prepare_nodes,
        update_refined,
    )
    from .scene import write_scene
    from .segmentations import (
        decisions_of,
        moved_point,
        moved_since,
        read_segments,
        require_segment,
        segment_layers,
        segmentation_from_node,
        segmentation_to_node,
        sensitivity_of,
        unused_segments,
    )
    from .tables import measurements_to_node
    from .tokens import differs_from_measured, labels_token, prepare_state, record_measured, volume_token
    from .volumes import ct_from_node, volume_from_node, volume_to_node

_HOMES = {
    "AnalysisNodes": "results",
    "all_results": "nodes",
    "analysis_to_nodes": "results",
    "bring_back": "nodes",
    "changed_ct_steps": "changed_cts",
    "ct_from_node": "volumes",
    "curves_to_chart": "plots",
    "decisions_of": "segmentations",
    "differs_from_measured": "tokens",
    "explanation_to_node": "heatmaps",
    "find_results": "nodes",
    "hottest_place": "heatmaps",
    "hottest_point": "heatmaps",
    "input_of": "nodes",
    "labels_token": "tokens",
    "measurements_to_node": "tables",
    "moved_point": "segmentations",
    "moved_since": "segmentations",
    "node_steps": "results",
    "place_result": "placing",
    "place_results": "placing",
    "prepare_changed_cts": "changed_cts",
    "prepare_heatmaps": "results",
    "prepare_nodes": "results",
    "prepare_state": "tokens",
    "put_aside": "nodes",
    "read_segments": "segmentations",
    "record_measured": "tokens",
    "require_segment": "segmentations",
    "segment_layers": "segmentations",
    "segmentation_from_node": "segmentations",
    "segmentation_to_node": "segmentations",
    "sensitivity_of": "segmentations",
    "set_heat_opacity": "display",
    "set_heat_threshold": "display",
    "sets_aside": "nodes",
    "show_changed_ct": "changed_cts",
    "show_overlay": "display",
    "show_surfaces": "display",
    "uncertainty_to_node": "heatmaps",
    "unused_segments": "segmentations",
    "update_refined": "results",
    "volume_from_node": "volumes",
    "volume_to_node": "volumes",
    "volume_token": "tokens",
    "write_scene": "scene",
}

__all__ = [
    "AnalysisNodes",
    "all_results",
    "analysis_to_nodes",
    "bring_back",
    "changed_ct_steps",
    "ct_from_node",
    "curves_to_chart",
    "decisions_of",
    "differs_from_measured",
    "explanation_to_node",
    "find_results",
    "hottest_place",
    "hottest_point",
    "input_of",
    "labels_token",
    "measurements_to_node",
    "moved_point",
    "moved_since",
    "node_steps",
    "place_result",
    "place_results",
    "prepare_changed_cts",
    "prepare_heatmaps",
    "prepare_nodes",
    "prepare_state",
    "put_aside",
    "read_segments",
    "record_measured",
    "require_segment",
    "scene_available",
    "segment_layers",
    "segmentation_from_node",
    "segmentation_to_node",
    "sensitivity_of",
    "set_heat_opacity",
    "set_heat_threshold",
    "sets_aside",
    "show_changed_ct",
    "show_overlay",
    "show_surfaces",
    "uncertainty_to_node",
    "unused_segments",
    "update_refined",
    "volume_from_node",
    "volume_to_node",
    "volume_token",
    "write_scene",
]


def scene_available() -> bool:
    """Return whether scenes can be made here: inside Slicer, or with the `slicer-core` wheel. Imports neither."""
    return hasattr(sys.modules.get("slicer"), "vtkMRMLScene") or find_spec("slicer_core") is not None


__getattr__ = lazy_names(__name__, _HOMES)
