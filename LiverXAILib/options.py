# SPDX-License-Identifier: Apache-2.0
"""How one CT is read, analyzed and written: the arguments that ``analyze`` and ``batch`` share.

Cheap to import: what computes is imported when it is used.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .explain.catalog import CATALOG, DEFAULT_METHOD

if TYPE_CHECKING:
    from .analysis import Analysis
    from .context import RunContext
    from .models import Model
    from .volumes.volume import Volume


@dataclass(frozen=True)
class Options:
    """The options of one analysis, JSON-ready. Names are those of the command line.

    :param explain: what to explain, as text; None: :data:`LiverXAILib.pipeline.DEFAULT_TARGETS`; empty: nothing.
    :param min_lesion_ml: drop smaller lesions; None: the default of
        :class:`~LiverXAILib.inference.postprocess.Postprocessing`.
    """

    explain: tuple[str, ...] | None = None
    method: str = DEFAULT_METHOD
    layer: str | None = None
    check: bool = False
    report: bool = True
    dicom: bool = False
    series: str | None = None
    allow_irregular: bool = False
    force: bool = False
    min_lesion_ml: float | None = None
    no_postprocessing: bool = False

    @staticmethod
    def from_mapping(values: Mapping[str, Any], base: Options | None = None) -> Options:
        """`base` with the options in `values`; lists become tuples.

        :raises LiverXAILib.errors.UsageError: an option that does not exist.
        """
        known = {field.name for field in dataclasses.fields(Options)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"There is no option {unknown[0]!r}. Options: {', '.join(sorted(known))}.")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return dataclasses.replace(base or Options(), **plain)

    @staticmethod
    def from_arguments(arguments: argparse.Namespace) -> Options:
        """The options in parsed arguments of :func:`add_arguments`."""
        return Options.from_mapping(
            {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)}
        )

    def read(self, path: Path, files: Sequence[Path] | None = None) -> Volume:
        """Read the image at `path`; for `files` see :func:`LiverXAILib.volumes.io.read_volume`."""
        from .report import dicom_headers
        from .volumes.io import read_volume

        volume = read_volume(
            path, series=self.series, allow_irregular=self.allow_irregular, force=self.force, files=files
        )
        if self.dicom:
            # What cannot become a DICOM object is refused before minutes are spent on it.
            dicom_headers(volume)
        return volume

    def analyze(
        self,
        volume: Volume,
        model: Model,
        context: RunContext,
    ) -> Analysis:
        """Segment, explain and measure `volume`."""
        from .inference import Postprocessing
        from .pipeline import analyze

        rules = Postprocessing(False, False, False, 0.0) if self.no_postprocessing else Postprocessing()
        if self.min_lesion_ml is not None:
            rules = dataclasses.replace(rules, min_lesion_ml=self.min_lesion_ml)
        return analyze(
            volume,
            model,
            targets=self.explain,
            method=self.method,
            layer=self.layer,
            check=self.check,
            postprocessing=rules,
            **context.keywords,
        )

    def write(self, analysis: Analysis, folder: Path) -> dict[str, Path]:
        """Write all files of `analysis` into `folder`; returns them by role."""
        from .pipeline import write_analysis

        return write_analysis(analysis, folder, report=self.report, dicom=self.dicom)

    def require_extras(self) -> None:
        """Raise :class:`~LiverXAILib.errors.UsageError` if what the chosen files need is not installed."""
        from .report import require_dicom_extra, require_report_extra

        if self.report:
            require_report_extra()
        if self.dicom:
            require_dicom_extra()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the device and all :class:`Options` to `parser`."""
    parser.add_argument(
        "--model", default="default", metavar="NAME", help="a model's name or folder (default: default)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument(
        "--explain",
        metavar="TARGET",
        nargs="*",
        default=None,
        help="what to explain: liver, tumor, lesion:N, … (default: liver tumor; nothing after it: no explanation)",
    )
    parser.add_argument(
        "--method",
        default=DEFAULT_METHOD,
        metavar="NAME",
        help=f"explanation method: {'; '.join(f'{m.name}: {m.description}' for m in CATALOG.values())} "
        "(default: %(default)s)",
    )
    parser.add_argument("--layer", default=None, help="layer of the network to explain (default: the model's)")
    parser.add_argument("--check", action="store_true", help="also measure how faithful the heat maps are (slower)")
    parser.add_argument(
        "--report", action=argparse.BooleanOptionalAction, default=True, help="write report.html (default: yes)"
    )
    parser.add_argument(
        "--dicom", action="store_true", help="also write segmentation.dcm, a DICOM SEG of the series (extra 'dicom')"
    )
    parser.add_argument("--series", default=None, help="DICOM: which series, by its number in the list or its UID")
    parser.add_argument("--allow-irregular", action="store_true", help="DICOM: resample irregular slice spacing")
    parser.add_argument("--force", action="store_true", help="accept an image whose intensities do not look like HU")
    parser.add_argument("--min-lesion-ml", type=float, default=None, metavar="ML", help="drop smaller lesions")
    parser.add_argument("--no-postprocessing", action="store_true", help="keep the network's labels as they are")
