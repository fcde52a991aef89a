# SPDX-License-Identifier: Apache-2.0
"""``scene.mrb``: everything in one file that 3D Slicer opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...text import how_to_install
from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_NAME = "scene.mrb"


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ...mrml import write_scene

    write_scene(analysis, folder / _NAME)
    return {"scene": _NAME}


def _require() -> None:
    from ...mrml import scene_available

    if not scene_available():
        raise UsageError(f"Scenes need Slicer, or, {how_to_install('slicer')}; or leave out the scene.")


WRITER = Writer(
    "scene",
    "scene for 3D Slicer",
    (_NAME,),
    _write,
    default="available",
    requirement=_require,
    modules=("LiverXAILib.mrml.scene",),
)
