# SPDX-License-Identifier: Apache-2.0
"""``liverxai compare``: tracks lesions across two or more studies of one patient."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files import require_writable
from ..options import Options
from ..progress import progress_bar
from ..text import warn

_EXAMPLES = """examples:
  liverxai compare result-may result-august --images may.nii.gz august.nii.gz --output comparison
  liverxai compare DICOM_MAY DICOM_AUGUST DICOM_NOVEMBER --output comparison
  liverxai compare result-may august.nii.gz --images may.nii.gz - --days 0 92 --output comparison"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "studies",
        metavar="STUDY",
        type=Path,
        nargs="+",
        help="two or more, the oldest first: folders written by 'analyze', or CTs, which are analyzed now",
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", type=Path, required=True, help="where the files go")
    parser.add_argument(
        "--images",
        metavar="CT",
        nargs="+",
        help="the CTs of the results, in the same order, '-' for none: for registration by HU, and for pictures",
    )
    parser.add_argument(
        "--days",
        metavar="N",
        type=float,
        nargs="+",
        help="days of each study since the first (default: from DICOM dates)",
    )
    parser.add_argument(
        "--recist-targets", metavar="N", type=int, nargs="*", help="numbers of target lesions in the first study"
    )
    parser.add_argument(
        "--other-patient",
        action="store_true",
        help="compare even if DICOM patient IDs, birth dates or sexes differ",
    )
    parser.add_argument("--case-label", metavar="TEXT", help="name of the case in the report, for example a pseudonym")
    parser.add_argument(
        "--model", default="default", metavar="NAME", help="for CTs: name or folder of a model (default: default)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--force", action="store_true", help="accept an image whose intensities do not look like HU")
    parser.add_argument("--allow-irregular", action="store_true", help="DICOM: resample irregular slice spacing")
    parser.add_argument(
        "--report", action=argparse.BooleanOptionalAction, default=True, help="write comparison.html (default: yes)"
    )
    parser.epilog = f"{_EXAMPLES}\n\n{parser.epilog}"


def run(arguments: argparse.Namespace) -> int:
    """Compare studies; return the exit code."""
    from .comparing import check_studies, compare
    from .writing import write_comparison

    images = arguments.images and [None if text == "-" else Path(text) for text in arguments.images]
    check_studies(arguments.studies, images)
    require_writable(arguments.output)
    chosen = Options(case_label=arguments.case_label, force=arguments.force, allow_irregular=arguments.allow_irregular)
    with progress_bar() as progress:
        comparison = compare(
            arguments.studies,
            images=images,
            days=arguments.days,
            recist_targets=arguments.recist_targets,
            other_patient=arguments.other_patient,
            model=arguments.model,
            options=chosen,
            device=arguments.device,
            progress=progress,
        )
        progress("Writing", 1.0)
        files = write_comparison(comparison, arguments.output, report=arguments.report)
    for remark in comparison.findings.remarks:
        warn(remark)
    print(comparison.findings.summary())
    for role, path in files.items():
        print(f"{role:>20}  {path}")
    print("For research use only. Not for diagnosis or treatment.")
    return 0
