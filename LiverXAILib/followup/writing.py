# SPDX-License-Identifier: Apache-2.0
"""A comparison as files: JSON with a schema, a table, and an HTML page.

``python -m LiverXAILib.followup.writing`` regenerates the schema after a change of the types in
:mod:`LiverXAILib.followup.findings`; increment :data:`~LiverXAILib.followup.findings.SCHEMA_VERSION` in that case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import own_errors, require_type
from ..files import put_folder, require_path, staging_folder, unwritable
from ..report.html import embedded, render_page, require_report_packages
from ..report.schema import file_schema
from ..report.segmentation_file import write_segmentation_file
from ..report.tables import rounded
from ..report.writers import is_comparison
from ..tables import write_table
from .findings import COLUMNS, SCHEMA_VERSION, Comparison, Findings
from .response import NAMES

SCHEMA_FILE = Path(__file__).with_name("comparison.schema.json")
JSON_FILE, TABLE_FILE, PAGE_FILE = "comparison.json", "comparison.csv", "comparison.html"


def comparison_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``comparison.json``: all fields are required; unknown values are null."""
    added = {"notice": {"type": "string"}}
    note = "Numbers of studies and lesions begin at 1."
    return file_schema(Findings, JSON_FILE, SCHEMA_VERSION, added, note)


@own_errors("The comparison cannot be written")
def write_comparison(comparison: Comparison, folder: str | os.PathLike[str], *, report: bool = True) -> dict[str, Path]:
    """Write ``comparison.json``, ``comparison.csv`` and ``comparison.html`` into `folder`.

    For each CT that was analyzed for this comparison, a ``segmentation-N.seg.nrrd`` is written too.

    All files appear together and replace those of an earlier comparison; other files stay.

    :param report: False: no page.
    :return: the files by role.
    :raises LiverXAILib.errors.InputError: the folder cannot be written.
    """
    advice = "make it first, with compare(studies)"
    require_type(comparison, Comparison, "A comparison", advice)
    require_path(folder)
    if report:
        require_report_packages()
    folder = Path(os.path.realpath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(folder) as draft:
            names = _write(comparison, draft, report)
            put_folder(draft, folder, is_ours=is_comparison, last=JSON_FILE)
    except OSError as error:
        raise unwritable(folder, error) from error
    return {role: folder / name for role, name in names.items()}


def _write(comparison: Comparison, folder: Path, report: bool) -> dict[str, str]:
    findings = comparison.findings
    names = {"comparison": JSON_FILE, "comparison-table": TABLE_FILE}
    text = json.dumps(rounded(findings.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    write_table(folder / TABLE_FILE, COLUMNS, (rounded(row) for row in findings.rows()))
    for number, study in enumerate(comparison.studies, start=1):
        if study.made_here:
            names[f"segmentation-{number}"] = f"segmentation-{number}.seg.nrrd"
            write_segmentation_file(study.segmentation, folder / names[f"segmentation-{number}"])
    if report:
        names["comparison-report"] = PAGE_FILE
        page = render_page(Path(__file__).with_name("template.html"), _context(comparison))
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    return names


def _context(comparison: Comparison) -> dict[str, Any]:
    from . import pictures

    findings = comparison.findings
    course = pictures.render_course(comparison)
    rows = pictures.render_tracks(comparison)
    return {
        "case_label": comparison.case_label,
        "made_text": f"LiverXAI {__version__}",
        "findings": findings,
        "names": NAMES,
        "last": findings.responses[-1][0],
        "course": None if course is None else embedded(course),
        "rows": [
            {"track": row.track, "pictures": [None if one is None else embedded(one) for one in row.pictures]}
            for row in rows
        ],
        "label_colors": [
            (spec.name, "#{:02x}{:02x}{:02x}".format(*spec.color)) for spec in comparison.studies[-1].segmentation.specs
        ],
    }


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(comparison_schema(), indent=2) + "\n", encoding="utf-8")
