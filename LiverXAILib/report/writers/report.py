# SPDX-License-Identifier: Apache-2.0
"""``report.html``: one page for people."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ._writer import Writer

if TYPE_CHECKING:
    from ...analysis import Analysis

_NAME = "report.html"


def _write(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..html import write_report

    write_report(analysis, folder / _NAME)
    return {"report": _NAME}


def _write_without_viewer(analysis: Analysis, folder: Path) -> dict[str, str]:
    from ..html import write_report

    write_report(analysis, folder / _NAME, viewer=False)
    return {"report": _NAME}


def _require() -> None:
    from ..html import require_report_extra

    require_report_extra()


WRITER = Writer(
    "report",
    "page to read",
    (_NAME,),
    _write,
    default=True,
    requirement=_require,
    modules=("jinja2", "LiverXAILib.report.html", "LiverXAILib.report.answer_pictures", "LiverXAILib.report.viewer"),
    shows_warnings=True,
)
#: The same page without the interactive viewer, some megabytes smaller.
WITHOUT_VIEWER = dataclasses.replace(WRITER, write=_write_without_viewer)
