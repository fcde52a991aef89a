# SPDX-License-Identifier: Apache-2.0
"""Draw the imports between the packages of LiverXAILib, from the sources: ``python docs/dependencies.py``.

Writes docs/images/dependencies.svg. A box names a package and, below it, the packages inside it, each with its own
lines of code, to the nearest hundred, as Testing/Python/test_architecture.py counts them. An arrow points to a package
that is imported at run time (not only for type checking); what a package and those inside it import from each other has
no arrow. Arrows that follow from others are not drawn, and neither are the small modules next to the packages that any
of them may use (errors, progress, …).

The file's description is the same as text, by which a test finds out whether the picture is up to date.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import networkx

LIBRARY = Path(__file__).parents[1] / "LiverXAILib"
OUTPUT = Path(__file__).parent / "images" / "dependencies.svg"


def package_of(path: Path) -> str:
    """The package, or the module next to the packages, that a source file belongs to."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def lines_of_packages() -> Counter[str]:
    """Lines of code by dotted package (volumes, volumes.dicom), or by module next to the packages."""
    lines: Counter[str] = Counter()
    for path in sources():
        folders = path.relative_to(LIBRARY).parent.parts
        lines[".".join(folders) or package_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    return lines


def sources() -> list[Path]:
    """All files but those of the library itself, ``__init__.py`` and ``__main__.py``."""
    return [path for path in sorted(LIBRARY.rglob("*.py")) if package_of(path) not in ("__init__", "__main__")]


def run_statements(parent: ast.AST) -> Iterator[ast.AST]:
    """All statements inside of another or of a module, other than those for type checkers only."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):  # an expression contains none
            yield node
            yield from run_statements(node)


def imported_packages(path: Path) -> set[str]:
    """The packages of LiverXAILib that a source file imports at run time, other than its own."""
    own = ["LiverXAILib", *path.relative_to(LIBRARY).parent.parts]
    found = set()
    for node in run_statements(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = own[: len(own) - node.level + 1] + (node.module.split(".") if node.module else [])
        found.update([base[1]] if len(base) > 1 else [alias.name for alias in node.names])
    return found - {package_of(path)}


def dependency_graph() -> networkx.DiGraph:
    """Packages as nodes, imports as edges from the importing to the imported package.

    The attribute ``label`` of a node names the package and those inside it, with their lines of code.
    """
    graph = networkx.DiGraph()
    for name, lines in sorted(lines_of_packages().items()):
        package, _, inner = name.partition(".")
        count = f"{max(100, round(lines, -2)):,} lines"
        if inner:
            graph.nodes[package]["label"] += f"\n{inner}: {count}"
        else:
            graph.add_node(package, label=f"{package}\n{count}")
    for path in sources():
        graph.add_edges_from((package_of(path), other) for other in imported_packages(path) if other in graph)
    return graph


def without_small_modules(graph: networkx.DiGraph) -> networkx.DiGraph:
    """The packages, and the modules next to them that import packages."""
    kept = [name for name in graph if (LIBRARY / name).is_dir()]
    kept += [name for name in graph if any(other in kept for other in graph.successors(name))]
    return graph.subgraph(kept).copy()


def description(graph: networkx.DiGraph) -> str:
    """The boxes and arrows of an acyclic graph as text."""
    reduced = networkx.transitive_reduction(graph)
    sentences = []
    for name in sorted(graph):
        box = graph.nodes[name]["label"].replace("\n", ", ")
        sentences.append(f"{box}; imports {', '.join(sorted(reduced.successors(name))) or 'none of these'}.")
    return " ".join(sentences)


def draw(graph: networkx.DiGraph, output: Path) -> None:
    """Draw an acyclic graph in rows, with each package below everything that it imports."""
    reduced = networkx.transitive_reduction(graph)
    generations = networkx.topological_generations(graph.reverse())
    rows = {row: sorted(names) for row, names in enumerate(generations)}  # sorted: the same picture each time
    across = networkx.multipartite_layout(reduced, subset_key=rows, align="horizontal")
    heights = [  # in inches
        max(0.71 + 0.16 * graph.nodes[name]["label"].count("\n") for name in names) for names in rows.values()
    ]
    middles = [-sum(heights[:row]) - heights[row] / 2 for row in rows]
    width = max(x for x, _ in across.values()) - min(x for x, _ in across.values())
    layout = {}
    for row, names in rows.items():
        # Rows are shifted in turn, so that fewer arrows pass behind boxes.
        layout |= {name: (across[name][0] + width * (0.0, 0.12, -0.12)[row % 3], middles[row]) for name in names}
    figure, axes = plt.subplots(figsize=(11, sum(heights)), dpi=72)  # as in SVG, so that arrows end at the boxes
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set_axis_off()
    axes.set_ylim(-sum(heights), 0)
    left, right = (limit(x for x, _ in layout.values()) for limit in (min, max))
    axes.set_xlim(left - 0.1 * (right - left), right + 0.1 * (right - left))
    style = {"boxstyle": "round,pad=0.35", "facecolor": "#eaf2f8", "edgecolor": "#4a6f8a"}
    boxes = {
        name: axes.text(x, y, graph.nodes[name]["label"], ha="center", va="center", fontsize=8, bbox=style)
        for name, (x, y) in layout.items()
    }
    figure.canvas.draw()  # the arrows end at the boxes, whose sizes are known now
    for name, other in sorted(reduced.edges):
        ends = {"patchA": boxes[name].get_bbox_patch(), "patchB": boxes[other].get_bbox_patch()}
        arrow = {"arrowstyle": "-|>", "color": "0.6", "connectionstyle": "arc3,rad=0.08", **ends}
        axes.annotate("", xy=layout[other], xytext=layout[name], arrowprops=arrow, zorder=1)
    figure.savefig(output, metadata={"Date": None, "Description": description(graph)})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "dependencies"
    draw(without_small_modules(dependency_graph()), OUTPUT)
