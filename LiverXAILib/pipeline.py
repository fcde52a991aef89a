# SPDX-License-Identifier: Apache-2.0
"""analyze(): the one pipeline behind every front end. write_analysis(): its result as files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .analysis import Analysis, require_analysis
from .context import RunContext
from .errors import Cancelled, LiverXAIError, UsageError, is_memory, own_errors, require_several
from .explain import DEFAULT_METHOD, METHODS, EmptyTargetError, Explanation, Target, explain_all
from .explain.answers import Answer
from .explain.border import POINTS, ROUTINE_POINTS, explain_border, is_fixed
from .explain.catalog import require_method
from .explain.counterfactual import DRAWS, explain_lesions
from .explain.layers import find_layer
from .explain.regions import explain_regions
from .explain.stage_context import StageContexts
from .explain.targets import LESION_LABEL, LesionTarget
from .files import put_folder, require_path, staging_folder, unwritable
from .inference import Postprocessing, Segmentation, segment, select_device
from .inference.backends import keep_freed_memory
from .inference.lesions import lesion_count, lesion_mask, lesion_place
from .inference.mirrored import find_mirrored_liver
from .inference.segmentation import require_segmentation
from .inference.sensitivity import STANDARD, at_sensitivity, choose_point
from .models import Model
from .models.model import require_model
from .progress import CancelToken, Progress
from .report.writers import PROVENANCE, WRITERS, Writer, choose_writers, is_comparison, is_output
from .text import counted
from .volumes.volume import Volume, require_volume

if TYPE_CHECKING:
    from .explain.explanation import Explanation
    from .measure import Measurements

#: The targets that are explained by default, if the model has such a label. An organ is then explained by its border
#: instead of a heat map.
DEFAULT_TARGETS = ("liver", "tumor")
#: The number of lesions, largest first, that are removed from the CT without an explicit request.
ANSWERED_LESIONS = 10
#: The number of different replacements of each lesion with `check`.
CHECK_DRAWS = 3
#: Voxels longer than this cause a warning.
_COARSE_MM = 7.5

_log = logging.getLogger(__name__)


# Long: most lines are its parameters and their documentation; the body calls one step after another.
@own_errors("The CT cannot be analyzed")
def analyze(
    volume: Volume,
    model: Model,
    *,
    targets: Sequence[str | Target] | None = None,
    method: str = DEFAULT_METHOD,
    layer: str | None = None,
    check: bool = False,
    answers: bool = True,
    regions: bool = False,
    device: str = "auto",
    postprocessing: Postprocessing | None = None,
    sensitivity: str = STANDARD,
    height_cm: float | None = None,
    weight_kg: float | None = None,
    recist_targets: Sequence[int] | None = None,
    segmentation: Segmentation | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Analysis:
    """Segment a CT, explain the result and measure it.

    :param targets: the targets to explain, as :class:`~LiverXAILib.explain.Target` or text ("liver", "tumor",
        "lesion:1" …). A target that was not found is skipped with a warning. None: those of :data:`DEFAULT_TARGETS`
        for which the model has a label.
    :param method: explanation method, see :data:`LiverXAILib.explain.METHODS`.
    :param layer: layer of the network to explain; None: the model's default.
    :param check: also compute how faithful each explanation is, and the model's uncertainty about each lesion (takes
        several times longer).
    :param answers: if anything is explained, also compute the model's output with each lesion removed from the CT (up
        to the :data:`ANSWERED_LESIONS` largest), see
        :func:`~LiverXAILib.explain.counterfactual.explain_lesions`, and if an organ is explained, how much surrounding
        context its border needs, see :func:`~LiverXAILib.explain.border.explain_border`. Without `targets` the border
        replaces the organ's heat map. The border is skipped for networks with a fixed window size, for which it would
        take minutes.
    :param regions: also attribute the confidence in each of these lesions to parts of the image, see
        :func:`~LiverXAILib.explain.regions.explain_regions`; 128 forward passes per lesion, or twice that.
    :param device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    :param sensitivity: the operating point for lesions: "specific", "standard" (as in the model card), "sensitive", or
        the accepted number of false positives per case (see
        :func:`LiverXAILib.inference.sensitivity.choose_point`).
    :param height_cm, weight_kg, recist_targets: see :func:`LiverXAILib.measure.measure`.
    :param segmentation: contours on `volume` from another source (see :func:`LiverXAILib.read_segmentation`), to be
        explained and measured instead of the model's own.
    :raises LiverXAILib.errors.LiverXAIError: the CT cannot be analyzed; the message says why.
    """
    context = RunContext(progress, cancel, device)
    require_volume(volume)
    require_model(model)
    started = time.time()
    if segmentation is not None:
        require_segmentation(segmentation)
    questions = check_request(model, targets, method, layer, sensitivity)
    for question in questions:
        question.place(volume.grid)  # a target outside the image is refused before anything is computed
    if height_cm is not None or weight_kg is not None:
        from .measure.liver import standard_volume_ml

        standard_volume_ml(height_cm, weight_kg)  # implausible values are refused before anything is computed
    given, standard = segmentation is not None, None
    if given and (sensitivity != STANDARD or postprocessing is not None):
        raise UsageError(
            "A sensitivity, a minimum lesion volume and other rules apply to the model's findings, but these contours "
            "were given: omit --sensitivity, --min-lesion-ml and --no-postprocessing."
        )
    if segmentation is None:
        segmentation = segment(
            volume,
            model,
            postprocessing=postprocessing,
            **context.part(0.0, 0.4 if questions else 0.9).keywords,
        )
        if sensitivity != STANDARD:
            standard = segmentation
            segmentation = at_sensitivity(segmentation, model.spec, sensitivity)
    else:
        drawn = {spec.name for spec in segmentation.specs}
        questions = [question for question in questions if not question.label or question.label in drawn]
    warnings = list(segmentation.provenance["warnings"])
    if not given and (longest := max(volume.spacing)) > _COARSE_MM:
        warnings.append(
            f"The voxels are {longest:.3g} mm long: above {_COARSE_MM:g} mm, volumes are unreliable, and lesions are "
            "missed. Use a reconstruction with thinner slices."
        )
    answerable = []
    for question in questions:
        try:
            question.mask(segmentation)
            answerable.append(question)
        except EmptyTargetError as error:
            warnings.append(f"Not explained: {question.describe()}. {error}")
    background = ThreadPoolExecutor(1, "measuring")  # independent of the steps below, and nearly single-threaded
    measuring = background.submit(
        _measure, volume, segmentation, height_cm=height_cm, weight_kg=weight_kg, targets=recist_targets
    )
    checksum = background.submit(lambda: volume.sha256)
    labels_checksum = background.submit(lambda made: made.checksum, segmentation)

    def check_mirrored() -> tuple[str, ...]:
        return () if given else check_orientation(measuring.result(), volume, model, context.silent)

    # A network that is being explained must not run for anything else: its activations are recorded.
    is_apart = all(question.label and model.spec.stage_of(question.label).region for question in answerable)
    checking = background.submit(check_mirrored) if is_apart else None
    background.shutdown(wait=False)
    explanations, found = explain_and_ask(
        volume,
        model,
        segmentation,
        answerable,
        default_targets=targets is None,
        method=method,
        layer=layer,
        check=check,
        answers=answers,
        regions=regions,
        refusals=warnings,
        context=context.part(0.4, 0.9),
    )
    uncertainty = None
    if check and LESION_LABEL in segmentation.probabilities and segmentation.mask(LESION_LABEL).any():
        from .measure import measure_uncertainty

        uncertainty = measure_uncertainty(volume, model, segmentation, **context.part(0.9, 0.95).keywords)
    context.report("Measuring", 0.95)
    mirrored = check_mirrored() if checking is None else checking.result()
    measurements = measuring.result().doubted(mirrored)
    # Paths may hold the names of patients.
    metadata = {name: value for name, value in volume.metadata.items() if name != "files"}
    provenance = {
        "software": {"name": "LiverXAI", "version": __version__, "python": platform.python_version()},
        "input": {
            "sha256": checksum.result(),
            "shape": list(volume.shape),
            "spacing_mm": list(volume.spacing),
            "metadata": metadata,
        },
        "measured_with": {
            "height_cm": height_cm,
            "weight_kg": weight_kg,
            "recist_targets": _target_places(segmentation, recist_targets),
        },
        "segmentation": dict(segmentation.provenance),
        "model_labels_sha256": labels_checksum.result(),
        "explanations": _explained(explanations, segmentation),
        "answers": [answer.to_dict() for answer in found],
        "uncertainty": None if uncertainty is None else uncertainty.to_dict(),
        "mirrored": list(mirrored),
        "warnings": measurements.warnings(warnings),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 2),
        "notice": "For research use only. Not for diagnosis or treatment.",
    }
    context.report("Analyzed", 1.0)
    return Analysis(
        volume,
        model.spec,
        segmentation,
        tuple(explanations),
        measurements,
        provenance,
        tuple(found),
        standard=standard,
    )


# Long: most lines are its parameters, and those of the three functions it calls.
def explain_and_ask(
    volume: Volume,
    model: Model,
    segmentation: Segmentation,
    questions: Sequence[Target],
    *,
    default_targets: bool,
    method: str = DEFAULT_METHOD,
    layer: str | None = None,
    check: bool = False,
    answers: bool = True,
    regions: bool = False,
    refusals: list[str],
    context: RunContext,
) -> tuple[list[Explanation], list[Answer]]:
    """The heat maps and the explanations in numbers of :func:`analyze`, whose parameters these are.

    :param questions: targets that exist in the segmentation.
    :param default_targets: the targets are the default ones: an organ's border, at fewer points, replaces its heat map.
    :param refusals: a sentence about each question that cannot be answered is appended here.
    """
    device = select_device(str(context.device))
    prepared = StageContexts(volume, model, segmentation, device)
    organs = [question for question in questions if _has_quick_border(question, model)] if answers else []
    explanations = explain_all(
        volume,
        model,
        segmentation,
        [question for question in questions if not default_targets or question not in organs],
        method=method,
        layer=layer,
        check=check,
        prepared=prepared,
        **context.part(0.0, 0.7).keywords,
    )
    for organ in organs:  # prepared in advance, because both threads below use it
        with contextlib.suppress(EmptyTargetError):
            prepared.of(model.spec.stage_of(organ.label)).make_ready()
    asked = _asked_without(questions, segmentation) if answers or regions else []
    found: list[Answer] = []
    refused: list[str] = []
    with keep_freed_memory(device), ThreadPoolExecutor(1, "borders") as background:
        # Half of the work of either task is small single-threaded steps: run in parallel, they keep two cores busy.
        points = ROUTINE_POINTS if default_targets else POINTS
        borders = [
            background.submit(
                explain_border,
                *(volume, model, segmentation, organ),
                points=points,
                prepared=prepared,
                **context.silent.keywords,
            )
            for organ in organs
        ]
        changed = explain_lesions(
            volume,
            model,
            segmentation,
            asked if answers else [],
            draws=CHECK_DRAWS if check else DRAWS,
            refusals=refused,
            prepared=prepared,
            **context.part(0.7, 0.9).keywords,
        )
        changed += explain_regions(
            volume,
            model,
            segmentation,
            [target for target in asked if regions and not target.is_why_not],
            refusals=refused,
            prepared=prepared,
            **context.part(0.9, 0.95).keywords,
        )
        for border in borders:
            try:
                found.append(border.result())
            except EmptyTargetError as error:
                refusals.append(f"The border was not examined. {error}")
    refusals += refused
    return explanations, [*found, *changed]


def _measure(volume: Volume, segmentation: Segmentation, **known: Any) -> Measurements:
    """Call :func:`LiverXAILib.measure.measure`; it needs SciPy, which is imported here while the network runs."""
    from .measure import measure

    return measure(volume, segmentation, **known)


def _target_places(segmentation: Segmentation, targets: Sequence[int] | None) -> list[dict[str, Any]] | None:
    """The chosen RECIST targets, with places that identify them even after renumbering; JSON-ready."""
    if targets is None:
        return None
    places = ((number, lesion_mask(segmentation, number)) for number in dict.fromkeys(targets))
    grid = segmentation.labels.grid
    return [{"number": number, "place_lps_mm": list(lesion_place(mask, grid))} for number, mask in places]


def _has_quick_border(question: Target, model: Model) -> bool:
    """Whether the question is about a whole organ whose border can be examined in seconds."""
    if not question.is_whole_label or question.label == LESION_LABEL:
        return False
    return not is_fixed(model.spec.stage_of(question.label))


def _asked_without(questions: Sequence[Target], segmentation: Segmentation) -> list[Target]:
    """The targets for which the CT is modified and the model run again.

    These are every "why not", every lesion among the questions, and, if anything is explained, the largest lesions.
    """
    asked = [question for question in questions if question.asks_for_changed_cts]
    if questions and any(spec.name == LESION_LABEL for spec in segmentation.specs):
        count = min(ANSWERED_LESIONS, lesion_count(segmentation))
        asked = [*(LesionTarget(number + 1) for number in range(count)), *asked]
    return list(dict.fromkeys(asked))


def check_orientation(measurements: Measurements, volume: Volume, model: Model, context: RunContext) -> tuple[str, ...]:
    """Segment mirrored copies of the image; return the reasons to believe that the image itself is mirrored.

    This is done only if the first result is implausible, or its liver volume is below that of most livers or zero.
    """
    from .measure.plausibility import USUAL_ML

    if measurements.plausible and measurements.liver_volume_ml >= USUAL_ML:
        return ()
    found = find_mirrored_liver(volume, model, context, sure=measurements.plausible is False)
    return () if found is None else (found.describe(),)


@dataclass(frozen=True)
class Written:
    """What was written: the `files` by role, and the outputs that failed, by writer, with the error.

    :param replaced: sentences about what was in the folder, if it was not just an earlier result of the same CT.
    """

    files: Mapping[str, Path]
    failures: Mapping[str, Exception] = field(default_factory=dict)
    replaced: Sequence[str] = ()

    @property
    def warnings(self) -> list[str]:
        """A sentence about each failure and each replacement, without file names."""
        return [*(_failure(WRITERS[name], error) for name, error in self.failures.items()), *self.replaced]


def write_analysis(
    analysis: Analysis,
    folder: str | Path,
    *,
    write: Sequence[str] | None = None,
    report: bool = True,
    dicom: bool = False,
) -> dict[str, Path]:
    """Write an analysis into `folder`; files of an earlier analysis there are replaced, all others stay.

    Everything is first written to a hidden folder next to it, which then replaces the old files, in one atomic step
    where the file system supports it (see :func:`LiverXAILib.files.put_folder`). An optional output that cannot be
    written is omitted, with a warning in ``provenance.json``, in the report and in the log. If a reader has changed
    the model's result, the model's own result is written as well.

    :param write: names of outputs, see :data:`LiverXAILib.report.writers.WRITERS`; None: the default outputs, without
        a scene. Labels, tables and provenance are always written.
    :param report: False: no ``report.html``.
    :param dicom: also write ``segmentation.dcm``, if anything was found; see
        :func:`LiverXAILib.report.write_dicom_segmentation`.
    :return: the files by role: "segmentation", "heatmap-<target>" …, "measurements", "table", "report", "provenance".
    :raises LiverXAILib.errors.UsageError: an output does not exist.
    :raises LiverXAILib.errors.InputError: the folder, or a required file in it, cannot be written.
    """
    require_analysis(analysis)
    require_path(folder)
    leave_out = {"report": not report, "scene": write is None}
    writers = choose_writers(
        write, add=["dicom"] if dicom else [], leave_out=[name for name, yes in leave_out.items() if yes]
    )
    written = write_outputs(analysis, folder, writers)
    for sentence in written.warnings:
        _log.warning("%s", sentence)
    return dict(written.files)


def _explained(explanations: Sequence[Explanation], segmentation: Segmentation) -> list[dict[str, Any]]:
    """The provenance entries of heat maps."""
    return [
        {
            "target": explanation.target.describe(),
            "method": explanation.method,
            "layer": explanation.layer,
            "raw_maximum": explanation.raw_maximum,
            "faithfulness": explanation.faithfulness,
            "warnings": list(explanation.remarks(segmentation)),
            **explanation.provenance,
        }
        for explanation in explanations
    ]


def write_outputs(analysis: Analysis, folder: str | Path, writers: Sequence[Writer]) -> Written:
    """Do what :func:`write_analysis` does, with the given writers."""
    folder = Path(os.path.realpath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(folder) as draft:
            written = write_files(analysis, draft, writers)
            replaced = _replaced(folder, analysis)
            # Without a result, the folder is one of "compare".
            of_result = _earlier(folder) is not None
            ours = (lambda name: is_output(name) or is_comparison(name)) if of_result else is_output
            put_folder(draft, folder, is_ours=ours, last=PROVENANCE)
    except OSError as error:
        raise unwritable(folder, error) from error
    files = {role: folder / path.name for role, path in written.files.items()}
    return Written(files, written.failures, replaced)


def _earlier(folder: Path) -> dict[str, Any] | None:
    """The provenance of the result in `folder`; None if there is none, or it is damaged."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _replaced(folder: Path, analysis: Analysis) -> list[str]:
    """Sentences about what a new result replaces in `folder`, other than an earlier one of the same CT."""
    earlier = _earlier(folder)
    if earlier is None:
        return []
    sentences = []
    image = earlier.get("input")
    known = image.get("sha256") if isinstance(image, dict) else None
    if known is not None and known != analysis.provenance["input"].get("sha256"):
        sentences.append("The folder held the result of another CT, which has been replaced.")
    if analysis.follow_up is None and any(is_comparison(path.name) for path in folder.iterdir()):
        sentences.append("The folder held a comparison made with the earlier result, which has been removed.")
    return sentences


def require_undecided(folder: Path) -> None:
    """Refuse to replace a result that holds decisions of a reader, which another analysis cannot restore.

    :raises LiverXAILib.errors.UsageError: `folder` holds such a result.
    """
    decided = (_earlier(folder) or {}).get("reader")
    if decided:
        raise UsageError(
            f"{folder} holds a result with {counted(len(decided), 'decision')} of a reader, which would be lost. Give "
            "another --output, continue with 'liverxai refine', or delete the folder first."
        )


def write_files(analysis: Analysis, folder: Path, writers: Sequence[Writer]) -> Written:
    """Write the files of an analysis into an empty folder that is not in use yet, with the chosen `writers`.

    :raises OSError: a required file cannot be written.
    """
    # Explanations may have been added later, or the segmentation changed since.
    explained = {
        "explanations": _explained(analysis.explanations, analysis.segmentation),
        "answers": [answer.to_dict() for answer in analysis.answers],
    }
    analysis = dataclasses.replace(analysis, provenance={**analysis.provenance, **explained})
    files: dict[str, Path] = {}
    failures: dict[str, Exception] = {}
    with ThreadPoolExecutor(1, "preparing") as background:
        prepared = {one.name: background.submit(one.prepare, analysis) for one in writers if one.prepare is not None}
        for writer in writers:
            # Each output is written to its own folder, so that a failure leaves no partial files behind.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as own:
                try:
                    ready = [prepared[writer.name].result()] if writer.name in prepared else []
                    names = writer.write(analysis, Path(own), *ready)
                    warnings = [*analysis.provenance.get("warnings", ()), *writer.remarks(analysis.volume)]
                except Cancelled:
                    raise
                except Exception as error:
                    if writer.required:
                        raise
                    _log.debug("%s", writer.name, exc_info=True)
                    failures[writer.name] = error
                    names = {}
                    warnings = [*analysis.provenance.get("warnings", ()), _failure(writer, error)]
                for role, name in names.items():
                    files[role] = (Path(own) / name).rename(folder / name)
            provenance = {**analysis.provenance, "warnings": list(dict.fromkeys(warnings))}
            analysis = dataclasses.replace(analysis, provenance=provenance)
    files["provenance"] = folder / PROVENANCE
    text = json.dumps(analysis.provenance, indent=2, ensure_ascii=False)
    files["provenance"].write_text(text + "\n", encoding="utf-8")
    return Written(files, failures)


def _failure(writer: Writer, error: Exception) -> str:
    """Why an output is missing. Messages of other libraries are left out: they may contain file or patient names."""
    if is_memory(error):
        reason = "There was not enough memory."
    elif isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror}."
    else:
        reason = str(error) if isinstance(error, LiverXAIError) else f"Unexpected error ({type(error).__name__})."
    return f"Not written: {writer.title}. {reason}"


def check_request(
    model: Model,
    targets: Sequence[str | Target] | None,
    method: str = DEFAULT_METHOD,
    layer: str | None = None,
    sensitivity: str = STANDARD,
) -> list[Target]:
    """Parse `targets`, see :func:`analyze`; refuse requests that are invalid for any image.

    Misspelled names are thus reported at once, not after minutes of segmentation.

    :raises LiverXAILib.errors.UsageError: the model has no such label, layer or operating point, or the method does
        not exist.
    """
    names = [spec.name for spec in model.spec.labels]
    if targets is None:
        targets = [name for name in DEFAULT_TARGETS if name in names]
    require_several(targets, "targets")
    questions = [Target.parse(target) for target in targets]
    require_method(method)
    for question in questions:
        if question.label and question.label not in names:
            raise UsageError(f"Model {model.spec.name!r} has no label {question.label!r}; it has {', '.join(names)}.")
        if question.label and METHODS[method].layer_maps is not None:
            stage = model.spec.stage_of(question.label)
            find_layer(model.members(stage)[0], layer or stage.default_layer, stage)
    choose_point(model.spec, sensitivity)
    return questions
