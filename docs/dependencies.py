# SPDX-License-Identifier: Apache-2.0
"""Draw the imports between the packages of LiverXAILib, from the sources: ``python docs/dependencies.py``.

Writes docs/images/dependencies.svg. A box names a package and its lines of code; an arrow points to a package that
it imports at run time (not only for type checking). Arrows that follow from others are not drawn, and neither are the
small modules next to the packages that any of them may use (errors, progress, …).
"""

from __future__ import annotations

import ast
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


def sources() -> list[Path]:
    return [path for path in sorted(LIBRARY.rglob("*.py")) if package_of(path) not in ("__init__", "__main__")]


def imported_packages(path: Path) -> set[str]:
    """The packages of LiverXAILib that a source file imports at run time, other than its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    own = ["LiverXAILib", *path.relative_to(LIBRARY).parent.parts]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or node in typing_only:
            continue
        base = own[: len(own) - node.level + 1] + (node.module.split(".") if node.module else [])
        found.update([base[1]] if len(base) > 1 else [alias.name for alias in node.names])
    return found - {package_of(path)}


def dependency_graph() -> networkx.DiGraph:
    """Packages as nodes (attribute ``lines``), imports as edges from the importing to the imported package."""
    graph = networkx.DiGraph()
    for path in sources():
        name = package_of(path)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        graph.add_node(name, lines=graph.nodes.get(name, {}).get("lines", 0) + lines)
    for path in sources():
        graph.add_edges_from((package_of(path), other) for other in imported_packages(path) if other in graph)
    return graph


def without_small_modules(graph: networkx.DiGraph) -> networkx.DiGraph:
    """The packages, and the modules next to them that import packages."""
    kept = [name for name in graph if (LIBRARY / name).is_dir()]
    kept += [name for name in graph if any(other in kept for other in graph.successors(name))]
    return graph.subgraph(kept).copy()


def draw(graph: networkx.DiGraph, output: Path) -> None:
    """Draw an acyclic graph in rows, with each package below everything that it imports."""
    reduced = networkx.transitive_reduction(graph)
    for layer, names in enumerate(networkx.topological_generations(graph.reverse())):
        for name in names:
            reduced.nodes[name]["layer"] = layer
    across = networkx.multipartite_layout(reduced, subset_key="layer", align="horizontal")
    layout = {name: (x, -y) for name, (x, y) in across.items()}
    rows = max(reduced.nodes[name]["layer"] for name in reduced) + 1
    figure, axes = plt.subplots(figsize=(11, 0.9 * rows))
    networkx.draw_networkx_edges(
        reduced, layout, ax=axes, edge_color="0.6", arrowsize=9, node_size=1800, connectionstyle="arc3,rad=0.08"
    )
    for name, (x, y) in layout.items():
        text = f"{name}\n{graph.nodes[name]['lines']} lines"
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eaf2f8", "edgecolor": "#4a6f8a"}
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)
    axes.set_axis_off()
    figure.savefig(output, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "dependencies"
    draw(without_small_modules(dependency_graph()), OUTPUT)
