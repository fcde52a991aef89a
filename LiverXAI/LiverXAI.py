# SPDX-License-Identifier: Apache-2.0
"""The Slicer module LiverXAI: liver and liver tumor segmentation in CT with explanations. For research use only.

The computations are in the package LiverXAILib, and the parts of the panel in LiverXAILib.panel; this file holds the
classes that Slicer looks for. Loading it imports neither torch nor Qt, and installs nothing.
"""

from __future__ import annotations

import logging
import sys
import unittest
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

if find_spec("LiverXAILib") is None:
    # An installed extension has the library next to this file; a source checkout has it next to this folder.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from LiverXAILib.analysis import Decision
from LiverXAILib.errors import LiverXAIError, UsageError
from LiverXAILib.panel.analyses import Analyses
from LiverXAILib.panel.choices import Choices, Devices
from LiverXAILib.panel.comparison import Comparison
from LiverXAILib.panel.fetching import ModelFetching
from LiverXAILib.panel.guide import Guide
from LiverXAILib.panel.heat_maps import HeatMaps
from LiverXAILib.panel.installation import require_packages
from LiverXAILib.panel.model_choice import ModelChoice
from LiverXAILib.panel.outcomes import Outcomes
from LiverXAILib.panel.questions import Questions
from LiverXAILib.panel.reading.calipers import Calipers
from LiverXAILib.panel.reading.edits import Edits, made_by, mark_if_edited, protect_results
from LiverXAILib.panel.reading.frames import Frames, mark_frame
from LiverXAILib.panel.reading.reader import Reader
from LiverXAILib.panel.reading.sensitivity import Sensitivity
from LiverXAILib.panel.results import ResultsView
from LiverXAILib.panel.sample_data import make_phantom, register_sample_data
from LiverXAILib.panel.saving import Outputs
from LiverXAILib.panel.scene_watch import SceneWatch
from LiverXAILib.panel.state import PanelState
from LiverXAILib.panel.status import StatusLine
from LiverXAILib.panel.tasks import TaskRunner
from LiverXAILib.panel.views import Views
from LiverXAILib.progress import CancelToken

if TYPE_CHECKING:
    from LiverXAILib.models import Model
    from LiverXAILib.mrml import AnalysisNodes

Progress = Callable[[str, float], None]


class LiverXAI(ScriptedLoadableModule):
    """What Slicer shows about the module before it is opened."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = _("Liver and tumor segmentation with explanations (LiverXAI)")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["LiverXAI contributors"]
        parent.helpText = _(
            "Segments the liver and its tumors in abdominal CT with a neural network, measures them, and explains "
            "every result with a heat map of what the network based it on. For research use only: not for diagnosis "
            "or treatment. Nothing leaves this computer. See the "
            '<a href="https://github.com/LiverXAI/SlicerLiverXAI/blob/main/docs/slicer.md">documentation</a>.'
        )
        parent.acknowledgementText = _(
            "LiverXAI is built on 3D Slicer, PyTorch and SimpleITK. Heat maps are made by default with HiResCAM "
            "(Draelos and Carin, arXiv 2011.08891), or with Seg-Grad-CAM (Vinogradova et al., AAAI 2020) and others. "
            "If you use it in a publication, please cite it as described in its file CITATION.cff."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Offer data to try the module with: a portal-venous CT from Slicer's own collection, and a synthetic patient."""
    register_sample_data(Path(__file__).parent / "Resources" / "Icons")


@parameterNodeWrapper
class LiverXAIParameters:
    """What the user chose: saved with the scene. `model` is a registered name, or "" for `modelFolder`."""

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    heatMap: slicer.vtkMRMLScalarVolumeNode
    model: str = "default"
    modelFolder: str = ""
    target: str = "both"
    method: str = "hires-cam"
    layer: str = ""
    device: str = "auto"
    check: bool = False
    lesionSegments: bool = False
    autoMeasure: bool = True
    sensitivity: str = "standard"
    force: bool = False
    height: float = 0.0
    weight: float = 0.0
    wheelFolder: str = ""
    outputs: str = "default"
    opacity: float = 0.5
    threshold: float = 0.1
    colors: str = ""


class LiverXAILogic(ScriptedLoadableModuleLogic):
    """Segment, explain and analyze from Slicer's Python console or a script; never shows a dialog.

    >>> from LiverXAI import LiverXAILogic
    >>> logic = LiverXAILogic()
    >>> nodes = logic.analyze(slicer.util.getNode("CTLiver"))   # doctest: +SKIP
    >>> logic.showExplanation(nodes.heatmaps["tumor"])          # doctest: +SKIP

    Each method adds its results to the scene, alongside the CT; a second run updates them in place, unless a reader has
    changed them or another model made them: then they are set aside and hidden, and the panel can show them again.
    Errors are :class:`LiverXAILib.errors.LiverXAIError` whose message says what is wrong and what to do.

    Common arguments:

    * `model`: a registered name or the path of a model's folder;
    * `device`: "auto", "cpu", "cuda", "cuda:N" or "mps";
    * `force`: accept a volume whose intensities do not look like Hounsfield units;
    * `progress`: called with a description of the current step and the fraction of it that is done, from 0 to 1;
    * `cancel`: a :class:`LiverXAILib.progress.CancelToken` that is checked between sliding windows.
    """

    def __init__(self) -> None:
        super().__init__()
        self._models: dict[str, Model] = {}

    def getParameterNode(self) -> LiverXAIParameters:
        """The choices made in the panel; kept in the scene."""
        return LiverXAIParameters(super().getParameterNode())

    def loadModel(self, model: str = "default") -> Model:
        """Load the model named `model`, or from the folder `model`; it stays loaded for the next call."""
        require_packages()
        from LiverXAILib.models import load_model

        if model not in self._models:
            self._models[model] = load_model(model)
        return self._models[model]

    def segment(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        model: str = "default",
        *,
        device: str = "auto",
        lesionSegments: bool = False,
        force: bool = False,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> slicer.vtkMRMLSegmentationNode:
        """Segment liver and tumors.

        >>> segmentationNode = logic.segment(slicer.util.getNode("CTLiver"))   # doctest: +SKIP

        :param lesionSegments: one segment for each lesion instead of one for all tumors.
        """
        loaded = self.loadModel(model)
        from LiverXAILib.inference import segment
        from LiverXAILib.mrml import ct_from_node, segmentation_to_node

        volume = ct_from_node(volumeNode, force=force)
        segmentation = segment(volume, loaded, device=device, progress=progress, cancel=cancel)
        self.protectResults(volumeNode, loaded)
        node = segmentation_to_node(segmentation, slicer.mrmlScene, volumeNode, lesion_segments=lesionSegments)
        mark_frame(node, volumeNode)
        return node

    def explain(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        segmentationNode: slicer.vtkMRMLSegmentationNode,
        target: str = "tumor",
        *,
        method: str = "hires-cam",
        layer: str | None = None,
        check: bool = False,
        model: str = "default",
        device: str = "auto",
        force: bool = False,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> slicer.vtkMRMLScalarVolumeNode:
        """Explain a part of a segmentation as it is now: made by :meth:`segment`, edited by hand, or drawn elsewhere.

        >>> heatMapNode = logic.explain(volumeNode, segmentationNode, "lesion:1")   # doctest: +SKIP
        >>> heatMapNode = logic.explain(volumeNode, segmentationNode, "voxel:ras:12,-40,88")   # doctest: +SKIP
        >>> heatMapNode = logic.explain(volumeNode, segmentationNode, "tumor-vs-liver")   # doctest: +SKIP

        :param target: "liver", "tumor", "lesion:2" (as numbered in the table), a voxel or a box in mm, "why not" …;
            see :class:`LiverXAILib.explain.Target`.
        :param method: one of :data:`LiverXAILib.explain.METHODS`.
        :param layer: layer of the network to explain; None: the model's default.
        :param check: also measure how faithful the heat map is; takes several times longer.
        :return: the heat map's volume node.
        """
        loaded = self.loadModel(model)
        from LiverXAILib.explain import Target, explain_all
        from LiverXAILib.mrml import (
            ct_from_node,
            explanation_to_node,
            place_results,
            require_segment,
            segmentation_from_node,
        )

        volume = ct_from_node(volumeNode, force=force)
        place_results(slicer.mrmlScene, volumeNode)
        label = Target.parse(target).label
        if label:
            require_segment(segmentationNode, loaded.spec, label)
        segmentation = segmentation_from_node(segmentationNode, volumeNode, loaded.spec)
        (explanation,) = explain_all(
            volume,
            loaded,
            segmentation,
            [target],
            method,
            layer,
            check=check,
            device=device,
            progress=progress,
            cancel=cancel,
        )
        for warning in explanation.warnings:
            logging.warning(warning)
        return explanation_to_node(explanation, slicer.mrmlScene, volumeNode)

    def analyze(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        targets: Sequence[str] = ("liver", "tumor"),
        *,
        method: str = "hires-cam",
        layer: str | None = None,
        check: bool = False,
        model: str = "default",
        device: str = "auto",
        lesionSegments: bool = False,
        force: bool = False,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> AnalysisNodes:
        """Segment, explain and measure in one go: what the command ``liverxai analyze`` does.

        >>> nodes = logic.analyze(slicer.util.getNode("CTLiver"))   # doctest: +SKIP
        >>> nodes.segmentation, nodes.heatmaps["liver"], nodes.table   # doctest: +SKIP

        :param targets: what to explain; a target that was not found is skipped with a warning in the log.
        """
        loaded = self.loadModel(model)
        from LiverXAILib.mrml import analysis_to_nodes, ct_from_node
        from LiverXAILib.pipeline import analyze

        analysis = analyze(
            ct_from_node(volumeNode, force=force),
            loaded,
            targets=targets,
            method=method,
            layer=layer,
            check=check,
            device=device,
            progress=progress,
            cancel=cancel,
        )
        for warning in analysis.provenance["warnings"]:
            logging.warning(warning)
        self.protectResults(volumeNode, loaded)
        nodes = analysis_to_nodes(analysis, slicer.mrmlScene, volumeNode, lesion_segments=lesionSegments)
        mark_frame(nodes.segmentation, volumeNode)
        self._refreshPanel()
        return nodes

    # Long: half of it is documentation for callers.
    def refine(
        self,
        volumeNode: slicer.vtkMRMLScalarVolumeNode,
        decisions: Sequence[Decision] = (),
        *,
        undo: int = 0,
        who: str = "reader",
        model: str = "default",
        device: str = "auto",
        force: bool = False,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
    ) -> slicer.vtkMRMLSegmentationNode:
        """Apply a reader's decisions to the CT's segmentation as it is now, and measure it again.

        >>> from LiverXAILib.reading import accept, add, reject   # doctest: +SKIP
        >>> logic.refine(volumeNode, [reject(3), accept(1)], who="Dr. A")   # doctest: +SKIP
        >>> logic.refine(volumeNode, undo=1)   # doctest: +SKIP

        :param decisions: see :mod:`LiverXAILib.reading`; if empty, the edited segmentation is only measured. Numbers
            are those of the table of measurements, also if the segmentation was edited since.
        :param undo: how many decisions to take back first, the last one first. An edit by hand that was not measured
            yet is the last decision.
        :return: the CT's segmentation node.
        :raises LiverXAILib.errors.UsageError: another model made the result, there are fewer decisions to take back, or
            a decision is about a lesion or candidate that does not exist. Nothing is changed.
        """
        loaded = self.loadModel(model)
        from LiverXAILib import mrml
        from LiverXAILib.inference.segmentation import labels_checksum
        from LiverXAILib.mrml.nodes import get_attribute
        from LiverXAILib.mrml.segmentations import LABELS_CHECKSUM
        from LiverXAILib.panel.results import table_rows
        from LiverXAILib.pipeline import analyze
        from LiverXAILib.reading import as_listed, listed_in_table, refine, resume
        from LiverXAILib.reading import undo as take_back

        volume = mrml.ct_from_node(volumeNode, force=force)
        mrml.place_results(slicer.mrmlScene, volumeNode)
        found = mrml.find_results(slicer.mrmlScene, volumeNode, "segmentation")
        if not found:
            raise UsageError(_("This CT has no LiverXAI segmentation yet: analyze it first."))
        if not made_by(found[0], loaded.spec):
            words = _("This result was made by another model than {name} {version}: give that one as `model`.")
            raise UsageError(words.format(name=loaded.spec.name, version=loaded.spec.version))
        labels = mrml.segmentation_from_node(found[0], volumeNode, loaded.spec).labels
        parameters = self.getParameterNode()
        own = analyze(
            volume,
            loaded,
            targets=(),
            height_cm=parameters.height or None,
            weight_kg=parameters.weight or None,
            device=device,
            sensitivity=mrml.sensitivity_of(found[0]),
            progress=progress,
            cancel=cancel,
        )
        earlier = mrml.decisions_of(found[0], volumeNode)
        edited = labels_checksum(labels) != found[0].GetAttribute(LABELS_CHECKSUM)
        current = resume(own, labels, earlier, edited=edited, who=who)
        for _number in range(undo):
            current = take_back(current)
        tables = mrml.find_results(slicer.mrmlScene, volumeNode, "measurements")
        if tables:  # otherwise the segmentation was never measured
            axes, moved = get_attribute(tables[0], "Axes") or {}, mrml.moved_since(found[0], volumeNode)
            decisions = as_listed(decisions, listed_in_table(table_rows(tables[0]), axes, moved), current)
        refined = refine(current, decisions, who=who) if decisions or not undo else current
        layers = mrml.segment_layers(refined.segmentation)
        node = mrml.update_refined(refined, slicer.mrmlScene, volumeNode, layers)
        mrml.record_measured(node)
        self._refreshPanel()
        return node

    def _refreshPanel(self) -> None:
        """Have an open panel show new measurements, whose nodes may be those of earlier ones."""
        self.getParameterNode().parameterNode.Modified()

    def protectResults(self, volumeNode: slicer.vtkMRMLScalarVolumeNode, model: Model) -> None:
        """Set results of a CT aside that a reader changed or another model made, so that they are not overwritten."""
        from LiverXAILib.mrml import place_results

        place_results(slicer.mrmlScene, volumeNode)
        mark_if_edited(slicer.mrmlScene, volumeNode)
        protect_results(slicer.mrmlScene, volumeNode, model.spec)

    def showExplanation(
        self,
        heatMapNode: slicer.vtkMRMLScalarVolumeNode,
        *,
        opacity: float = 0.5,
        threshold: float | None = None,
        jump: bool = True,
    ) -> None:
        """Show a heat map over its CT, with the outlines of the segmentation, in all slice views.

        >>> logic.showExplanation(nodes.heatmaps["tumor"], opacity=0.4, threshold=0.3)   # doctest: +SKIP

        :param opacity: of the heat map, 0 to 1.
        :param threshold: values below it are transparent; None: leave it unchanged.
        :param jump: move the slice views to the most influential position.
        """
        from LiverXAILib.mrml import find_results, hottest_point, input_of, show_overlay

        volumeNode = input_of(heatMapNode)
        segmentationNode = next(iter(find_results(slicer.mrmlScene, volumeNode, "segmentation")), None)
        show_overlay(slicer.mrmlScene, volumeNode, heatMapNode, segmentationNode, opacity=opacity, threshold=threshold)
        if jump:
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *hottest_point(heatMapNode))


class LiverXAIWidget(ScriptedLoadableModuleWidget):
    """The panel: from a CT to an explained segmentation with one click on Apply. A child process does the computing.

    The widget creates the parts of the panel (LiverXAILib.panel), connects the controls of LiverXAI.ui to them, and
    forwards events of the scene.
    """

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.logic: LiverXAILogic | None = None

    # --- setup and cleanup -----------------------------------------------------------------------------------------

    def setup(self) -> None:
        super().setup()
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/LiverXAI.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = LiverXAILogic()
        self.makeParts()
        self.connectControls()
        self.initializeParameterNode()

    def makeParts(self) -> None:
        self.changedMeanwhile = False  # whether the scene changed while results were being shown
        self.state = PanelState(self.ui, slicer.mrmlScene)
        self.status = StatusLine(self.state)
        self.models = ModelChoice(self.state)
        self.questions = Questions(self.state, self.models)
        self.choices = Choices(self.state, self.models, self.questions)
        self.heatMaps = HeatMaps(self.state)
        self.results = ResultsView(self.state, self.heatMaps)
        self.runner = TaskRunner(self.state, self.status, self.update)
        self.edits = Edits(self.state, self.onEdited, self.onTouched)
        self.outcomes = Outcomes(
            self.state, self.models, self.runner, self.edits, self.showHeatMap, self.heatMaps.overlay
        )
        self.outputs = Outputs(self.state)
        self.analyses = Analyses(self.state, self.models, self.runner, self.outcomes, self.outputs)
        self.fetching = ModelFetching(self.state, self.status, self.models, self.runner, self.showParameters)
        self.devices = Devices(self.state, self.status, self.runner)
        self.reader = Reader(
            self.state, self.status, self.questions, self.heatMaps, self.results, self.runner, self.analyses
        )
        self.calipers = Calipers(self.state, self.reader.on_measured, self.reader.can_measure_lesion)
        self.frames = Frames(self.state)
        self.sensitivity = Sensitivity(self.state, self.models, self.runner, self.analyses)
        self.views = Views(self.state, self.status, self.results)
        self.comparison = Comparison(self.state, self.models)
        self.guide = Guide(self.state, self.status, self.models, self.results, self.runner)
        self.watch = SceneWatch(
            self.state, self.logic.getParameterNode, self.onSceneClosing, self.onSceneChanged, self.onTransformed
        )
        self.models.fill()

    def connectControls(self) -> None:
        ui = self.ui
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
        for combo in (ui.modelSelector, ui.targetSelector, ui.methodSelector, ui.layerSelector, ui.deviceSelector):
            combo.connect("currentIndexChanged(int)", self.onChoice)
        for box in (ui.checkCheckBox, ui.lesionSegmentsCheckBox, ui.forceCheckBox, ui.autoMeasureCheckBox):
            box.connect("toggled(bool)", self.onChoice)
        for box in (ui.heightBox, ui.weightBox):
            box.connect("valueChanged(double)", self.onChoice)
        ui.modelFolder.connect("currentPathChanged(QString)", self.onChoice)
        ui.wheelFolder.connect("currentPathChanged(QString)", self.onChoice)
        ui.outputList.connect("itemChanged(QListWidgetItem*)", self.outputs.on_changed)
        ui.heatMapSelector.connect("currentIndexChanged(int)", self.heatMaps.on_chosen)
        ui.opacitySlider.connect("valueChanged(double)", self.heatMaps.on_opacity)
        ui.thresholdSlider.connect("valueChanged(double)", self.heatMaps.on_threshold)
        ui.colorSelector.connect("currentIndexChanged(int)", self.heatMaps.on_colors)
        ui.plotButton.connect("clicked(bool)", self.heatMaps.on_plot)
        ui.applyButton.connect("clicked(bool)", self.onApply)
        ui.downloadButton.connect("clicked(bool)", self.fetching.on_fetch)
        ui.detailsButton.connect("clicked(bool)", self.onCopyDetails)
        ui.explainLesionButton.connect("clicked(bool)", self.onExplainLesion)
        ui.explainButton.connect("clicked(bool)", self.onExplain)
        ui.withoutButton.connect("toggled(bool)", self.results.on_without)
        ui.show3DButton.connect("toggled(bool)", self.results.on_show_3d)
        ui.saveButton.connect("clicked(bool)", self.onSave)
        ui.comparisonSelector.connect("currentIndexChanged(int)", self.comparison.on_chosen)
        ui.comparisonTable.connect("cellClicked(int,int)", self.comparison.on_row)
        ui.sideBySideButton.connect("toggled(bool)", self.comparison.on_side_by_side)
        ui.compareButton.connect("clicked(bool)", self.onCompare)
        ui.measureButton.connect("clicked(bool)", self.reader.on_measure)
        ui.acceptButton.connect("clicked(bool)", self.reader.on_accept)
        ui.rejectButton.connect("clicked(bool)", self.reader.on_reject)
        ui.undoButton.connect("clicked(bool)", self.reader.on_undo)
        ui.mergeButton.connect("clicked(bool)", self.reader.on_merge)
        ui.placeButton.connect("clicked(bool)", self.reader.on_place)
        ui.includeButton.connect("clicked(bool)", self.reader.on_include)
        ui.excludeButton.connect("clicked(bool)", self.reader.on_exclude)
        ui.splitButton.connect("clicked(bool)", self.reader.on_split)
        ui.targetsButton.connect("clicked(bool)", self.reader.on_targets)
        ui.sensitivitySlider.connect("valueChanged(int)", self.sensitivity.on_moved)
        ui.windowSelector.connect("currentIndexChanged(int)", self.views.on_window)
        ui.tableButton.connect("clicked(bool)", self.views.on_table)
        ui.editButton.connect("clicked(bool)", self.views.on_edit)
        ui.addButton.connect("clicked(bool)", self.reader.on_add)
        ui.resultSelector.connect("currentIndexChanged(int)", self.onResultChosen)
        ui.lesionTable.connect("itemSelectionChanged()", self.onLesionSelected)
        ui.lesionTable.connect("cellClicked(int,int)", self.results.on_lesion_clicked)
        ui.advancedButton.connect("contentsCollapsed(bool)", self.devices.on_advanced)

    def enter(self) -> None:
        """Called when Slicer shows the module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called when Slicer shows another module; a running analysis continues."""
        self.comparison.end_side_by_side()

    def cleanup(self) -> None:
        """Release everything; called when the module is unloaded or Slicer quits."""
        self.reader.close()
        self.sensitivity.close()
        self.calipers.hide()
        self.comparison.close()
        self.runner.close()
        self.watch.close()
        self.edits.forget()
        self.state.parameters = None  # after a reload the old widgets are still there, hidden

    def onReload(self) -> None:
        """Reload the parts of the panel too; for developers."""
        for name in [name for name in sys.modules if name.startswith("LiverXAILib.panel.")]:
            del sys.modules[name]
        super().onReload()

    def initializeParameterNode(self) -> None:
        """Adopt the choices saved in this scene."""
        self.watch.take_over(self.state.volume_node)

    def onSceneClosing(self) -> None:
        self.status.show()
        self.reader.close()
        self.sensitivity.close()
        self.calipers.forget()
        self.comparison.forget()
        self.runner.abort(_("Stopped, because the scene was closed."))
        self.outcomes.forget()

    # --- what is shown ---------------------------------------------------------------------------------------------

    def showParameters(self) -> None:
        """Show the parameter node and the results of the chosen CT."""
        self.choices.show()
        self.outputs.show()
        self.results.show()
        self.calipers.follow(self.results.selected_lesion)
        self.sensitivity.show()
        self.views.show()
        self.update()

    def onSceneChanged(self) -> None:
        """Update the panel after nodes or parameters changed, unless results are being shown step by step."""
        if self.runner.showing:
            self.changedMeanwhile = True
            return
        self.changedMeanwhile = False
        if self.frames.follow():
            self.heatMaps.show_latest()
            if not self.runner.busy:
                self.status.show()
        self.showParameters()

    def onTransformed(self) -> None:
        if self.state.parameters is not None:
            self.calipers.follow(self.results.selected_lesion)
            self.comparison.follow_transform()
            self.update()

    def showHeatMap(self, heatMapNode: Any) -> Iterator[None]:
        """Show new results of the chosen CT in steps, with this one of its heat maps."""
        # All nodes of these results exist: any change from now on was not made by the panel.
        self.changedMeanwhile = False
        with self.state.writing() as parameters:
            parameters.heatMap = heatMapNode
        if self.state.result("segmentation") is not None:
            mark_frame(self.state.result("segmentation"), self.state.volume_node)
        self.models.show()
        yield
        yield from self.results.steps()
        yield
        self.calipers.follow(self.results.selected_lesion)
        self.sensitivity.show()
        yield

    def update(self) -> None:
        if self.state.parameters is not None:
            self.edits.watch()
            self.guide.update()
            self.reader.update()
            self.calipers.update()
            self.sensitivity.update()
            self.comparison.update()
            if self.changedMeanwhile and not self.runner.showing:
                self.watch.refresh()  # at once: results must not lie over another frame

    def onEdited(self) -> None:
        """Update the panel after the segmentation became different from what was measured, or the same again."""
        if not self.runner.busy:
            self.status.show()  # the last message is about the previous state
        self.heatMaps.show()
        self.update()

    def onTouched(self) -> None:
        if self.heatMaps.any_present:  # explained since the previous edit
            self.heatMaps.show()
        self.reader.on_touched()

    # --- what the user does ----------------------------------------------------------------------------------------

    def onInputChanged(self, node: Any) -> None:
        if self.state.listens:
            with self.state.writing() as parameters:
                parameters.inputVolume = node
            if not self.runner.busy:
                self.status.show()  # the last message is about another CT
            self.frames.follow()
            self.heatMaps.show_latest()
            self.results.show()
            self.calipers.follow(self.results.selected_lesion)
            self.views.show()
            self.update()

    def onChoice(self) -> None:
        if self.state.listens:
            self.choices.take()
            self.sensitivity.show()
            self.update()

    def onResultChosen(self) -> None:
        if self.state.listens:
            self.comparison.end_side_by_side()  # first, because the views then show the other result
            self.reader.on_result_chosen()
            self.calipers.follow(self.results.selected_lesion)
            self.update()

    def onLesionSelected(self) -> None:
        self.results.on_lesion_selected()
        if self.state.listens:
            self.calipers.follow(self.results.selected_lesion)
        self.update()

    def onApply(self) -> None:
        if self.runner.busy:
            self.runner.cancel()
        elif self.state.parameters.target in ("lesion", "crosshair") and self.state.result("segmentation") is not None:
            self.ask(self.analyses.explain)
        else:
            self.ask(self.analyses.analyze)

    def onExplain(self) -> None:
        self.ask(self.analyses.explain)

    def ask(self, question: Callable[[list[str]], None]) -> None:
        """Run `question` with the targets chosen at "Explain", if they are valid."""
        try:
            asked = self.questions.asked(self.results.selected_lesion)
        except LiverXAIError as error:
            self.status.show(str(error))
        else:
            question(asked)

    def onExplainLesion(self) -> None:
        self.analyses.explain([f"lesion:{self.results.selected_lesion}"])

    def onSave(self) -> None:
        folder = self.askFolder()
        if folder:
            self.analyses.save(folder)

    def onCompare(self) -> None:
        prior = self.askFolder(_("Folder of the earlier result"))
        folder = self.askFolder(_("Folder for the comparison")) if prior else ""
        if folder:
            self.analyses.compare(prior, folder)

    def askFolder(self, title: str = "") -> str:
        """Ask the user for a folder; return "" if none was chosen."""
        import qt

        return qt.QFileDialog.getExistingDirectory(self.parent, title or _("Folder for report and files"))

    def onCopyDetails(self) -> None:
        spec, parameters = self.models.spec(), self.state.parameters
        self.status.copy_details(
            [
                f"model {spec.name} {spec.version}" if spec else "no model",
                f"device {parameters.device}, method {parameters.method}, target {parameters.target}",
                f"worker log {self.runner.client.log}",
            ]
        )


class LiverXAITest(ScriptedLoadableModuleTest):
    """The self-test: runs in Slicer (Reload & Test, or ``slicer.selfTests["LiverXAI"]()``) and in the test host."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for test in (self.test_results_lie_on_the_ct, self.test_a_phantom_is_analyzed):
            self.setUp()
            try:
                test()
            except unittest.SkipTest as reason:
                self.delayDisplay(f"Skipped: {reason}")

    def test_results_lie_on_the_ct(self) -> None:
        """Test the bridge to the scene without a network: an oblique, left-handed volume and labels on it."""
        self.delayDisplay("Nodes and back")
        from LiverXAILib.inference import Segmentation
        from LiverXAILib.models import LIVER, TUMOR
        from LiverXAILib.mrml import segmentation_to_node, volume_from_node, volume_to_node
        from LiverXAILib.volumes.volume import Volume

        matrix = np.array([[0.6, 0.8, 0, 10], [0.8, -0.6, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
        labels = np.zeros((8, 9, 10), np.uint8)
        labels[2:6, 2:7, 2:8] = 1
        labels[3, 3, 3:5] = 2
        volume = Volume(np.arange(720, dtype=np.int16).reshape(8, 9, 10), matrix)
        volumeNode = volume_to_node(volume, slicer.mrmlScene, "CT")
        back = volume_from_node(volumeNode)
        np.testing.assert_array_equal(back.array, volume.array)
        np.testing.assert_allclose(back.ijk_to_lps, matrix, atol=1e-9)
        segmentation = Segmentation(Volume(labels, matrix), (LIVER, TUMOR))
        segmentationNode = segmentation_to_node(segmentation, slicer.mrmlScene, volumeNode)
        for segment, values in (("liver", (1, 2)), ("tumor", (2,))):
            found = slicer.util.arrayFromSegmentBinaryLabelmap(segmentationNode, segment, volumeNode)
            np.testing.assert_array_equal(found > 0, np.isin(labels, values))

    def test_a_phantom_is_analyzed(self) -> None:
        """Test the whole analysis with the bundled model: labels, heat map, table, overlay."""
        try:
            require_packages()
        except LiverXAIError as error:
            self.skipTest(str(error))
        self.delayDisplay("Analyzing a synthetic patient")
        volumeNode, truthNode = make_phantom(spacing_mm=(3.0, 3.0, 5.0))
        truth = slicer.util.arrayFromSegmentBinaryLabelmap(truthNode, "liver", volumeNode) > 0
        slicer.mrmlScene.RemoveNode(truthNode)
        logic = LiverXAILogic()
        nodes = logic.analyze(volumeNode, ["liver"])
        found = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", volumeNode) > 0
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
        heat = slicer.util.arrayFromVolume(nodes.heatmaps["liver"])
        assert heat.shape == found.shape
        np.testing.assert_allclose(heat.max(), 1.0, rtol=1e-5)
        assert nodes.table.GetTable().GetNumberOfRows() > 0
        logic.showExplanation(nodes.heatmaps["liver"])
        self.delayDisplay("Test passed")
