# SPDX-License-Identifier: Apache-2.0
"""``report.html``: the report for readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_NAME = "report.html"


def _draw(analysis: Analysis, viewer: bool = True) -> dict[str, Any]:
    from ..html import draw_report

    return draw_report(analysis, viewer=viewer)


def _write(analysis: Analysis, folder: Path, drawn: Mapping[str, Any]) -> dict[str, str]:
    from ..html import write_report

    write_report(analysis, folder / _NAME, drawn=drawn)
    return {"report": _NAME}


def _require() -> None:
    from ..html import require_report_packages

    require_report_packages()


WRITER = Writer(
    "report",
    "HTML report",
    (_NAME,),
    _write,
    default=True,
    requirement=_require,
    modules=("jinja2", "LiverXAILib.report.html", "LiverXAILib.report.answer_pictures", "LiverXAILib.report.viewer"),
    packages=("matplotlib", "jinja2"),
    shows_warnings=True,
    prepare=_draw,
)
#: The same page without the interactive viewer, some megabytes smaller.
WITHOUT_VIEWER = dataclasses.replace(WRITER, prepare=partial(_draw, viewer=False))
