# SPDX-License-Identifier: Apache-2.0
"""How one CT is read, analyzed and written: the arguments that ``analyze`` and ``batch`` share.

Cheap to import: modules that compute are imported only when they are used.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .explain.catalog import CATALOG, DEFAULT_METHOD, require_method
from .tables import TableRow
from .volumes.memory import MAX_MEMORY, parse_memory

if TYPE_CHECKING:
    from .analysis import Analysis
    from .context import RunContext
    from .models import Model
    from .pipeline import Written
    from .report.writers import Writer
    from .volumes.volume import Volume

#: What ``--help`` shows.
EXAMPLES = """targets of --explain:
  liver                               what made the model say "liver"? (likewise tumor)
  lesion:2                            why is lesion 2 a tumor? (1 is the largest)
  tumor-vs-liver                      why tumor rather than liver?
  voxel:lps:12,-30,100                why does this point have its label? (mm: left, posterior, superior)
  voxel:ras:-12,30,100                the same point in 3D Slicer's coordinates
  box:lps:0,-40,90,20,-20,110         why do the voxels in this box have their labels? (two corners)
  why-not-tumor:voxel:lps:12,-30,100  why is this point, or a box, not a tumor?

examples:
  liverxai analyze ct.nii.gz --output result
  liverxai analyze DICOM_FOLDER --output result --explain liver lesion:1 --check --dicom
  liverxai analyze ct.nrrd --output result --explain --write seg tables"""
#: Options that add or omit an output.
_SHORTCUTS = {
    "report": "write report.html (default: yes)",
    "dicom": "write segmentation.dcm, a DICOM SEG of the series (extra 'dicom'; default: no)",
    "scene": "write scene.mrb (in Slicer or with the extra 'slicer'; default: yes if possible, in batch no)",
}


@dataclass(frozen=True)
class Options:
    """The options of one analysis, JSON-ready, named as on the command line.

    :param explain: what to explain, as text; None: :data:`LiverXAILib.pipeline.DEFAULT_TARGETS`; empty: nothing.
    :param write: what to write, see :data:`LiverXAILib.report.writers.WRITERS`; None: the default outputs.
    :param report: add or omit this output; likewise `dicom` and `scene`. None: `write` decides.
    :param viewer: embed an interactive viewer in the report.
    :param case_label: how the report names the case, for example by a pseudonym; None: the case has no name.
    :param study_details: include the study and series dates and the series number and description (DICOM) in the
        report.
    :param min_lesion_ml: drop smaller lesions; None: the default of
        :class:`~LiverXAILib.inference.postprocess.Postprocessing`.
    :param sensitivity: operating point for lesions, see :func:`LiverXAILib.inference.sensitivity.choose_point`.
    :param height, weight: of the patient (cm, kg), for the standard liver volume.
    :param recist_targets: numbers of the target lesions. :func:`add_arguments` adds neither these nor `height` and
        `weight`, because its arguments may apply to many patients.
    """

    explain: tuple[str, ...] | None = None
    method: str = DEFAULT_METHOD
    layer: str | None = None
    check: bool = False
    answers: bool = True
    regions: bool = False
    write: tuple[str, ...] | None = None
    report: bool | None = None
    dicom: bool | None = None
    scene: bool | None = None
    viewer: bool = True
    case_label: str | None = None
    study_details: bool = False
    series: str | None = None
    allow_irregular: bool = False
    force: bool = False
    min_lesion_ml: float | None = None
    no_postprocessing: bool = False
    sensitivity: str = "standard"
    height: float | None = None
    weight: float | None = None
    recist_targets: tuple[int, ...] | None = None

    @staticmethod
    def from_mapping(values: Mapping[str, Any], base: Options | None = None) -> Options:
        """Return `base` with the options in `values`; lists become tuples.

        :raises LiverXAILib.errors.UsageError: an option does not exist, or its value is not of its type.
        """
        known = {field.name: str(field.type) for field in dataclasses.fields(Options)}
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(f"There is no option {unknown[0]!r}. Options: {', '.join(sorted(known))}.")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        for name, value in plain.items():
            _require_kind(name, value, known[name])
        return dataclasses.replace(base or Options(), **plain)

    @staticmethod
    def from_arguments(arguments: argparse.Namespace) -> Options:
        """The options from parsed arguments; those that the command does not have, or that are None, keep defaults."""
        given = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(Options)}
        return Options.from_mapping({name: value for name, value in given.items() if value is not None})

    def writers(self) -> list[Writer]:
        """The writers of the chosen outputs.

        :raises LiverXAILib.errors.UsageError: an output does not exist.
        """
        from .report.writers import choose_writers
        from .report.writers.report import WITHOUT_VIEWER

        shortcuts = {name: getattr(self, name) for name in _SHORTCUTS}
        chosen = choose_writers(
            self.write,
            add=[name for name, value in shortcuts.items() if value],
            leave_out=[name for name, value in shortcuts.items() if value is False],
        )
        if self.viewer:
            return chosen
        return [WITHOUT_VIEWER if writer.name == WITHOUT_VIEWER.name else writer for writer in chosen]

    def read(self, path: Path, files: Sequence[Path] | None = None) -> Volume:
        """Read the image at `path`; for `files` see :func:`LiverXAILib.volumes.io.read_volume`."""
        from .volumes.io import read_volume

        volume = read_volume(
            path, series=self.series, allow_irregular=self.allow_irregular, force=self.force, files=files
        )
        for writer in self.writers():
            writer.check(volume)
        shown = {"case_label": self.case_label, "study_details": self.study_details or None}
        chosen = {name: value for name, value in shown.items() if value is not None}
        if chosen:
            volume = dataclasses.replace(volume, metadata={**volume.metadata, **chosen})
        return volume

    def analyze(
        self,
        volume: Volume,
        model: Model,
        context: RunContext,
        **one_case: Any,
    ) -> Analysis:
        """Segment, explain and measure `volume`.

        :param one_case: arguments of :func:`LiverXAILib.pipeline.analyze` that apply to this case only.
        """
        from .inference import Postprocessing
        from .pipeline import analyze

        rules = Postprocessing(False, False, False, 0.0) if self.no_postprocessing else None
        if self.min_lesion_ml is not None:
            rules = dataclasses.replace(rules or Postprocessing(), min_lesion_ml=self.min_lesion_ml)
        return analyze(
            volume,
            model,
            targets=self.explain,
            method=self.method,
            layer=self.layer,
            check=self.check,
            answers=self.answers,
            regions=self.regions,
            postprocessing=rules,
            sensitivity=self.sensitivity,
            height_cm=self.height,
            weight_kg=self.weight,
            recist_targets=self.recist_targets,
            **one_case,
            **context.keywords,
        )

    def save(self, analysis: Analysis, folder: Path) -> Written:
        """Write the chosen outputs of `analysis` into `folder`, replacing older results there."""
        from .pipeline import write_outputs

        return write_outputs(analysis, folder, self.writers())

    def import_ahead(self) -> None:
        """Import the modules for measuring and writing; another thread can do this while the network runs.

        Import errors are ignored here: the code that needs the module reports them.
        """
        needed = (name for writer in self.writers() for name in writer.modules)
        for name in dict.fromkeys(["LiverXAILib.measure.measuring", *needed]):
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def require_valid(self) -> None:
        """Refuse options that are invalid for any image and model, before anything is read, loaded or computed.

        :raises LiverXAILib.errors.UsageError: a target, method, sensitivity or output does not exist, a number is out
            of range, or a requested output needs a package that is not installed.
        """
        from .explain.targets import Target
        from .inference.sensitivity import check_sensitivity
        from .measure.liver import standard_volume_ml
        from .measure.recist import require_possible

        for target in self.explain or ():
            Target.parse(target)
        require_method(self.method)
        check_sensitivity(self.sensitivity)
        if self.min_lesion_ml is not None and not 0 <= self.min_lesion_ml < float("inf"):
            raise UsageError("--min-lesion-ml must not be negative or infinite.")
        standard_volume_ml(self.height, self.weight)
        require_possible(self.recist_targets or ())
        asked = {*(self.write or ()), *(name for name in _SHORTCUTS if getattr(self, name))}
        for writer in self.writers():
            if writer.name in asked:
                writer.requirement()


def option_in(row: TableRow, name: str) -> Any:
    """The value in a table's column, of the type of the option of this name; text for other columns.

    :raises LiverXAILib.errors.UsageError: it is not of this type.
    """
    kind = next((str(option.type) for option in dataclasses.fields(Options) if option.name == name), "str")
    text = row.cells[name]
    if kind.startswith("bool"):
        if text.lower() in ("1", "yes", "true", "x"):
            return True
        if text.lower() in ("0", "no", "false"):
            return False
        raise row.error(f"{text!r} must be yes or no.", name)
    if kind.startswith("float"):
        return row.number(name)
    if not kind.startswith("tuple"):
        return text
    words = text.split()
    if "int" not in kind:
        return words
    if not all(word.isdecimal() for word in words):
        raise row.error(f"{text!r} must be whole numbers separated by spaces.", name)
    return [int(word) for word in words]


def _require_kind(name: str, value: Any, kind: str) -> None:
    """Refuse a value of another type than the option's: from JSON, "no" would be true, and text a list of letters."""
    if (value is None and "None" in kind) or _is_kind(value, kind):
        return
    needed = {
        "bool": "true or false",
        "float": "a number",
        "tuple[int": "a list of whole numbers",
        "tuple[str": "a list of texts",
        "str": "text",
    }
    raise UsageError(f"The option {name!r} must be {next(needed[k] for k in needed if kind.startswith(k))}: {value!r}.")


def _is_kind(value: Any, kind: str) -> bool:
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and all(_is_kind(one, kind.removeprefix("tuple[")) for one in value)
    if kind.startswith("str"):
        return isinstance(value, str)
    if isinstance(value, bool) or kind.startswith("bool"):
        return isinstance(value, bool) and kind.startswith("bool")
    return isinstance(value, int) or (isinstance(value, float) and kind.startswith("float"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the device and all :class:`Options` to `parser`."""
    add_result_arguments(parser)
    parser.add_argument("--min-lesion-ml", type=float, default=None, metavar="ML", help="drop smaller lesions")
    parser.add_argument("--no-postprocessing", action="store_true", help="keep the network's labels as they are")


# Long: one block for each option.
def add_result_arguments(parser: argparse.ArgumentParser, sensitivity: str = "standard") -> None:
    """Add the model, the device and those :class:`Options` that also apply to an existing result.

    :param sensitivity: what the help text calls the default sensitivity.
    """
    from .report.writers import WRITERS

    parser.add_argument(
        "--model", default="default", metavar="NAME", help="name or folder of a model (default: default)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument(
        "--explain",
        metavar="TARGET",
        nargs="*",
        type=target_word,
        action=Words,
        help="what to explain: liver, tumor, lesion:N, … (default: the liver by its border, the tumor by a heat "
        "map; without a target: no explanation)",
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
        "--answers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also compute the model's confidence after each lesion is removed from the CT, and how much surrounding "
        "context the organ's border needs (default: yes, if anything is explained)",
    )
    parser.add_argument(
        "--regions",
        action="store_true",
        help="also attribute the model's confidence in each lesion to its core, rim, vessels and other parts "
        "(slower; if anything is explained)",
    )
    parser.add_argument(
        "--write",
        metavar="OUTPUT",
        nargs="*",
        type=output_word,
        action=Words,
        help=f"what to write, instead of the default: {'; '.join(f'{w.name}: {w.title}' for w in WRITERS.values())} "
        "(labels, measurements and provenance are always written)",
    )
    for name, text in _SHORTCUTS.items():
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None, help=text)
    parser.add_argument(
        "--viewer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="embed an interactive viewer in the report (default: yes)",
    )
    parser.add_argument("--case-label", metavar="TEXT", help="name of the case in the report, for example a pseudonym")
    parser.add_argument(
        "--study-details",
        action="store_true",
        help="DICOM: include study and series dates, series number and description in the report (default: no)",
    )
    parser.add_argument("--series", default=None, help="DICOM: which series, by its number in the list or its UID")
    parser.add_argument("--allow-irregular", action="store_true", help="DICOM: resample irregular slice spacing")
    parser.add_argument("--force", action="store_true", help="accept an image whose intensities do not look like HU")
    parser.add_argument(
        "--sensitivity",
        default="standard",
        metavar="LEVEL",
        help="operating point for lesions: specific, standard, sensitive, or the number of false positives per case "
        "that you accept, by the table in the model card; the other findings are candidates "
        f"(default: {sensitivity})",
    )
    parser.add_argument(
        "--max-memory",
        action=_MaxMemory,
        default=argparse.SUPPRESS,
        metavar="SIZE",
        help="refuse images that need more memory, e.g. 8G (default: what the machine has)",
    )


class _MaxMemory(argparse.Action):
    """Set the memory limit for this process and its children."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        parse_memory(values)
        os.environ[MAX_MEMORY] = values


class Words(argparse.Action):
    """Collect the words of an option that may be given several times; without a word the list is empty."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        words = [word for word in values if word]
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), *words])


def target_word(word: str) -> str:
    """A value of ``--explain``: refused if it is rather a file, so that an INPUT can follow."""
    return _unless_file(word, re.compile(r"liver|tumor|[a-z-]+:[^/\\]*"))


def output_word(word: str) -> str:
    """Likewise, for ``--write``."""
    return _unless_file(word, re.compile("[a-z-]+"))


def _unless_file(word: str, never_a_file: re.Pattern[str]) -> str:
    like_a_file = bool(re.search(r"[/\\]|\.[A-Za-z]", word)) or word in (".", "..")
    if word and not never_a_file.fullmatch(word) and (like_a_file or Path(word).exists()):
        raise argparse.ArgumentTypeError(f"{word!r} is a file or folder")
    return word
