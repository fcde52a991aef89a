# SPDX-License-Identifier: Apache-2.0
"""Tables and a figure of the results of methods and layers: means over maps, with intervals over lesions.

Intervals are computed by bootstrap over lesions (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ...errors import UsageError
from ...files import replacing
from ...text import counted

#: The measurements of one map.
Row = dict[str, Any]
#: Bootstrap samples, and the fraction of them outside an interval.
_SAMPLES, _LEFT_OUT = 2000, 0.05


def summarize(rows: Sequence[Row], by: Sequence[str] = ("target", "method", "layer")) -> list[Row]:
    """Return the means over rows with equal columns `by`; `passed`: the fraction that passed, `maps`: the number."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    numbers = [key for key, value in rows[0].items() if isinstance(value, (int, float))] if rows else []
    return [
        dict(zip(by, key, strict=True))
        | {"maps": len(group)}
        | {name: round(fmean(float(row[name]) for row in group), 4) for name in numbers}
        for key, group in groups.items()
    ]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rank methods and layers, best first: by the fraction of all maps that passed, then by the mean drop."""
    return sorted(summarize(rows, ("method", "layer")), key=lambda row: (-row["passed"], -row["drop"]))


def intervals(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Add to :func:`ranked` 95 % intervals of the means over lesions: ``<column>_low`` and ``<column>_high``.

    The intervals are percentiles over resamples of the lesions, the same for each method, with a fixed seed.
    """
    lesions = sorted({(row["case"], row["target"]) for row in rows})
    chosen = np.random.default_rng(0).integers(len(lesions), size=(_SAMPLES, len(lesions)))
    result = []
    for row in ranked(rows):
        own = {
            (one["case"], one["target"]): one
            for one in rows
            if (one["method"], one["layer"]) == (row["method"], row["layer"])
        }
        for column in columns:
            values = np.array([float(own[lesion][column]) if lesion in own else np.nan for lesion in lesions])
            low, high = np.nanquantile(np.nanmean(values[chosen], axis=1), [_LEFT_OUT / 2, 1 - _LEFT_OUT / 2])
            row |= {f"{column}_low": round(float(low), 4), f"{column}_high": round(float(high), 4)}
        result.append(row)
    return result


def format_table(rows: Sequence[Row]) -> str:
    """Format Markdown tables of methods and layers, best first, for lesions (true, false) and other questions."""
    lesions = [row for row in rows if row["target"].startswith("lesion:")]
    others = [row for row in rows if not row["target"].startswith("lesion:")]
    lines = []
    for title, group in (("lesion", lesions), *((one, [row for row in others if row["target"] == one])
                         for one in dict.fromkeys(row["target"] for row in others))):  # fmt: skip
        if group:
            count = len({(row["case"], row["target"]) for row in group})
            words = counted(count, title, f"{title}s" if title == "lesion" else title)
            lines += [f"Maps of {words}; in brackets 95 % intervals over them.", "", *_method_table(group), ""]
    controls = {
        "case": "case",
        "target": "question",
        "true": "true",
        "score": "confidence",
        "score_replaced": "all replaced",
        "drop_edges": "drop: edges",
        "drop_random": "random places",
        "lost_without_surroundings": "lost without surroundings",
        "lost_without_target": "lost without target",
    }
    return "\n".join([*lines, *_markdown(summarize(rows, ("case", "target", "true")), controls)])


def _method_table(rows: Sequence[Row]) -> list[str]:
    shown: dict[str, str] = {name: name for name in ("passed", "drop", "energy", "gain") if name in rows[0]}
    by_truth = {
        truth: {(row["method"], row["layer"]): row for row in ranked([one for one in rows if one["true"] == truth])}
        for truth in ("true", "false")
    }
    table = []
    for row in intervals(rows, list(shown)):
        cells = {name: f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]" for name in shown}
        for truth, known in by_truth.items():
            same = known.get((row["method"], row["layer"]))
            cells[truth] = "–" if same is None else f"{same['passed']:.2f} ({same['maps']})"
        table.append({**row, **cells})
    columns: dict[str, str] = {"method": "method", "layer": "layer", **shown}
    columns |= {"true": "passed, true", "false": "passed, false"}
    further = {"energy_lift": "energy lift", "spearman_shuffled": "ρ shuffled", "spearman_noise": "ρ noise"}
    return _markdown(table, columns | {name: title for name, title in further.items() if name in rows[0]})


def _markdown(rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_benchmark(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``benchmark-explain.csv``, ``.md`` and ``.png`` into `folder`; returns their paths."""
    if not rows:
        raise UsageError("None of the targets was found in these cases, so there is nothing to compare.")
    folder.mkdir(parents=True, exist_ok=True)
    table, text, figure = (folder / f"benchmark-explain.{suffix}" for suffix in ("csv", "md", "png"))
    with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(text) as temporary:
        temporary.write_text(format_table(rows) + "\n", encoding="utf-8")
    with replacing(figure) as temporary:
        draw_benchmark(rows, temporary)
    return [table, text, figure]


def draw_benchmark(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean drop of each method (rows) and layer (columns), with one panel for lesions and for each question.

    A cell shows the drop, and below it the fraction of the maps that passed. The title gives the drop of the controls.
    """
    from matplotlib.figure import Figure

    merged = [{**row, "target": row["target"].split(":")[0]} for row in rows]
    means = summarize(merged)
    targets = list(dict.fromkeys(row["target"] for row in means))
    methods = list(dict.fromkeys(row["method"] for row in means))
    layers = list(dict.fromkeys(row["layer"] for row in means))
    figure = Figure(
        figsize=(1.6 + 0.95 * len(layers), 1.2 + len(targets) * (1.0 + 0.45 * len(methods))), layout="constrained"
    )
    for axes, target in zip(figure.subplots(len(targets), 1, squeeze=False)[:, 0], targets, strict=True):
        cells = {(row["method"], row["layer"]): row for row in means if row["target"] == target}
        grid = [[cells.get((m, layer), {}).get("drop", float("nan")) for layer in layers] for m in methods]
        picture = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (method, layer), row in cells.items():
            text = f"{row['drop']:.2f}\n{100 * row['passed']:.0f} %"
            shade = "white" if row["drop"] > 0.6 else "black"
            axes.text(
                layers.index(layer), methods.index(method), text, ha="center", va="center", color=shade, fontsize=7
            )
        axes.set_xticks(range(len(layers)), [layer or "image" for layer in layers], rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        edges, places = (fmean(row[name] for row in cells.values()) for name in ("drop_edges", "drop_random"))
        controls = f"{edges:.2f} for edges, {places:.2f} for random places"
        axes.set_title(f"{target}: drop, and % of the maps that passed\n(drop: {controls})", fontsize=8)
        figure.colorbar(picture, ax=axes, shrink=0.9)
    figure.savefig(path, dpi=110)
