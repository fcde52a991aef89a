# SPDX-License-Identifier: Apache-2.0
"""analyze(): the one engine behind every front end. write_analysis(): its result as files a person opens."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ._version import __version__
from .analysis import Analysis
from .context import RunContext
from .errors import InputError, UsageError
from .explain import DEFAULT_METHOD, METHODS, EmptyTargetError, Target, explain_all
from .explain.layers import find_layer
from .explain.targets import LESION_LABEL
from .inference import Postprocessing, segment
from .measure import measure, measure_uncertainty
from .models import Model
from .progress import CancelToken, Progress
from .report import write_dicom_segmentation, write_report, write_segmentation_file, write_tables
from .volumes.io import write_volume
from .volumes.volume import Volume

#: What is explained when nobody asks for something else, where the model knows it.
DEFAULT_TARGETS = ("liver", "tumor")
_DICOM_SEGMENTATION = "segmentation.dcm"


def analyze(
    volume: Volume,
    model: Model,
    *,
    targets: Sequence[str | Target] | None = None,
    method: str = DEFAULT_METHOD,
    layer: str | None = None,
    check: bool = False,
    device: str = "auto",
    postprocessing: Postprocessing | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Analysis:
    """Segment a CT, explain the result and measure it.

    :param targets: the questions to explain, as :class:`~LiverXAILib.explain.Target` or text ("liver", "tumor",
        "lesion:1" …). A question about something that was not found is skipped with a warning. None: those of
        :data:`DEFAULT_TARGETS` that the model knows.
    :param method: explanation method, see :data:`LiverXAILib.explain.METHODS`.
    :param layer: layer of the network to explain; None: the model's default.
    :param check: also compute how faithful each explanation is, and how sure the model is of each lesion (takes
        several times longer).
    :param device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    :raises LiverXAILib.errors.LiverXAIError: with a sentence that says what is wrong; nothing is half done.
    """
    started = time.time()
    context = RunContext(progress, cancel, device)
    questions = check_request(model, targets, method, layer)
    segmentation = segment(
        volume,
        model,
        postprocessing=postprocessing,
        **context.part(0.0, 0.4 if questions else 0.9).keywords,
    )
    warnings = list(segmentation.provenance["warnings"])
    answerable = []
    for question in questions:
        try:
            question.mask(segmentation)
            answerable.append(question)
        except EmptyTargetError as error:
            warnings.append(f"Not explained: {question.describe()}. {error}")
    explanations = explain_all(
        volume,
        model,
        segmentation,
        answerable,
        method=method,
        layer=layer,
        check=check,
        **context.part(0.4, 0.9).keywords,
    )
    uncertainty = None
    if check and LESION_LABEL in segmentation.probabilities and segmentation.mask(LESION_LABEL).any():
        uncertainty = measure_uncertainty(volume, model, segmentation, **context.part(0.9, 0.95).keywords)
    context.report("Measuring", 0.95)
    measurements = measure(volume, segmentation)
    # Paths may hold the names of patients.
    metadata = {name: value for name, value in volume.metadata.items() if name != "files"}
    provenance = {
        "software": {"name": "LiverXAI", "version": __version__, "python": platform.python_version()},
        "input": {"shape": list(volume.shape), "spacing_mm": list(volume.spacing), "metadata": metadata},
        "segmentation": dict(segmentation.provenance),
        "explanations": [
            {
                "target": explanation.target.describe(),
                "method": explanation.method,
                "layer": explanation.layer,
                "raw_maximum": explanation.raw_maximum,
                "faithfulness": explanation.faithfulness,
                "warnings": list(explanation.warnings),
                **explanation.provenance,
            }
            for explanation in explanations
        ],
        "uncertainty": None if uncertainty is None else uncertainty.to_dict(),
        "warnings": warnings,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 2),
        "notice": "For research use only. Not for diagnosis or treatment.",
    }
    context.report("Done", 1.0)
    return Analysis(volume, model.spec, segmentation, tuple(explanations), measurements, provenance)


def write_analysis(
    analysis: Analysis, folder: str | Path, *, report: bool = True, dicom: bool = False
) -> dict[str, Path]:
    """Write an analysis into `folder`; files of an earlier analysis there are replaced.

    Everything is first written to a hidden folder beside it, so that nobody ever reads half a result.

    :param report: also write ``report.html`` (needs the extra ``report``).
    :param dicom: also write ``segmentation.dcm``, if anything was found; see
        :func:`LiverXAILib.report.write_dicom_segmentation`.
    :return: the files by role: "segmentation", "heatmap-<target>" …, "measurements", "table", "report", "provenance".
    :raises LiverXAILib.errors.InputError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            names = _write_files(analysis, Path(temporary), report, dicom)
            folder.mkdir(exist_ok=True)
            for stale in (*folder.glob("heatmap-*.nrrd"), folder / _DICOM_SEGMENTATION):
                stale.unlink(missing_ok=True)
            # The provenance comes last: where it is, the result is whole.
            for name in names.values():
                (Path(temporary) / name).replace(folder / name)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return {role: folder / name for role, name in names.items()}


def check_request(
    model: Model, targets: Sequence[str | Target] | None, method: str = DEFAULT_METHOD, layer: str | None = None
) -> list[Target]:
    """The questions in `targets`, see :func:`analyze`; what no image could answer is refused.

    So nobody learns after minutes of segmenting that a name was misspelled.

    :raises LiverXAILib.errors.UsageError: the model has no such label or layer, or there is no such method.
    """
    names = [spec.name for spec in model.spec.labels]
    if targets is None:
        targets = [name for name in DEFAULT_TARGETS if name in names]
    questions = [Target.parse(target) for target in targets]
    if method not in METHODS:
        raise UsageError(f"There is no explanation method {method!r}. Choose one of: {', '.join(METHODS)}.")
    for question in questions:
        if question.label and question.label not in names:
            raise UsageError(f"Model {model.spec.name!r} has no label {question.label!r}; it has {', '.join(names)}.")
        if question.label and METHODS[method].layer_maps is not None:
            stage = model.spec.stage_of(question.label)
            find_layer(model.members(stage)[0], layer or stage.default_layer, stage)
    return questions


def require_writable(folder: str | Path) -> None:
    """Raise :class:`~LiverXAILib.errors.InputError` unless :func:`write_analysis` can write into `folder`."""
    folder = Path(folder).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"Cannot write the results to {folder}: {error.strerror or error}.")


def _write_files(analysis: Analysis, folder: Path, report: bool, dicom: bool) -> dict[str, str]:
    """Write all files of an analysis into `folder`; returns their names by role."""
    names = {"segmentation": "segmentation.seg.nrrd"}
    write_segmentation_file(analysis.segmentation, folder / names["segmentation"])
    if dicom and analysis.segmentation.labels.array.any():
        names["dicom"] = _DICOM_SEGMENTATION
        write_dicom_segmentation(analysis.segmentation, folder / names["dicom"])
    for explanation in analysis.explanations:
        role = f"heatmap-{explanation.target.slug}"
        names[role] = f"{role}.nrrd"
        write_volume(explanation.heatmap, folder / names[role])
    names["measurements"], names["table"] = "measurements.json", "measurements.csv"
    write_tables(analysis.measurements, folder / names["measurements"], folder / names["table"])
    if report:
        names["report"] = "report.html"
        write_report(analysis, folder / names["report"])
    names["provenance"] = "provenance.json"
    text = json.dumps(analysis.provenance, indent=2, ensure_ascii=False)
    (folder / names["provenance"]).write_text(text + "\n", encoding="utf-8")
    return names
