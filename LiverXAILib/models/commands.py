# SPDX-License-Identifier: Apache-2.0
"""``liverxai models``: list, show, download, import, trust, verify and remove models."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..progress import progress_bar
from ..text import humanize_key, whole_sentence
from .registry import About, Entry, imported_folder, imported_models, registered, registry
from .spec import ModelSpec

#: Width of the text in characters.
_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``liverxai models`` to its parser."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    one = _action(actions, "list", "list the named models")
    one.set_defaults(action=_list)
    for name, action, text in (
        ("show", _show, "show a model's purpose, labels, licenses, training data and published quality"),
        ("download", _download, "download a model's weights; an interrupted download continues"),
        ("verify", _verify, "check a model's files against their checksums"),
        ("remove", _remove, "delete a model's downloaded or imported files"),
    ):
        one = _action(actions, name, text)
        listed = "a model listed by 'liverxai models list'"
        if name == "show":
            one.add_argument("name", metavar="NAME_OR_FOLDER", help=f"{listed}, or the folder of one (prints its card)")
        else:
            one.add_argument("name", metavar="NAME", help=listed)
        one.set_defaults(action=action)
        if name == "download":
            one.add_argument("--accept-license", action="store_true", help="you have read and accept the model's terms")
        if name == "show":
            one.add_argument(
                "--card", action="store_true", help="print the model card as JSON (loads the model if needed)"
            )
            one.add_argument(
                "--layers", action="store_true", help="list the layers that can be explained, with their size in mm"
            )
    one = _action(actions, "trust", "allow the code in a compiled model's current files to be run")
    one.add_argument("name", metavar="NAME_OR_FOLDER", help="a listed model, or the folder of one")
    one.add_argument("--yes", action="store_true", help="do not ask: you trust whoever made these files")
    one.add_argument("--revoke", action="store_true", help="no longer trust this model")
    one.set_defaults(action=_trust)
    one = _action(actions, "import", "import a model from a folder or zip file, for machines without internet")
    one.add_argument("source", metavar="FOLDER_OR_ZIP", type=Path, help="the folder or zip file of a model")
    one.add_argument("--name", default=None, help="name of the imported model (default: its own, or the registry's)")
    one.add_argument(
        "--trust",
        action="store_true",
        help="allow the code in a compiled model's files to be run (see 'trust'); only if you trust whoever made them",
    )
    one.set_defaults(action=_import)


def _action(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add the parser of an action, with `text` in the list of actions and above its own options."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=whole_sentence(text))
    return parser


def run(arguments: argparse.Namespace) -> int:
    """List, show, download, import, trust, verify and remove models."""
    return arguments.action(arguments)


def _list(arguments: argparse.Namespace) -> int:
    entries = registry()
    width = max(map(len, [*entries, *imported_models()]))
    for name, entry in entries.items():
        state = "bundled" if entry.bundled else "on this machine" if entry.installed() else "to download"
        print(f"{name:<{width}}  {state:<15}  {entry.description().title}")
    for name in imported_models():
        print(f"{name:<{width}}  imported         {imported_folder(name)}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    entry = registry().get(arguments.name)
    if arguments.layers:
        for line in layer_lines(_card(arguments.name, entry)):
            print(line)
    elif arguments.card or entry is None:
        print(_card(arguments.name, entry).to_json(), end="")
    else:
        for line in _description(entry, entry.description()):
            print(line)
    return 0


def _card(name: str, entry: Entry | None) -> ModelSpec:
    if entry is not None and entry.card is not None:
        return entry.spec()
    if entry is None and imported_folder(name) is None and not Path(name).expanduser().is_dir():
        registered(name, or_folder=True)
    from .loading import load_model

    return load_model(name).spec


def layer_lines(spec: ModelSpec) -> list[str]:
    """The explainable layers of each network: name, stride in voxels, size of a cell in mm (tensor's axes)."""
    lines = []
    for stage in spec.stages:
        lines.append(f"{stage.name} ({', '.join(stage.labels)})")
        if not stage.layers:
            lines.append("  none: a compiled model has no inspectable layers; explain it by occlusion")
        for layer in stage.layers:
            spacing = (stage.spacing or (None,) * 3)[3 - len(layer.stride) :]
            cells = ["any" if mm is None else f"{n * mm:.3g}" for n, mm in zip(layer.stride, spacing, strict=True)]
            stride = "x".join(map(str, layer.stride))
            chosen = "  (default)" if layer.name == stage.default_layer else ""
            lines.append(f"  {layer.name:<20} stride {stride:<8} {' x '.join(cells)} mm{chosen}")
    return lines


def _description(entry: Entry, about: About) -> list[str]:
    """The description of a model, as lines of text."""
    folder = entry.folder()
    rows: list[tuple[str, Any]] = [
        ("task", about.task),
        ("finds", [f"{label.name}: {label.type[2]} ({label.type[0]} {label.type[1]})" for label in about.labels]),
        ("networks", entry.spec().networks() if entry.card is not None else ()),
        ("models", " -> ".join(link.model for link in entry.chain)),
        ("spacing", "" if entry.card is not None else _spacing(about.spacing_mm)),
        ("time", "" if about.time == "unknown" else about.time),
        ("license", {name: text for name, text in dataclasses.asdict(about.licenses).items() if text}),
        # How the weights came about, run by run, is printed by --card.
        ("training", {key: value for key, value in about.training.items() if key != "runs"}),
        ("quality", about.quality),
        ("limits", about.limits),
        ("source", about.source),
        ("citation", about.citation),
        ("address", entry.archive.url if entry.archive else ""),
        ("checksum", (entry.archive.sha256 or "not published; kept after the download") if entry.archive else ""),
        ("files", str(folder) if folder else "not on this machine" if entry.kind != "chain" else ""),
    ]
    lines = [f"{about.title} ({entry.name})", ""]
    for key, value in rows:
        for number, line in enumerate(_text(value)):
            lines.append(f"{'' if number else key:<9} {line}")
    return lines


def _spacing(spacing_mm: Sequence[float | None]) -> str:
    sizes = " x ".join("any" if mm is None else f"{mm:.3g}" for mm in spacing_mm)
    return f"{sizes} mm" if sizes else ""


def _text(value: Any) -> list[str]:
    """A value of a card as lines: mappings are indented, short mappings share a line, lists get dashes."""
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            flat = isinstance(item, Mapping) and not any(isinstance(x, (Mapping, list, tuple)) for x in item.values())
            if flat:
                item = ", ".join(f"{humanize_key(name)} {number}" for name, number in item.items())
            inner = _text(item)
            if isinstance(item, (Mapping, list, tuple)):
                lines += [f"{humanize_key(key)}:", *(f"  {line}" for line in inner)]
            else:
                lines += _wrapped(f"{humanize_key(key)}: {item}")
        return lines
    if isinstance(value, (list, tuple)):
        return [line for item in value for line in _dashed(_text(item))]
    return _wrapped("" if value is None else str(value))


def _dashed(lines: list[str]) -> list[str]:
    return [f"{'  ' if number else '- '}{line}" for number, line in enumerate(lines)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _download(arguments: argparse.Namespace) -> int:
    from .store import download

    about = registered(arguments.name).description()
    print(f"{about.title}. License of the weights: {about.licenses.weights}; of the data: {about.licenses.data}.")
    with progress_bar() as progress:
        folder = download(arguments.name, progress=progress, accept_license=arguments.accept_license)
    print(folder)
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from .store import import_model

    name, folder = import_model(arguments.source, arguments.name, trust=arguments.trust)
    print(f"{name}: {folder}")
    return 0


def _trust(arguments: argparse.Namespace) -> int:
    from .store import model_files, revoke_trust, trust_model

    if arguments.revoke:
        known = revoke_trust(arguments.name)
        print(f"{arguments.name} is no longer trusted." if known else f"{arguments.name} was not trusted.")
        return 0
    folder, files = model_files(arguments.name)
    print(f"The model in {folder} has these files:")
    for name, sha256 in files.items():
        print(f"  {sha256}  {name}")
    print(
        "If you trust it, code in these files runs on this computer with all your rights whenever the model is used. "
        "It can read, change and send your data. If a file changes, you will be asked again."
    )
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError("Nothing was changed. Run this in a terminal, or add --yes if you trust whoever made it.")
        if input("Do you trust whoever made these files? Type yes: ").strip().lower() != "yes":
            print("The model is not trusted.")
            return 1
    trust_model(arguments.name)
    print("The model is trusted.")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from .store import verify_model

    print(f"{verify_model(arguments.name)}: all files match their checksums.")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from .store import remove

    for folder in remove(arguments.name):
        print(f"removed {folder}")
    return 0
