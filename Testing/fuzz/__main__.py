# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz KIND …``: run attacks and report the outcome. Exit code 1 if a promise was broken."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from .kind import KINDS, ONE_OF
from .runner import Report, attack


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--seed", type=int, default=1, help="decides all cases")
    parser.add_argument(
        "--cases",
        type=int,
        default=500,
        help="number of cases (a fiftieth for signals, if all kinds are run); 500 take minutes",
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one: --cases 1")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time, e.g. 600 for a night")
    parser.add_argument("--keep", type=Path, default=None, help="a new folder in which to keep the cases' files")
    arguments = parser.parse_args()
    reports = []
    for name in KINDS if arguments.kind == "all" else [arguments.kind]:
        cases = arguments.cases if name == arguments.kind else math.ceil(arguments.cases / ONE_OF.get(name, 1))
        report = attack(name, arguments.seed, cases, arguments.first, minutes=arguments.minutes, keep=arguments.keep)
        print(report.line(), flush=True)
        reports.append(report)
    show_findings(reports)
    return int(any(report.findings for report in reports))


def show_findings(reports: list[Report]) -> None:
    """Print each finding with the command that reproduces it."""
    for report in reports:
        for case, text in report.findings:
            print(f"\npython -m fuzz {report.kind} --seed {report.seed} --first {case} --cases 1\n{text}")


if __name__ == "__main__":
    sys.exit(main())
