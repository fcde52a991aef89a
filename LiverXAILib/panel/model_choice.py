# SPDX-License-Identifier: Apache-2.0
"""The choice of a model (registered, the user's own, from a folder or a zip file), and the card of the chosen one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ..errors import LiverXAIError
from ..inference.sensitivity import STANDARD, named_points
from ..models import ModelSpec, StageSpec, registry
from ..models.registry import imported_folder, imported_models
from .state import PanelState
from .words import one_line

#: Values of the parameter `model` for which `modelFolder` is used: a folder, or a zip file to be imported.
FROM_FOLDER, FROM_FILE = "", "*.zip"


class ModelChoice:
    """Fills the widgets for the choice of a model, and provides information about the chosen one."""

    def __init__(self, state: PanelState) -> None:
        import ctk

        self._state, self._ui = state, state.ui
        self.registry = registry()
        self._loaded: dict[str, ModelSpec] = {}
        self._cards: dict[Any, Any] = {}
        self._filters = {FROM_FOLDER: ctk.ctkPathLineEdit.Dirs, FROM_FILE: ctk.ctkPathLineEdit.Files}

    def fill(self) -> None:
        """List registered models, the user's own models, and the entries for a folder or a zip file."""
        selector = self._ui.modelSelector
        with self._state.filling():
            selector.clear()
            for name, entry in self.registry.items():
                selector.addItem(self._description(entry).title, name)
            for name in _own_models():
                selector.addItem(name, name)
            selector.addItem(_("From a folder…"), FROM_FOLDER)
            selector.addItem(_("From a zip file…"), FROM_FILE)

    @property
    def name(self) -> str:
        """The argument for the library: a name or the path of a folder."""
        parameters = self._state.parameters
        return parameters.modelFolder if parameters.model in self._filters else parameters.model

    @property
    def entry(self) -> Any:
        """The registered model that is chosen, or None."""
        return self.registry.get(self._state.parameters.model)

    @property
    def is_zip_file(self) -> bool:
        """Whether a zip file is to be imported."""
        return bool(self._state.parameters.model == FROM_FILE)

    def folder(self) -> Path | None:
        """The folder of the chosen model if it is the user's own; None if it is registered or missing."""
        parameters = self._state.parameters
        if self.entry is not None or self.is_zip_file:
            return None
        if parameters.model == FROM_FOLDER:
            folder = Path(parameters.modelFolder)
            return folder if parameters.modelFolder and folder.is_dir() else None
        try:
            return imported_folder(parameters.model)
        except ImportError:  # without platformdirs nothing was imported yet
            return None

    def spec(self) -> ModelSpec | None:
        """Return the card of the chosen model; None if it has none and has not been loaded yet."""
        entry, folder = self.entry, self.folder()
        try:
            if entry is not None and entry.card is not None:
                return entry.spec()
            if folder is not None and (folder / "card.json").is_file():
                card = folder / "card.json"
                state = (card, card.stat().st_mtime_ns, card.stat().st_size)
                return self._parsed(state, lambda: ModelSpec.from_json(card.read_text(encoding="utf-8")))
        except (LiverXAIError, OSError):
            logging.exception("The model card cannot be read")
        return self._loaded.get(self.name)

    def _parsed(self, state: Any, parse: Callable[[], Any]) -> Any:
        """Return what `parse` returns; it is called once for each state of a file."""
        if state not in self._cards:
            self._cards[state] = parse()
        return self._cards[state]

    def _description(self, entry: Any) -> Any:
        """Return the registry entry or the card of a registered model."""
        return self._parsed((id(entry), "description"), entry.description)

    def remember(self, name: str, spec: ModelSpec) -> None:
        """Keep the card of a loaded model, because its folder may contain none."""
        self._loaded[name] = spec

    def is_ready(self) -> bool:
        """Whether the chosen model is on this computer."""
        entry = self.entry
        if entry is None:
            return self.folder() is not None
        try:
            return bool(entry.installed())
        except ImportError:  # without platformdirs nothing was downloaded yet
            return False

    def can_be_fetched(self) -> bool:
        """Whether the model can be downloaded, or imported from a zip file."""
        if self.is_zip_file:
            return Path(self._state.parameters.modelFolder).is_file()
        return self.entry is not None and not self.is_ready()

    def license_terms(self) -> str:
        """Return the terms to accept before the model is downloaded; "" for none."""
        return self._description(self.entry).licenses.terms or ""

    def labels(self) -> list[str]:
        """Return the names of the model's labels; those of the bundled model if the card is not known yet."""
        known = self._description(self.entry) if self.entry is not None else self.spec()
        return [label.name for label in known.labels] if known is not None else ["liver", "tumor"]

    def sensitivity(self) -> str:
        """Return the chosen operating point if the model card has it, else the model's own."""
        spec, chosen = self.spec(), self._state.parameters.sensitivity
        return chosen if spec is not None and chosen in named_points(spec) else STANDARD

    def layer(self) -> str | None:
        """Return the chosen layer if the explained stages have it; None: the model's default."""
        layer = self._state.parameters.layer
        return layer if layer in self.layers() else None

    def layers(self) -> list[str]:
        """Return the layers that can be explained: those that all explained stages share."""
        stages = [[layer.name for layer in stage.layers] for stage in self._deciding_stages(self.spec())]
        return [name for name in stages[0] if all(name in other for other in stages)] if stages else []

    def _deciding_stages(self, spec: ModelSpec | None) -> list[StageSpec]:
        """Return the stages of the model that produce the labels of the chosen target, each once."""
        if spec is None:
            return []
        labels = [label.name for label in spec.labels]
        asked = {"both": ["liver", "tumor"], "liver": ["liver"], "crosshair": labels, "nothing": labels}
        names = [name for name in asked.get(self._state.parameters.target, ["tumor"]) if name in labels]
        stages = {stage.name: stage for stage in map(spec.stage_of, names)}
        return list(stages.values())

    # --- the card --------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Show the card of the chosen model, and its layers that can be explained."""
        ui, parameters, entry, spec = self._ui, self._state.parameters, self.entry, self.spec()
        brought = parameters.model in self._filters
        ui.modelFolderLabel.visible = ui.modelFolder.visible = brought
        if brought:
            ui.modelFolder.filters = self._filters[parameters.model]
            ui.modelFolderLabel.text = _("File:") if self.is_zip_file else _("Folder:")
        ui.downloadButton.text = _("Import") if self.is_zip_file else _("Download")
        self._show_card(entry, spec)
        with self._state.filling():
            ui.layerSelector.clear()
            ui.layerSelector.addItem(_("Model default"), "")
            for layer in self.layers():
                ui.layerSelector.addItem(layer, layer)
            ui.layerSelector.setCurrentIndex(max(0, ui.layerSelector.findData(parameters.layer)))
        ui.layerHint.text = self._layer_words(spec)

    def _show_card(self, entry: Any, spec: ModelSpec | None) -> None:
        ui, about = self._ui, self._description(entry) if entry is not None else None
        source: Any = about or spec
        if source is None:
            ui.modelCard.text = _("Your own model: LiverXAI (with card.json), nnU-Net v2, or a MONAI bundle.")
            ui.modelCard.toolTip = ""
            return
        does = source.description if about is None else about.task
        license = source.license if about is None else about.licenses.weights
        trained, quality = one_line(source.training.get("data", "")), one_line(source.quality)
        ui.modelCard.text = does.split(". ")[0].rstrip(".") + "."
        ui.modelCard.toolTip = "\n".join(
            [
                source.title,
                does,
                _("Trained on: {data}").format(data=trained or _("not stated")),
                _("Quality: {quality}").format(quality=quality or _("not stated")),
                _("License: {license}").format(license=license) + self._size_words(entry, spec),
                *source.limits,
                source.source,
            ]
        )

    def _size_words(self, entry: Any, spec: ModelSpec | None) -> str:
        """Return the size of the model's files, if it is known."""
        files = [file.size for file in (*entry.files.values(), entry.archive) if file] if entry is not None else []
        folder = entry.folder() if entry is not None and entry.bundled else self.folder()
        if folder is not None and spec is not None:
            paths = {folder / name for stage in spec.stages for name in stage.weights}
            files = [path.stat().st_size for path in paths if path.is_file()]
        return _(", {size:.1f} MB").format(size=sum(files) / 1e6) if files and None not in files else ""

    def _layer_words(self, spec: ModelSpec | None) -> str:
        """Describe the resolution of a heat map of the layer."""
        wanted, lines = self._state.parameters.layer, []
        if wanted and wanted not in self.layers():
            lines.append(_("{layer} does not apply to this target; the default layer is used.").format(layer=wanted))
            wanted = ""
        for stage in self._deciding_stages(spec):
            for layer in stage.layers:
                if layer.name == (wanted or stage.default_layer):
                    words = _("{layer}: one value per {cell} voxels.")
                    lines.append(words.format(layer=layer.name, cell=" × ".join(map(str, layer.stride))))
        return "\n".join(lines)


def _own_models() -> list[str]:
    """Return the names of models that the user has imported."""
    try:
        return imported_models()
    except ImportError:  # without platformdirs nothing was imported yet
        return []
