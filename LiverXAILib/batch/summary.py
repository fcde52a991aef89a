# SPDX-License-Identifier: Apache-2.0
"""Summaries of the cohort, made from the output folder alone: tables for programs, one page for people."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..files import replacing
from ..report.html import render_page
from ..tables import write_table
from .cases import Found
from .manifest import KINDS, last_states, read_manifest
from .store import Store

CASE_COLUMNS = (
    "case",
    "state",
    "reason",
    "error",
    "plausible",
    "liver_volume_ml",
    "liver_complete",
    "liver_mean_hu",
    "standard_volume_ml",
    "standard_volume_ratio",
    "tumor_volume_ml",
    "tumor_burden_percent",
    "lesion_count",
    "longest_lesion_mm",
    "doubtful_lesions",
    "lowest_faithfulness",
    "faithfulness_passed",
    "warnings",
    "seconds",
    "folder",
    "model",
    "software",
    "image",
    "image_sha256",
)

#: Quantities that are compared between patients: column, title, unit.
_QUANTITIES = (
    ("liver_volume_ml", "Liver volume", "ml"),
    ("liver_mean_hu", "Liver attenuation", "HU"),
    ("tumor_burden_percent", "Tumor burden", "%"),
    ("lesion_count", "Lesions", "per case"),
    ("longest_lesion_mm", "Longest lesion diameter", "mm"),
    ("seconds", "Time", "s per case"),
)
#: Modified z-score above which a value is an outlier (Iglewicz and Hoaglin 1993, "How to detect and handle outliers").
_OUTLIER_Z = 3.5
#: With fewer patients, the spread cannot be estimated well enough to call a value an outlier.
_FEWEST_FOR_OUTLIERS = 8
_LISTED = 20


def write_summary(store: Store, found: Found) -> list[Path]:
    """Write ``cases.csv`` (one row per case), ``lesions.csv`` (one per lesion) and ``cohort.html`` into the output.

    Without Jinja or matplotlib, which an installation in Slicer may lack, only the tables are written. Several runs may
    do this at the same time on a shared file system; the last one to finish includes the manifest lines of all.

    :raises LiverXAILib.batch.store.OutputError: they cannot be written.
    """
    while True:
        seen = _sizes(store.manifest)
        cases = collect(store, found)
        try:
            files = [store.output / "cases.csv", store.output / "lesions.csv"]
            write_table(files[0], CASE_COLUMNS, (case.row for case in cases), mark=True)
            write_table(files[1], *_lesion_table(cases), mark=True)
            if all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
                files.append(_replace(store.output / "cohort.html", _page(cases, found)))
        except OSError as error:
            raise store.unusable(error) from error
        if _sizes(store.manifest) == seen:
            return files


@dataclass(frozen=True)
class CaseSummary:
    """One case: its row in the table, its lesions, and the checks of its explanations."""

    row: Mapping[str, Any]
    lesions: Sequence[Mapping[str, str]] = ()
    explanations: Sequence[Mapping[str, Any]] = ()


def collect(store: Store, found: Found) -> list[CaseSummary]:
    """Summarize every case that was found or is in the manifest."""
    states = last_states(read_manifest(store.manifest, store.damage))
    for case in found.cases:
        state = states.get(case.id, {"folder": case.folder, "state": "open"})
        states[case.id] = {**state, "label": case.name}
    summaries = [_summarize(store, state) for state in states.values()]
    return sorted(summaries, key=lambda summary: str(summary.row["case"]))


def _summarize(store: Store, state: Mapping[str, Any]) -> CaseSummary:
    row: dict[str, Any] = dict.fromkeys(CASE_COLUMNS)
    row |= {"case": state["label"], "folder": state.get("folder"), "state": state["state"]}
    if state["state"] == "failed":
        kind = state["kind"] if state["kind"] in KINDS else "error"
        row |= {"reason": kind, "error": state["error"], "seconds": state.get("seconds")}
    result = store.result(state["folder"]) if state["state"] == "done" else None
    if result is None:
        # "running" and "dropped" matter to the program only; to the user, the case is still open.
        row["state"] = "failed" if state["state"] == "failed" else "open"
        return CaseSummary(row)
    measured, record, checked = result.measurements, result.record, result.explanations
    longest = max((lesion["axial"]["long_mm"] for lesion in measured["lesions"]), default=None)
    times = record["times"]
    row |= {name: measured.get(name) for name in CASE_COLUMNS if name in measured}
    row |= {
        "longest_lesion_mm": longest,
        "doubtful_lesions": _doubtful(result.lesions),
        "lowest_faithfulness": min((_gain(one) for one in checked), default=None),
        "faithfulness_passed": all(one["faithfulness"]["passed"] for one in checked) if checked else None,
        "warnings": " ".join(record["warnings"]),
        "seconds": round(times["reading"] + times["analyzing"] + times["writing"], 2),
        "model": f"{record['model']['name']} {record['model']['version']}",
        "software": record["software"],
        "image": record["input"]["path"],
        "image_sha256": record["input"]["sha256"],
    }
    return CaseSummary(row, [{**lesion, **_changed_cts(lesion, result.answers)} for lesion in result.lesions], checked)


def _doubtful(lesions: Sequence[Mapping[str, str]]) -> int | None:
    """The number of lesions rated doubtful; None if their reliability is not rated."""
    words = [lesion.get("reliability_word", "") for lesion in lesions]
    return words.count("doubtful") if any(words) else None


def _changed_cts(lesion: Mapping[str, str], answers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The model's confidence in a lesion when it is replaced, moved, or alone; "" where it was not computed."""
    evidence: Mapping[str, Any] = {}
    for answer in answers:
        if answer["kind"] == "counterfactual" and answer["target"] == f"lesion:{lesion['number']}":
            evidence = answer["evidence"]
    numbers = {name: evidence.get(name) for name in ("without", "elsewhere", "alone")}
    return {f"confidence_{name}": "" if value is None else f"{value:g}" for name, value in numbers.items()}


def _gain(explanation: Mapping[str, Any]) -> float:
    return float(explanation["faithfulness"]["curves"]["gain"])


# --- tables -------------------------------------------------------------------------------------------------------


def _lesion_table(cases: Sequence[CaseSummary]) -> tuple[list[str], list[dict[str, Any]]]:
    columns = ["case"]
    rows = []
    for case in cases:
        for lesion in case.lesions:
            values = {name: value for name, value in lesion.items() if name != "structure"}
            columns += [name for name in values if name not in columns]
            rows.append({"case": case.row["case"], **values, "folder": case.row["folder"]})
    # Columns that are empty in all rows are omitted.
    return [name for name in columns if name == "case" or any(row[name] for row in rows)] + ["folder"], rows


def _replace(path: Path, text: str) -> Path:
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as f,
    ):
        f.write(text)
    return path


def _sizes(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_size) for path in folder.glob("*.jsonl"))


# --- the page -----------------------------------------------------------------------------------------------------


def _page(cases: Sequence[CaseSummary], found: Found) -> str:
    rows = [case.row for case in cases]
    done = [row for row in rows if row["state"] == "done"]
    checked: list[dict[str, Any]] = sorted(
        ({"row": case.row, "explanation": one, "gain": _gain(one)} for case in cases for one in case.explanations),
        key=lambda item: (item["explanation"]["faithfulness"]["passed"], item["gain"]),
    )
    context = {
        "rows": rows,
        "done": done,
        "failed": [row for row in rows if row["state"] == "failed"],
        "open": [row for row in rows if row["state"] == "open"],
        "passed_over": found.told,
        "kinds": KINDS,
        "figure": _figure(done),
        "outliers": outliers(done),
        "implausible": [row for row in done if row["plausible"] is False],
        "no_liver": [row for row in done if not row["liver_volume_ml"]],
        "cut_off": [row for row in done if row["liver_volume_ml"] and not row["liver_complete"]],
        "checked": checked[:_LISTED],
        "checks": len(checked),
        "models": sorted({row["model"] for row in done}),
        "versions": sorted({row["software"] for row in done}),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "version": __version__,
    }
    return render_page(Path(__file__).with_name("cohort.html"), context)


def outliers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Find values with a modified z-score ``0.6745 (x - median) / MAD`` above 3.5 or below -3.5, most extreme first.

    Iglewicz and Hoaglin 1993. MAD is the median absolute deviation; if more than half of the values are equal, it is
    0, and no value is called an outlier.
    """
    result = []
    for column, title, unit in _QUANTITIES[:-1]:
        known = [(float(row[column]), row) for row in rows if row[column] is not None]
        if len(known) < _FEWEST_FOR_OUTLIERS:
            continue
        middle = statistics.median(value for value, _ in known)
        spread = statistics.median(abs(value - middle) for value, _ in known)
        for value, row in known:
            z = 0.6745 * (value - middle) / spread if spread else 0.0
            if abs(z) > _OUTLIER_Z:
                result.append({"row": row, "title": title, "unit": unit, "value": value, "median": middle, "z": z})
    return sorted(result, key=lambda item: -abs(item["z"]))


def _figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Histograms of the quantities, as SVG; "" if there are no cases."""
    import io

    from matplotlib.figure import Figure

    if not rows:
        return ""
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (column, title, unit) in zip(axes, _QUANTITIES, strict=True):
        values = [float(row[column]) for row in rows if row[column] is not None]
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel(unit, fontsize=8.5)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=8, length=0)
        axis.yaxis.get_major_locator().set_params(integer=True)
        if not values:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "no values", ha="center", transform=axis.transAxes, fontsize=9, color="#57636d")
            continue
        if column == "lesion_count":
            bins: Any = [n - 0.5 for n in range(int(max(values)) + 2)]
            axis.xaxis.get_major_locator().set_params(integer=True)
        else:
            bins = min(20, max(5, round(len(values) ** 0.5 * 1.5)))
        axis.hist(values, bins=bins, color="#1f5f8b", edgecolor="white", linewidth=0.6)
        axis.axvline(statistics.median(values), color="#1c2329", linewidth=1, linestyle=(0, (3, 2)))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
