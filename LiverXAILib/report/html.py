# SPDX-License-Identifier: Apache-2.0
"""The report: one self-contained HTML file, for the screen or A4 paper."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..analysis import Analysis
from ..colors import HEAT_COLORS, VISIBLE_HEAT
from ..errors import UsageError
from ..explain.answers import Answer, BorderNeed
from ..explain.catalog import CATALOG
from ..explain.explanation import Explanation
from ..files import replacing
from ..models.spec import LayerSpec, StageSpec
from ..text import humanize_key

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from ..measure.measurements import Candidate, LesionMeasurements, RejectedLesion
    from .canvas import Picture

    Finding = LesionMeasurements | Candidate | RejectedLesion

#: Threads that draw: most of it is computed, encoded and compressed outside of the interpreter lock.
_THREADS = 2
#: Matplotlib is not thread-safe.
_MATPLOTLIB = threading.Lock()
#: Image metadata that may appear in a report. DICOM UIDs and series names can identify a patient.
_TELLABLE = ("modality", "source_format")


def require_report_packages() -> None:
    """Raise :class:`~LiverXAILib.errors.UsageError` if a package that reports need is not installed."""
    modules = {"jinja2": "jinja2", "matplotlib": "matplotlib", "pillow": "PIL"}
    missing = [name for name, module in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"The report needs {' and '.join(missing)}: pip install {' '.join(missing)}, or leave out the report."
        )


def write_report(
    analysis: Analysis,
    path: str | os.PathLike[str],
    *,
    viewer: bool = True,
    drawn: Mapping[str, Any] | None = None,
) -> None:
    """Write the report of one analysis to `path`.

    :param viewer: embed an interactive viewer of the CT, outlines and heat maps in the page (adds 2 to 6 MB).
    :param drawn: the result of :func:`draw_report` for this analysis; None: it is computed now.
    :raises LiverXAILib.errors.UsageError: a package that reports need is not installed.
    :raises OSError: the file cannot be written.
    """
    pictures = draw_report(analysis, viewer=viewer) if drawn is None else drawn
    text = render_page(Path(__file__).with_name("template.html"), {**_context(analysis), **pictures})
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw_report(analysis: Analysis, *, viewer: bool = True) -> dict[str, Any]:
    """The pictures of a report and the data of its viewer, which take most of the time and do not need the warnings."""
    require_report_packages()
    from .pictures import MAX_LESIONS

    found = analysis.measurements
    with ThreadPoolExecutor(_THREADS, "drawing") as drawing:
        data = drawing.submit(_viewer, analysis) if viewer else None  # takes longest
        overview = drawing.submit(_planes, analysis)
        several: dict[str, Iterator[Any]] = {
            "lesion_pictures": drawing.map(partial(_pictured, analysis), found.lesions[:MAX_LESIONS]),
            "candidate_pictures": drawing.map(partial(_pictured, analysis), found.candidates[:MAX_LESIONS]),
            "rejected_pictures": drawing.map(partial(_pictured, analysis), found.rejected[:MAX_LESIONS]),
            "answers": drawing.map(partial(_answer, analysis), analysis.answers),
            "explanations": drawing.map(partial(_explanation, analysis), analysis.explanations),
        }
        return {
            "overview": overview.result(),
            "viewer": None if data is None else data.result(),
            **{name: list(results) for name, results in several.items()},
        }


def render_page(template: Path, context: Mapping[str, Any]) -> str:
    """A page from a Jinja template; values are escaped, and a name missing from `context` is an error.

    :raises LiverXAILib.errors.UsageError: a package that reports need is not installed.
    """
    require_report_packages()
    return _environment(template.parent).get_template(template.name).render(context)


@cache
def _environment(folder: Path) -> jinja2.Environment:
    """An environment that loads the templates of a folder and compiles each of them once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["amount"] = _amount
    environment.filters["duration"] = _duration
    environment.filters["zip"] = zip
    environment.filters["words"] = humanize_key
    return environment


def _context(analysis: Analysis) -> dict[str, Any]:
    from . import pictures

    spacing = " × ".join(f"{value:.3g}" for value in analysis.volume.spacing)
    size = " × ".join(str(n) for n in analysis.volume.shape[::-1])
    image = [analysis.volume.metadata.get(key) for key in _TELLABLE]
    made = str(analysis.provenance.get("started", ""))[:16].replace("T", " ")
    liver_low, liver_high = pictures.liver_window_hu(analysis.measurements)
    return {
        "case_label": analysis.volume.metadata.get("case_label"),
        "image_text": ", ".join([*filter(None, image), f"{size} voxels of {spacing} mm"]),
        "study_text": _study_text(analysis),
        "made_text": f"{analysis.model.title} {analysis.model.version}, LiverXAI {__version__}, {made}".strip(", "),
        "warnings": _warnings(analysis),
        "measurements": analysis.measurements,
        # The sum of the rounded volumes in the table, so that a reader who adds them up gets the same total.
        "lesions_ml": sum(round(lesion.volume_ml, 2) for lesion in analysis.measurements.lesions),
        "reliabilities": any(lesion.reliability is not None for lesion in analysis.measurements.lesions),
        "model": analysis.model,
        "overview_text": _overview_text(analysis),
        "label_colors": [
            (spec.name, "#{:02x}{:02x}{:02x}".format(*spec.color)) for spec in analysis.segmentation.specs
        ],
        "decisions": analysis.decisions,
        "follow_up": analysis.follow_up,
        "slices": dict(zip("kji", analysis.volume.shape, strict=True)),
        "window": pictures.WINDOW_HU,
        "liver_window": (liver_low, liver_high),
        "heat_colors": ", ".join("rgb({}, {}, {})".format(*color) for color in HEAT_COLORS),
        "heat_threshold": VISIBLE_HEAT,
        "provenance": json.dumps(_without_identity(analysis.provenance), indent=2, ensure_ascii=False),
    }


def _study_text(analysis: Analysis) -> str:
    """Study details of a DICOM series, if the user asked for them."""
    if not analysis.volume.metadata.get("study_details"):
        return ""
    from .dicom_source import study_text

    return study_text(analysis.volume)


def _warnings(analysis: Analysis) -> list[str]:
    """What the reader must know first, without duplicate sentences."""
    measured = analysis.measurements
    sentences = [str(sentence) for sentence in analysis.provenance.get("warnings", ())]
    sentences += [str(sentence) for sentence in analysis.volume.metadata.get("warnings", ())]
    if measured.liver_volume_ml == 0:
        sentences.append("No liver was found.")
    if measured.liver_cut_at:
        sides = " and ".join(measured.liver_cut_at)
        sentences.append(f"The liver reaches the image's {sides} border: its volume is a lower bound.")
    if cut := [str(lesion.number) for lesion in measured.lesions if lesion.touches_image_border]:
        which = f"Lesion {cut[0]} reaches" if len(cut) == 1 else f"Lesions {', '.join(cut)} reach"
        sentences.append(f"{which} the image's border and may be larger.")
    return list(dict.fromkeys(sentences))


def _viewer(analysis: Analysis) -> Markup:
    from .viewer import viewer_data

    return _json_in_script(viewer_data(analysis))


def _pictured(analysis: Analysis, finding: Finding) -> tuple[Finding, str]:
    """A lesion or candidate, and its pictures."""
    from .pictures import render_lesion

    return finding, embedded(*render_lesion(analysis, finding))


def _explanation(analysis: Analysis, explanation: Explanation) -> dict[str, Any]:
    from . import pictures

    description = explanation.target.describe()
    faithfulness = explanation.faithfulness
    curves = faithfulness.get("curves") if faithfulness else None
    return {
        "question": explanation.target.question(),
        "method": CATALOG[explanation.method].title,
        "layer": explanation.layer,
        "stage": explanation.provenance.get("stage") if len(analysis.model.stages) > 1 else None,
        "resolution": _resolution(analysis, explanation),
        "empty": explanation.raw_maximum == 0,
        "accounts_for": explanation.provenance.get("accounts_for"),
        "raw_maximum": explanation.raw_maximum,
        "warnings": list(explanation.remarks(analysis.segmentation)),
        "before": not explanation.is_about(analysis.segmentation),
        "planes": _planes(analysis, explanation),
        "picture_text": f"Axial, coronal and sagittal slices with the heat map for {description} over the CT: "
        "red places were influential, blue places hardly, uncolored places not at all.",
        "faithfulness": faithfulness,
        "gains": _gains(faithfulness),
        "curves": embedded(pictures.render_curves(curves)) if curves else None,
    }


def _answer(analysis: Analysis, answer: Answer) -> dict[str, Any]:
    from .answer_pictures import answer_legend, answer_pictures

    name = answer.target.describe()
    pictures = [(caption, embedded(figure)) for caption, figure in answer_pictures(analysis, answer)]
    return {
        "kind": answer.kind,
        "heading": f"{answer.title} ({name})",
        "sentence": answer.sentence,
        "warnings": list(answer.warnings),
        "legend": answer_legend(answer),
        "places": answer.evidence["far"] if isinstance(answer, BorderNeed) else [],
        "pictures": [{"caption": caption, "source": source} for caption, source in pictures],
        "picture_text": f"{answer.title}, {name}",
    }


def _gains(faithfulness: Mapping[str, Any] | None) -> dict[str, float]:
    """Insertion minus deletion for the map and the controls with which it is compared, where computed."""
    if not faithfulness or not faithfulness.get("curves"):
        return {}
    compared = {"this map": faithfulness["curves"], **faithfulness.get("controls", {})}
    return {name: curves["gain"] for name, curves in compared.items()}


def _resolution(analysis: Analysis, explanation: Explanation) -> str:
    """The map's resolution before interpolation, as text; "" if unknown."""
    found = _stage_and_layer(analysis, explanation)
    if found is None:
        return ""
    stage, layer = found
    spacing = [size for size in stage.spacing or () if size is not None]
    if len(spacing) != len(layer.stride):
        return ""
    cell = " × ".join(f"{size * stride:.3g}" for size, stride in zip(spacing, layer.stride, strict=True))
    return f"one value every {cell} mm, interpolated in between"


def _stage_and_layer(analysis: Analysis, explanation: Explanation) -> tuple[StageSpec, LayerSpec] | None:
    for stage in reversed(analysis.model.stages):
        if not explanation.target.label or explanation.target.label in stage.labels:
            for layer in stage.layers:
                if layer.name == explanation.layer:
                    return stage, layer
    return None


def _overview_text(analysis: Analysis) -> str:
    names = " and ".join(spec.name for spec in analysis.segmentation.specs)
    return f"Axial, coronal and sagittal CT slices with the outlines of {names}."


def _without_identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    source = provenance.get("input", {})
    known = {key: value for key, value in source.items() if key in (*_TELLABLE, "shape", "spacing_mm", "warnings")}
    public = {**provenance, "input": known}
    if "reader" in public:  # the voxels are for programs, which find them in provenance.json
        public["reader"] = [{k: v for k, v in one.items() if k not in ("voxels", "before")} for one in public["reader"]]
    return public


def _number(value: float | None, digits: int = 1) -> str:
    """A number for a table: fixed number of decimals, without a sign if that leaves 0; an en dash for None."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _amount(value: float | None) -> str:
    """A nonnegative quantity with one decimal, which distinguishes a small amount from none."""
    return "< 0.1" if value is not None and 0 < value < 0.05 else _number(value)


def _duration(seconds: float) -> str:
    """A duration in suitable units."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _planes(analysis: Analysis, explanation: Explanation | None = None) -> list[dict[str, Any]]:
    """The three slices of an overview, with widths that show them side by side at the same scale."""
    from . import pictures

    return [
        {"name": name, "width": round(picture.size_mm[0], 1), "picture": embedded(picture)}
        for name, picture in pictures.render_planes(analysis, explanation).items()
    ]


def _json_in_script(value: Mapping[str, Any]) -> Markup:
    """JSON as the content of a ``<script type="application/json">`` element, which no text in it can end."""
    from markupsafe import Markup

    return Markup(json.dumps(value, ensure_ascii=True).replace("<", "\\u003c"))  # nosec B704


def embedded(*shown: Picture | Figure) -> str:
    """A figure, or pictures side by side, as a data URI."""
    from .canvas import Picture, side_by_side
    from .canvas import embedded as as_uri

    pictures = [one for one in shown if isinstance(one, Picture)]
    if pictures:
        return as_uri(side_by_side(pictures))
    (figure,) = (one for one in shown if not isinstance(one, Picture))
    buffer = io.BytesIO()
    with _MATPLOTLIB:
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
