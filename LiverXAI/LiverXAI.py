# SPDX-License-Identifier: Apache-2.0
"""The Slicer module LiverXAI: liver and liver tumor segmentation in CT with explanations. For research use only.

What it computes lives in the package LiverXAILib; here is what Slicer needs to show it. Loading this file imports
neither torch nor Qt, and installs nothing.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
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
from slicer.util import VTKObservationMixin

if find_spec("LiverXAILib") is None:
    # An installed extension has the library beside this file; a source checkout has it beside this folder.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from LiverXAILib import __version__
from LiverXAILib.errors import Cancelled, LiverXAIError
from LiverXAILib.models import ModelSpec, StageSpec, registry
from LiverXAILib.progress import CancelToken
from LiverXAILib.worker import WorkerClient

if TYPE_CHECKING:
    from LiverXAILib.models import Model
    from LiverXAILib.mrml import AnalysisNodes

#: Packages that Slicer does not bring and that segmenting needs; torch comes from the extension "PyTorch".
REQUIRED_PACKAGES = ("torch", "safetensors", "requests", "platformdirs")

Progress = Callable[[str, float], None]
#: Work in pieces for the event loop: after each yield the application lives on. A function that is yielded runs in a
#: thread, where it may touch neither Qt nor MRML, and the yield returns what it returned.
Steps = Generator[Callable[[], Any] | None, Any, None]


class LiverXAI(ScriptedLoadableModule):
    """What Slicer shows about the module before it is opened."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = _("Liver XAI")
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
            "LiverXAI stands on 3D Slicer, PyTorch and SimpleITK. The explanations follow Grad-CAM (Selvaraju et al., "
            "ICCV 2017) and Seg-Grad-CAM (Vinogradova et al., AAAI 2020). If you use it in a publication, please cite "
            "it as its file CITATION.cff says."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Offer data to try the module on: a portal-venous CT from Slicer's own collection, and a synthetic patient."""
    import SampleData

    checksum = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"
    icons = Path(__file__).parent / "Resources" / "Icons"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="LiverXAI",
        sampleName="CTLiver",
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{checksum}",
        fileNames="CTLiver.nrrd",
        nodeNames="CTLiver",
        checksums=f"SHA256:{checksum}",
        thumbnailFileName=str(icons / "LiverXAI.png"),
    )
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="LiverXAI",
        sampleName="LiverXAIPhantom",
        customDownloader=makePhantom,
        thumbnailFileName=str(icons / "LiverXAIPhantom.png"),
    )


def makePhantom(source: Any = None, seed: int = 1, spacingMm: Sequence[float] = (1.5, 1.5, 3.0)) -> list[Any]:
    """Make a synthetic abdominal CT, and the segmentation of its true liver and tumors, in the scene.

    :param source: what Slicer's module SampleData passes; not needed.
    :param seed: another number, another patient.
    :return: the volume node and the segmentation node.
    """
    requirePackages(("torch",))
    from LiverXAILib.inference import Segmentation
    from LiverXAILib.models import LIVER, TUMOR
    from LiverXAILib.mrml import segmentation_to_node, volume_to_node
    from LiverXAILib.phantoms import make_phantom

    phantom = make_phantom(seed, spacing_mm=tuple(spacingMm))
    volumeNode = volume_to_node(phantom.ct, slicer.mrmlScene, "LiverXAIPhantom")
    truth = Segmentation(phantom.truth, (LIVER, TUMOR), provenance={"source": "phantom", "seed": seed})
    segmentationNode = segmentation_to_node(truth, slicer.mrmlScene, volumeNode)
    segmentationNode.SetName("LiverXAIPhantom truth")
    segmentationNode.SetAttribute("LiverXAI.Result", None)  # no result: an analysis must not replace it
    segmentationNode.GetDisplayNode().SetVisibility(False)
    return [volumeNode, segmentationNode]


def requirePackages(names: Sequence[str] = REQUIRED_PACKAGES) -> None:
    """Raise an error that says what to install if a package is missing; installs nothing."""
    missing = [name for name in names if find_spec(name) is None]
    if "torch" in missing:
        raise LiverXAIError(
            _("PyTorch is not installed in Slicer. Install the extension 'PyTorch' and, in its module, PyTorch itself.")
        )
    if missing:
        raise LiverXAIError(
            _(
                "Python packages are missing in Slicer: {names}. Install them with slicer.util.pip_install({names!r})."
            ).format(names=" ".join(missing))
        )


def installPackages(names: Sequence[str], wheelFolder: str = "") -> None:
    """Install Python packages into Slicer, without a question: ask the user first.

    torch comes through the extension "PyTorch". Slicer's own numpy and SimpleITK are pinned to the versions they have.

    :param wheelFolder: a folder with wheels to install from, for computers without internet; "": the internet.
    :raises LiverXAILib.errors.LiverXAIError: with what failed and what to try.
    """
    wanted = list(names)
    if "torch" in wanted and not wheelFolder:
        try:
            import PyTorchUtils
        except ImportError as error:
            raise LiverXAIError(
                _("PyTorch comes with Slicer's extension 'PyTorch'. Install it in the Extensions Manager, restart.")
            ) from error
        wanted.remove("torch")
        try:
            torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(torchVersionRequirement=">=2.6")
        except Exception as error:  # pip's, light-the-torch's or that of the first import
            raise LiverXAIError(
                _(
                    "PyTorch could not be installed ({error}). Slicer's Python console shows why. Is there a proxy or "
                    "a firewall? Try the module 'PyTorch Utils', or choose a folder with wheels under Advanced > "
                    "Packages."
                ).format(error=error)
            ) from error
        if torch is None:
            raise LiverXAIError(_("PyTorch was not installed. Try again, or install it in the module 'PyTorch Utils'."))
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        pins = [f"{name}=={metadata.version(name)}\n" for name in ("numpy", "SimpleITK") if find_spec(name)]
        constraints.write_text("".join(pins), encoding="utf-8")
        try:
            if wheelFolder:
                slicer.util.pip_install(
                    ["--no-index", "--find-links", wheelFolder, "--constraint", str(constraints), *wanted]
                )
            elif find_spec("slicer.packaging"):
                importlib.import_module("slicer.packaging").pip_ensure(
                    wanted, constraints=constraints, prompt_install=False, requester="LiverXAI", skip_in_testing=False
                )
            else:
                slicer.util.pip_install(["--constraint", str(constraints), *wanted])
        except (CalledProcessError, RuntimeError) as error:
            raise LiverXAIError(
                _(
                    "{names} could not be installed ({error}). Slicer's Python console shows why. Is there a proxy or "
                    "a firewall? Without internet, put wheels into a folder and choose it under Advanced > Packages."
                ).format(names=", ".join(wanted), error=error)
            ) from error
    importlib.invalidate_caches()


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
    force: bool = False
    wheelFolder: str = ""
    opacity: float = 0.5
    threshold: float = 0.1
    colors: str = ""


class LiverXAILogic(ScriptedLoadableModuleLogic):
    """Segment, explain and analyze from Slicer's Python console or a script; never shows a dialog.

    >>> from LiverXAI import LiverXAILogic
    >>> logic = LiverXAILogic()
    >>> nodes = logic.analyze(slicer.util.getNode("CTLiver"))   # doctest: +SKIP
    >>> logic.showExplanation(nodes.heatmaps["tumor"])          # doctest: +SKIP

    Each method puts its results beside the CT in the scene; run again, it updates them in place. Errors are
    :class:`LiverXAILib.errors.LiverXAIError` with a sentence that says what is wrong and what to do.

    Common arguments:

    * `model`: a registered name or the path of a model's folder;
    * `device`: "auto", "cpu", "cuda", "cuda:N" or "mps";
    * `force`: accept a volume whose intensities do not look like Hounsfield units;
    * `progress`: called with what is being done, in words, and how much of it is done, from 0 to 1;
    * `cancel`: a :class:`LiverXAILib.progress.CancelToken` that is asked between two windows of the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self._models: dict[str, Model] = {}

    def getParameterNode(self) -> LiverXAIParameters:
        """What the user chose in the panel; kept in the scene."""
        return LiverXAIParameters(super().getParameterNode())

    def loadModel(self, model: str = "default") -> Model:
        """The model called `model`, or in the folder `model`; it stays loaded for the next call."""
        requirePackages()
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
        return segmentation_to_node(segmentation, slicer.mrmlScene, volumeNode, lesion_segments=lesionSegments)

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
        :param layer: stage of the network to explain; None: the model's default.
        :param check: also measure how faithful the heat map is; takes several times longer.
        :return: the heat map's volume node.
        """
        loaded = self.loadModel(model)
        from LiverXAILib.explain import explain_all
        from LiverXAILib.mrml import ct_from_node, explanation_to_node, segmentation_from_node

        volume = ct_from_node(volumeNode, force=force)
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

        :param targets: what to explain; a target that was not found is passed over with a warning in the log.
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
        return analysis_to_nodes(analysis, slicer.mrmlScene, volumeNode, lesion_segments=lesionSegments)

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
        :param threshold: heat below it is transparent; None: as it is.
        :param jump: move the slice views to the most influential place.
        """
        from LiverXAILib.mrml import find_results, hottest_point, input_of, show_overlay

        volumeNode = input_of(heatMapNode)
        segmentationNode = next(iter(find_results(slicer.mrmlScene, volumeNode, "segmentation")), None)
        show_overlay(slicer.mrmlScene, volumeNode, heatMapNode, segmentationNode, opacity=opacity, threshold=threshold)
        if jump:
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *hottest_point(heatMapNode))


#: Methods of explanation with a title and one line about each; names are those of LiverXAILib.explain.METHODS.
METHODS = {
    "seg-grad-cam": (
        "Seg-Grad-CAM",
        _("Features that matter for the answer, near it. Smooth, fast, not exact about the place."),
    ),
    "seg-grad-cam++": ("Seg-Grad-CAM++", _("As Seg-Grad-CAM, counting only what speaks for the answer.")),
    "hires-cam": ("HiResCAM", _("What each place contributed to the answer; grainy.")),
    "seg-xres-cam": (
        "Seg-XRes-CAM",
        _("Between Seg-Grad-CAM and HiResCAM: contributions averaged over small blocks."),
    ),
    "layer-cam": ("LayerCAM", _("Places where more of a feature would have strengthened the answer.")),
    "integrated-gradients": (
        _("Integrated gradients"),
        _("Voxels whose difference from plain liver made the answer. Slow; needs no layer."),
    ),
    "integrated-gradients-air": (
        _("Integrated gradients from air"),
        _("Voxels whose difference from air made the answer. Slow; needs no layer."),
    ),
    "occlusion": (_("Occlusion"), _("How much the answer suffers when a place is blurred away. Slow; needs no layer.")),
}
#: What the parameter `model` is when `modelFolder` counts: a folder, or a zip file that is to be imported.
FROM_FOLDER, FROM_FILE = "", "*.zip"
#: Colors of heat maps: what the user reads, and the name of the color node.
COLORS = {"LiverXAI heat map": _("Blue to red"), "Rainbow": _("Rainbow"), "Warm1": _("Warm"), "Grey": _("Gray")}


class LiverXAIWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: from a CT to an explained segmentation with one Apply. The engine runs in a child process.

    A timer asks the worker for news and shows results one node at a time; voxels are copied by a thread, into images
    that no node has yet. So Slicer stays responsive.
    """

    POLL_MS = 20

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: LiverXAILogic | None = None
        self._parameters: LiverXAIParameters | None = None
        self._filling = False
        self._task = ""
        self._taskVolume: Any = None
        self._taskStart = 0.0
        self._taskVoxels: Any = None
        self._steps: Steps | None = None
        self._work: Future[Any] | None = None
        self._details = ""
        self._notes: list[str] = []
        self._explained: dict[str, tuple[str, str]] = {}
        self._lesions: list[dict[str, str]] = []
        self._specs: dict[str, ModelSpec] = {}

    # --- life ------------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        super().setup()
        import ctk  # only a panel needs Qt
        import qt

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/LiverXAI.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.qt = qt
        self.logic = LiverXAILogic()
        self._registry = registry()
        # Slicer's own interpreter for child processes; elsewhere, this one.
        self.client = WorkerClient(
            python=shutil.which("PythonSlicer"), log=Path(slicer.app.temporaryPath) / "LiverXAI-worker.log"
        )
        self._thread = ThreadPoolExecutor(1, "LiverXAI")
        self.timer = qt.QTimer()
        self.timer.interval = self.POLL_MS
        self.timer.connect("timeout()", self.onTimer)
        self.ui.wheelFolder.filters = ctk.ctkPathLineEdit.Dirs
        self._pathFilters = {FROM_FOLDER: ctk.ctkPathLineEdit.Dirs, FROM_FILE: ctk.ctkPathLineEdit.Files}
        self._fillChoices()
        self._connectWidgets()
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneChanged)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneChanged)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.initializeParameterNode()

    def enter(self) -> None:
        """Slicer shows the module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Slicer shows another module; a running analysis goes on."""

    def cleanup(self) -> None:
        """The module is unloaded or Slicer quits: nothing of it may stay behind."""
        self._forgetTask()
        self._parameters = None  # after a reload the old widgets are still there, hidden
        self.timer.stop()
        self.client.close()
        self._thread.shutdown(cancel_futures=True)
        self.removeObservers()

    def initializeParameterNode(self) -> None:
        """Take over what was chosen in this scene, at first use or when the scene was loaded."""
        self._parameters = self.logic.getParameterNode()
        if self._parameters.inputVolume is None:
            for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
                if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not _isResult(node):
                    self._parameters.inputVolume = node
                    break
        self._showParameters()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        self._say()
        self._forgetTask()
        self._explained.clear()
        self._parameters = None

    def onSceneChanged(self, caller: Any, event: Any) -> None:
        self.initializeParameterNode()

    def onNodeRemoved(self, caller: Any, event: Any) -> None:
        if (
            self._parameters is not None
            and not slicer.mrmlScene.IsClosing()
            and not slicer.mrmlScene.IsBatchProcessing()
        ):
            self._showResults()
            self._update()

    # --- what can be chosen ----------------------------------------------------------------------------------------

    def _fillChoices(self) -> None:
        ui = self.ui
        self._fillModels()
        for data, text in (
            ("both", _("Liver and all tumors")),
            ("liver", _("Liver")),
            ("tumor", _("All tumors")),
            ("lesion", _("The lesion chosen in the table")),
            ("crosshair", _("The position of the crosshair")),
            ("versus", _("Why tumor, not liver")),
            ("nothing", _("Nothing, only segment")),
        ):
            ui.targetSelector.addItem(text, data)
        for name, (title, _hint) in METHODS.items():
            ui.methodSelector.addItem(title, name)
        for name, text in (("auto", _("Automatic")), ("cpu", _("CPU"))):
            ui.deviceSelector.addItem(text, name)
        for name, text in COLORS.items():
            ui.colorSelector.addItem(text, name)
        ui.lesionTable.setColumnCount(5)
        ui.lesionTable.setHorizontalHeaderLabels(
            [_("No."), _("Volume\n[ml]"), _("Diameter\n[mm]"), _("Mean\nprobability"), _("Heat map\nfaithful")]
        )
        ui.lesionTable.verticalHeader().hide()
        header = ui.lesionTable.horizontalHeader()
        header.setSectionResizeMode(self.qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)
        header.highlightSections = False

    def _fillModels(self) -> None:
        """Named models, models of the user's own, and ways to bring one."""
        selector, self._filling = self.ui.modelSelector, True
        selector.clear()
        for name, entry in self._registry.items():
            selector.addItem(entry.description().title, name)
        for name in _ownModels():
            selector.addItem(name, name)
        selector.addItem(_("From a folder…"), FROM_FOLDER)
        selector.addItem(_("From a zip file…"), FROM_FILE)
        self._filling = False

    def _connectWidgets(self) -> None:
        ui = self.ui
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
        for combo in (ui.modelSelector, ui.targetSelector, ui.methodSelector, ui.layerSelector, ui.deviceSelector):
            combo.connect("currentIndexChanged(int)", self.onChoice)
        for box in (ui.checkCheckBox, ui.lesionSegmentsCheckBox, ui.forceCheckBox):
            box.connect("toggled(bool)", self.onChoice)
        ui.modelFolder.connect("currentPathChanged(QString)", self.onChoice)
        ui.wheelFolder.connect("currentPathChanged(QString)", self.onChoice)
        ui.heatMapSelector.connect("currentIndexChanged(int)", self.onHeatMapChosen)
        ui.opacitySlider.connect("valueChanged(double)", self.onLook)
        ui.thresholdSlider.connect("valueChanged(double)", self.onLook)
        ui.colorSelector.connect("currentIndexChanged(int)", self.onLook)
        ui.applyButton.connect("clicked(bool)", self.onApply)
        ui.downloadButton.connect("clicked(bool)", self.onDownload)
        ui.detailsButton.connect("clicked(bool)", self.onCopyDetails)
        ui.explainLesionButton.connect("clicked(bool)", self.onExplainLesion)
        ui.explainButton.connect("clicked(bool)", self.onExplain)
        ui.show3DButton.connect("toggled(bool)", self.onShow3D)
        ui.plotButton.connect("clicked(bool)", self.onPlot)
        ui.saveButton.connect("clicked(bool)", self.onSave)
        ui.lesionTable.connect("itemSelectionChanged()", self.onLesionSelected)
        ui.lesionTable.connect("cellClicked(int,int)", self.onLesionClicked)
        ui.advancedButton.connect("contentsCollapsed(bool)", self.onAdvanced)

    def _showParameters(self) -> None:
        """From the parameter node to the widgets."""
        parameters, ui = self._parameters, self.ui
        self._filling = True
        ui.inputSelector.setCurrentNode(parameters.inputVolume)
        parameters.target = parameters.target if ui.targetSelector.findData(parameters.target) >= 0 else "both"
        parameters.method = parameters.method if parameters.method in METHODS else "hires-cam"
        for combo, value in ((ui.modelSelector, parameters.model), (ui.deviceSelector, parameters.device)):
            if combo.findData(value) < 0:  # a scene from another computer
                combo.addItem(value, value)
        for combo, value in (
            (ui.modelSelector, parameters.model),
            (ui.deviceSelector, parameters.device),
            (ui.targetSelector, parameters.target),
            (ui.methodSelector, parameters.method),
            (ui.colorSelector, parameters.colors),
        ):
            combo.setCurrentIndex(max(0, combo.findData(value)))
        ui.modelFolder.currentPath = parameters.modelFolder
        ui.wheelFolder.currentPath = parameters.wheelFolder
        ui.checkCheckBox.checked = parameters.check
        ui.lesionSegmentsCheckBox.checked = parameters.lesionSegments
        ui.forceCheckBox.checked = parameters.force
        ui.opacitySlider.value = parameters.opacity
        ui.thresholdSlider.value = parameters.threshold
        self._filling = False
        self._showModel()
        self._showResults()
        self._update()

    def onInputChanged(self, node: Any) -> None:
        if self._filling or self._parameters is None:
            return
        self._parameters.inputVolume = node
        if not self._task:
            self._say()  # what was said is about another CT
        self._showResults()
        self._update()

    def onChoice(self) -> None:
        """From the widgets to the parameter node."""
        if self._filling or self._parameters is None:
            return
        parameters, ui = self._parameters, self.ui
        parameters.model = ui.modelSelector.currentData
        parameters.modelFolder = ui.modelFolder.currentPath
        parameters.target = ui.targetSelector.currentData
        parameters.method = ui.methodSelector.currentData
        parameters.layer = ui.layerSelector.currentData or ""
        parameters.device = ui.deviceSelector.currentData
        parameters.wheelFolder = ui.wheelFolder.currentPath
        parameters.check = ui.checkCheckBox.checked
        parameters.lesionSegments = ui.lesionSegmentsCheckBox.checked
        parameters.force = ui.forceCheckBox.checked
        self._showModel()
        self._update()

    # --- the model's card ------------------------------------------------------------------------------------------

    def _modelName(self) -> str:
        brought = self._parameters.model in (FROM_FOLDER, FROM_FILE)
        return self._parameters.modelFolder if brought else self._parameters.model

    def _entry(self) -> Any:
        """The registered model that is chosen, or None."""
        return self._registry.get(self._parameters.model)

    def _folder(self) -> Path | None:
        """The folder of the chosen model if it is the user's own; None if it is registered, or not there."""
        if self._entry() is not None or self._parameters.model == FROM_FILE:
            return None
        if self._parameters.model == FROM_FOLDER:
            folder = Path(self._parameters.modelFolder)
            return folder if self._parameters.modelFolder and folder.is_dir() else None
        from LiverXAILib.models.registry import imported_folder

        try:
            return imported_folder(self._parameters.model)
        except ImportError:  # without platformdirs nothing was imported yet
            return None

    def _spec(self) -> ModelSpec | None:
        """The card of the chosen model; None if it has none and was not loaded yet."""
        entry, folder = self._entry(), self._folder()
        try:
            if entry is not None and entry.card is not None:
                return entry.spec()
            if folder is not None and (folder / "card.json").is_file():
                return ModelSpec.from_json((folder / "card.json").read_text(encoding="utf-8"))
        except (LiverXAIError, OSError):
            logging.exception("The model's card cannot be read")
        return self._specs.get(self._modelName())

    def _modelReady(self) -> bool:
        """Whether the chosen model is on this computer."""
        entry = self._entry()
        if entry is None:
            return self._folder() is not None
        try:
            return entry.installed()
        except ImportError:  # without platformdirs nothing was downloaded yet
            return False

    def _canBeFetched(self) -> bool:
        """Whether the model can be downloaded, or imported from a zip file."""
        if self._parameters.model == FROM_FILE:
            return Path(self._parameters.modelFolder).is_file()
        return self._entry() is not None and not self._modelReady()

    def _decidingStages(self, spec: ModelSpec | None) -> list[StageSpec]:
        """The stages of the model that what is to be explained is asked of, each once."""
        if spec is None:
            return []
        labels = [label.name for label in spec.labels]
        asked = {"both": ["liver", "tumor"], "liver": ["liver"], "crosshair": labels, "nothing": labels}
        names = [name for name in asked.get(self._parameters.target, ["tumor"]) if name in labels]
        stages = {stage.name: stage for stage in map(spec.stage_of, names)}
        return list(stages.values())

    def _layers(self, spec: ModelSpec | None) -> list[str]:
        """The layers that can be explained: those that every deciding stage has."""
        stages = [[layer.name for layer in stage.layers] for stage in self._decidingStages(spec)]
        return [name for name in stages[0] if all(name in other for other in stages)] if stages else []

    def _showModel(self) -> None:
        ui, entry, spec = self.ui, self._entry(), self._spec()
        brought = self._parameters.model in self._pathFilters
        ui.modelFolderLabel.visible = ui.modelFolder.visible = brought
        if brought:
            ui.modelFolder.filters = self._pathFilters[self._parameters.model]
            zipped = self._parameters.model == FROM_FILE
            ui.modelFolderLabel.text = _("File:") if zipped else _("Folder:")
        ui.downloadButton.text = _("Import") if self._parameters.model == FROM_FILE else _("Download")
        about = entry.description() if entry is not None else None
        if about is None and spec is None:
            ui.modelCard.text = _("A model of your own: of LiverXAI (with card.json), nnU-Net v2, or a MONAI bundle.")
            ui.modelCard.toolTip = ""
        else:
            source = about or spec
            does = about.task if about is not None else spec.description
            license = about.licenses.weights if about is not None else spec.license
            trained, quality = _words(source.training.get("data", "")), _words(source.quality)
            ui.modelCard.text = "\n".join(
                [
                    does.rstrip(".") + ".",
                    _("Trained on: {data}").format(data=_shortened(trained, 100) or _("not stated")),
                    _("Quality: {quality}").format(quality=_shortened(quality, 100) or _("not stated")),
                    _("License: {license}").format(license=_shortened(license, 60)) + self._sizeWords(entry, spec),
                ]
            )
            ui.modelCard.toolTip = "\n".join([source.title, trained, quality, license, *source.limits, source.source])
        self._filling = True
        ui.layerSelector.clear()
        ui.layerSelector.addItem(_("The model's choice"), "")
        for layer in self._layers(spec):
            ui.layerSelector.addItem(layer, layer)
        ui.layerSelector.setCurrentIndex(max(0, ui.layerSelector.findData(self._parameters.layer)))
        self._filling = False
        ui.methodHint.text = METHODS[ui.methodSelector.currentData][1]
        ui.layerHint.text = self._layerWords(spec)

    def _sizeWords(self, entry: Any, spec: ModelSpec | None) -> str:
        """The size of the model's files, where it is known."""
        files = [file.size for file in (*entry.files.values(), entry.archive) if file] if entry is not None else []
        folder = entry.folder() if entry is not None and entry.bundled else self._folder()
        if folder is not None and spec is not None:
            paths = {folder / name for stage in spec.stages for name in stage.weights}
            files = [path.stat().st_size for path in paths if path.is_file()]
        return _(", {size:.1f} MB").format(size=sum(files) / 1e6) if files and None not in files else ""

    def _layerWords(self, spec: ModelSpec | None) -> str:
        """How coarse a heat map of the layer is."""
        wanted, lines = self._parameters.layer, []
        if wanted and wanted not in self._layers(spec):
            lines.append(_("{layer} does not decide this; the model's choice is taken.").format(layer=wanted))
            wanted = ""
        for stage in self._decidingStages(spec):
            for layer in stage.layers:
                if layer.name == (wanted or stage.default_layer):
                    words = _("{layer}: one value for {cell} voxels.")
                    lines.append(words.format(layer=layer.name, cell=" × ".join(map(str, layer.stride))))
        return "\n".join(lines)

    # --- what to do next -------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """What can be pressed, and one line that says what to do next."""
        if self._parameters is None:
            return
        ui, node, busy = self.ui, self._parameters.inputVolume, bool(self._task)
        ready = self._modelReady()
        ui.applyButton.text = _("Cancel") if busy else _("Apply")
        showing = self._steps is not None  # it takes a moment, and half of the results would be none
        ui.applyButton.enabled = not showing if busy else node is not None and not _isResult(node) and ready
        ui.downloadButton.visible = self._canBeFetched()
        ui.downloadButton.enabled = not busy
        ui.progressBar.visible = busy
        segmentation = self._result("segmentation")
        ui.explainButton.enabled = segmentation is not None and not busy and ui.targetSelector.currentData != "nothing"
        ui.explainLesionButton.enabled = segmentation is not None and not busy and self._selectedLesion() > 0
        ui.saveButton.enabled = segmentation is not None and not busy
        ui.detailsButton.visible = bool(self._details)
        if busy or self._details:
            return
        if self._notes:
            text = "\n".join(self._notes)
        elif node is None and slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0:
            text = _("Load a CT of the abdomen, or take CTLiver from the module Sample Data.")
        elif node is None:
            text = _("Choose a CT.")
        elif _isResult(node):
            text = _("This volume is a result of LiverXAI. Choose the CT.")
        elif not ready and self._entry() is not None:
            text = _("The model is not on this computer yet. Press Download.")
        elif self._parameters.model == FROM_FILE:
            text = _("Press Import.") if self._canBeFetched() else _("Choose the zip file of a model.")
        elif not ready and self._parameters.model:
            text = _("The model {name} is not on this computer. Choose another, or bring it in a zip file.").format(
                name=self._parameters.model
            )
        elif not ready:
            text = _("Choose the folder of a model.")
        else:
            text = _("Press Apply. For research use only.")
        ui.statusLabel.text = text

    def _say(self, *sentences: str) -> None:
        self._details, self._notes = "", [sentence for sentence in sentences if sentence]
        self.ui.statusLabel.text = "\n".join(self._notes)

    def _complain(self, error: BaseException, details: str = "") -> None:
        """Show an error in words; the details are for the button."""
        self._notes = []
        self._details = details or "".join(traceback.format_exception(error))
        known = isinstance(error, LiverXAIError)
        sentence = str(error) if known else _("Something unexpected went wrong: {error}.").format(error=error)
        self.ui.statusLabel.text = f"⚠ {sentence}"

    def onCopyDetails(self) -> None:
        """Copy what a bug report needs, without anything about the patient."""
        import platform

        spec = self._spec()
        lines = [
            f"LiverXAI {__version__}, Slicer {getattr(slicer.app, 'applicationVersion', '?')}",
            f"Python {platform.python_version()}, {platform.platform()}",
            *(f"{name} {metadata.version(name) if find_spec(name) else '-'}" for name in REQUIRED_PACKAGES),
            f"model {spec.name} {spec.version}" if spec else "no model",
            f"device {self._parameters.device}, method {self._parameters.method}, target {self._parameters.target}",
            f"worker log {self.client.log}",
            "",
            self._details,
        ]
        slicer.app.clipboard().setText("\n".join(lines))
        self.ui.detailsButton.text = _("Copied")

    # --- running ---------------------------------------------------------------------------------------------------

    def onApply(self) -> None:
        if self._task:
            self.client.cancel()
            self.ui.statusLabel.text = _("Cancelling…")
            self.ui.applyButton.enabled = False
            return
        target = self._parameters.target
        if target in ("lesion", "crosshair") and self._result("segmentation") is not None:
            self._explain(self._questions(target))
        else:
            self._start("analyze", lambda: self._askAnalysis(self._questions(target)))

    def onExplain(self) -> None:
        self._explain(self._questions(self._parameters.target))

    def onExplainLesion(self) -> None:
        self._explain([f"lesion:{self._selectedLesion()}"])

    def onDownload(self) -> None:
        if self._parameters.model == FROM_FILE:
            self._start("import", lambda: self.client.import_model(self._parameters.modelFolder))
            return
        terms = self._entry().description().licenses.terms
        if terms and not slicer.util.confirmOkCancelDisplay(
            _("The model's license asks you to accept:\n\n{terms}\n\nDo you?").format(terms=terms), "LiverXAI"
        ):
            self._say(_("The license was not accepted, so nothing was downloaded."))
            return
        self._start("download", lambda: self.client.download(self._parameters.model, accept_license=bool(terms)))

    def onSave(self) -> None:
        folder = self.askFolder()
        if folder:
            token = self._token(self._parameters.inputVolume)
            self._start("write", lambda: self.client.write(token, folder), (*REQUIRED_PACKAGES, "matplotlib", "jinja2"))

    def askFolder(self) -> str:
        """Ask the user for a folder; "" if there is none."""
        return self.qt.QFileDialog.getExistingDirectory(self.parent, _("Folder for report and files"))

    def onAdvanced(self, collapsed: bool) -> None:
        """Look which devices there are when somebody wants to know: it takes seconds."""
        if not collapsed and not self._task and not self.ui.deviceHint.text and find_spec("torch") is not None:
            notes = self._notes
            self._start("environment", self.client.environment, ())
            self._notes = notes

    def _questions(self, target: str) -> list[str]:
        """What is asked, as the library's targets."""
        if target == "lesion":
            return [f"lesion:{self._selectedLesion() or 1}"]
        if target == "crosshair":
            crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
            r, a, s = crosshair.GetCrosshairRAS()
            return [f"voxel:ras:{r:.3f},{a:.3f},{s:.3f}"]
        known = self._entry().description() if self._entry() is not None else self._spec()
        labels = [label.name for label in known.labels] if known is not None else ["liver", "tumor"]
        wanted = {"both": ["liver", "tumor"], "versus": ["tumor-vs-liver"], "nothing": []}.get(target, [target])
        return wanted if target != "both" else [name for name in wanted if name in labels]

    def _explain(self, questions: list[str]) -> None:
        self._start("explain", lambda: self._askExplanation(questions))

    def _start(self, task: str, ask: Callable[[], int], packages: Sequence[str] = REQUIRED_PACKAGES) -> None:
        """Begin a task, after installing what it needs if the user agrees."""
        self._say()
        try:
            if not self._ensurePackages(packages):
                self._say(_("Nothing was installed, so nothing was computed."))
                return
            self.ui.progressBar.value = 0
            self.ui.statusLabel.text = _("Starting…")
            self._taskVolume, self._taskStart = self._parameters.inputVolume, time.monotonic()
            self._taskVoxels = self._voxels(self._taskVolume)
            ask()
            self._task = task
            self.timer.start()
        except Exception as error:
            self._complain(error)
        finally:
            self._update()

    def _ensurePackages(self, names: Sequence[str]) -> bool:
        """Whether all packages are there; missing ones are installed if the user agrees."""
        missing = [name for name in names if find_spec(name) is None]
        if not missing:
            return True
        question = _("LiverXAI needs Python packages that are not in Slicer yet: {names}. Install them now?")
        if not slicer.util.confirmOkCancelDisplay(question.format(names=", ".join(missing)), "LiverXAI"):
            return False
        self.ui.statusLabel.text = _("Installing {names}. This can take minutes…").format(names=", ".join(missing))
        slicer.app.processEvents()
        installPackages(missing, self._parameters.wheelFolder)
        return True

    def _token(self, node: Any) -> str:
        """Names the voxels of a CT and where they lie."""
        from LiverXAILib.mrml import volume_token

        return f"{volume_token(node)} {self._parameters.force}"

    def _voxels(self, node: Any) -> Any:
        """Changes when the voxels of a CT do."""
        image = node.GetImageData() if node is not None else None
        return image.GetMTime() if image is not None else None

    def _askAnalysis(self, questions: list[str]) -> int:
        from LiverXAILib.mrml import volume_from_node

        parameters, node = self._parameters, self._parameters.inputVolume
        return self.client.analyze(
            volume_from_node(node, copy=False),
            self._token(node),
            model=self._modelName(),
            device=parameters.device,
            force=parameters.force,
            explain=questions,
            method=parameters.method,
            layer=parameters.layer if parameters.layer in self._layers(self._spec()) else None,
            check=parameters.check,
        )

    def _askExplanation(self, questions: list[str]) -> int:
        """The worker mostly holds the image and the labels already; what it lacks is sent along."""
        from LiverXAILib.mrml import labels_token, read_segments, volume_from_node

        parameters, node = self._parameters, self._parameters.inputVolume
        segmentationNode, token, spec = self._result("segmentation"), self._token(node), self._spec()
        state = labels_token(segmentationNode)
        made = self._explained.get(segmentationNode.GetID())
        labels = made[0] if made is not None and made[1] == state else state
        held = self.client.holds(token, labels)
        if spec is None and not held:
            raise LiverXAIError(_("This model has to be loaded first: press Apply."))
        segmentation = None if held else read_segments(segmentationNode, node, spec)
        volume = None if self.client.holds(token) else volume_from_node(node, copy=False)
        return self.client.explain(
            questions,
            token,
            volume=volume,
            labels=labels,
            segmentation=segmentation,
            method=parameters.method,
            layer=parameters.layer if parameters.layer in self._layers(spec) else None,
            check=parameters.check,
            model=self._modelName(),
            device=parameters.device,
            force=parameters.force,
        )

    def onTimer(self) -> None:
        """Hear the worker; or show one more result."""
        try:
            self._hear()
            if self._steps is not None and (self._work is None or self._work.done()):
                self._goOn(self._steps)
        except Exception as error:
            self._finish()
            self._complain(error)
            self._update()
        if not self._task:
            self.timer.stop()

    def _hear(self) -> None:
        for event in self.client.poll():
            if event.kind == "progress":
                self._showProgress(event)
            elif event.kind == "failed":
                self._fail(event)
            else:
                self._receive(event.result)

    def _goOn(self, steps: Steps) -> None:
        """One step further: what a thread has found goes in, what is next for a thread comes out."""
        done, self._work = self._work, None
        try:
            work = steps.send(done.result() if done is not None else None)
        except StopIteration:
            return
        self._work = self._thread.submit(work) if work is not None else None

    def _showProgress(self, event: Any) -> None:
        if self.ui.applyButton.enabled:  # else: being cancelled
            rest = _timeWords(event.remaining_s)
            self.ui.progressBar.value = round(1000 * event.fraction)
            self.ui.statusLabel.text = f"{event.stage}… {event.fraction:.0%}{rest}"

    def _fail(self, event: Any) -> None:
        self._task = ""
        if isinstance(event.error, Cancelled):
            self._say(_("Cancelled. Nothing was changed."))
        else:
            self._complain(event.error, event.details)
        self._update()

    def _receive(self, result: Any) -> None:
        """Turn a result into steps that each take little time."""
        task, node = self._task, self._taskVolume
        if task == "environment":
            self._showDevices(result)
            self._finish(*self._notes)
        elif task == "download":
            self._showModel()
            self._finish(_("The model is ready. Press Apply."))
        elif task == "import":
            self._fillModels()
            self._parameters.model = result["name"]
            self._showParameters()
            self._finish(_("The model is ready. Press Apply."))
        elif task == "write":
            self._finish(_("Saved in {folder}.").format(folder=Path(next(iter(result["files"].values()))).parent))
        elif task in ("analyze", "explain"):
            self.ui.statusLabel.text = _("Showing the results…")
            self._steps = self._show(result, node)
            self._update()

    def _show(self, result: Any, node: Any) -> Steps:
        """An analysis, or a list of explanations, as nodes: one after the other, while the application lives on."""
        from LiverXAILib import mrml

        scene, shown, peak = slicer.mrmlScene, None, None
        explanations = result if isinstance(result, list) else result.explanations
        if not self._isThere(node):
            return
        if isinstance(result, list):
            images = yield mrml.prepare_heatmaps(explanations)
            for explanation, image in zip(explanations, images, strict=True):
                if not self._isThere(node):
                    return
                shown = mrml.explanation_to_node(explanation, scene, node, image=image)
                yield None
        else:
            token, model = self._token(node), self._modelName()
            prepared = yield mrml.prepare_nodes(result, lesion_segments=self._parameters.lesionSegments)
            steps = mrml.node_steps(result, scene, node, prepared)
            while self._isThere(node):
                try:
                    next(steps)
                    yield None
                except StopIteration as end:
                    nodes = end.value
                    break
            else:
                return
            self._explained[nodes.segmentation.GetID()] = (token, mrml.labels_token(nodes.segmentation))
            self._specs[model] = result.model
            self._showModel()
            shown = next(reversed(nodes.heatmaps.values()), None)
        if shown is not None:
            peak = yield lambda: mrml.hottest_place(explanations[-1].heatmap)
        notes = [] if isinstance(result, list) else list(result.provenance["warnings"])
        notes += [warning for explanation in explanations for warning in explanation.warnings]
        if self._voxels(node) != self._taskVoxels:
            notes.insert(0, _("The CT was changed meanwhile; this is the result of what it was. Press Apply again."))
        if self._isThere(node) and self._parameters.inputVolume is node:
            self._parameters.heatMap = shown
            self._showResults()
            yield None
            self._showOverlay(peak)
            yield None
        seconds = time.monotonic() - self._taskStart
        self._finish(_("Done in {seconds:.0f} s. For research use only.").format(seconds=seconds), *notes)

    def _isThere(self, node: Any) -> bool:
        """Whether the CT of the running task is still in the scene; if not, the task ends."""
        if node is not None and slicer.mrmlScene.GetNodeByID(node.GetID()) is node:
            return True
        self._finish(_("The CT was removed meanwhile; its result was dropped."))
        return False

    def _finish(self, *sentences: str) -> None:
        self._task = ""
        self._steps = self._work = None
        self._say(*sentences)
        self._update()

    def _forgetTask(self) -> None:
        """Drop what is running; nothing of it will be shown."""
        if self._task:
            self.client.close()
            self._finish(_("Stopped, because the scene was closed."))

    def _showDevices(self, found: Mapping[str, Any]) -> None:
        ui, self._filling = self.ui, True
        for name, title in found["devices"].items():
            index = ui.deviceSelector.findData(name)
            if index < 0:
                ui.deviceSelector.addItem(title, name)
            else:
                ui.deviceSelector.setItemText(index, title)
        self._filling = False
        ui.deviceHint.text = _("PyTorch {version}; found: {devices}.").format(
            version=found["versions"]["torch"], devices="; ".join(found["devices"].values())
        )

    # --- results ---------------------------------------------------------------------------------------------------

    def _result(self, kind: str) -> Any:
        """The CT's result node of a kind, or None."""
        from LiverXAILib.mrml import find_results

        node = self._parameters.inputVolume if self._parameters is not None else None
        return next(iter(find_results(slicer.mrmlScene, node, kind)), None) if node is not None else None

    def _showResults(self) -> None:
        """The tables and the list of heat maps of the chosen CT."""
        from LiverXAILib.mrml import find_results

        ui, node = self.ui, self._parameters.inputVolume
        segmentation, table = self._result("segmentation"), self._result("measurements")
        heatMaps = find_results(slicer.mrmlScene, node, "heatmap") if node is not None else []
        ui.resultsButton.visible = ui.saveButton.visible = segmentation is not None
        ui.heatMapButton.visible = bool(heatMaps)
        ui.segmentsTable.setSegmentationNode(segmentation)
        ui.summaryLabel.text = _summary(table)
        self._filling = True
        display = segmentation.GetDisplayNode() if segmentation is not None else None
        surfaces = display is not None and segmentation.GetSegmentation().ContainsRepresentation(
            slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        )
        ui.show3DButton.checked = bool(surfaces and display.GetVisibility3D())
        ui.heatMapSelector.clear()
        for heatMap in heatMaps:
            question, method = heatMap.GetAttribute("LiverXAI.Question"), heatMap.GetAttribute("LiverXAI.Method")
            title = METHODS[method][0] if method in METHODS else method
            ui.heatMapSelector.addItem(f"{question} ({title})", heatMap.GetID())
        ui.heatMapSelector.addItem(_("None"), "")
        chosen = self._parameters.heatMap
        index = ui.heatMapSelector.findData(chosen.GetID()) if chosen is not None else -1
        ui.heatMapSelector.setCurrentIndex(index if index >= 0 else ui.heatMapSelector.count - 1)
        self._filling = False
        self._fillLesions(_rows(table), {heatMap.GetAttribute("LiverXAI.Target"): heatMap for heatMap in heatMaps})
        self._showFaithfulness()

    def _fillLesions(self, rows: list[dict[str, str]], heatMaps: Mapping[str, Any]) -> None:
        lesions = [row for row in rows if row["structure"] == "lesion"]
        table, self._filling = self.ui.lesionTable, True
        if lesions != self._lesions:
            table.clearSelection()
            table.setCurrentCell(-1, -1)
        table.setRowCount(len(lesions))
        self._lesions = lesions
        for index, row in enumerate(lesions):
            heatMap = heatMaps.get(f"lesion:{row['number']}")
            texts = [
                row["number"],
                _number(row["volume_ml"], 2),
                _number(row["axial_long_mm"], 1),
                _number(row["mean_probability"], 2),
                _faithfulnessWord(heatMap),
            ]
            for column, text in enumerate(texts):
                item = self.qt.QTableWidgetItem(text)
                item.setTextAlignment(self.qt.Qt.AlignCenter)
                table.setItem(index, column, item)
        table.visible = self.ui.explainLesionButton.visible = bool(lesions)
        if lesions:
            line = self.qt.QFontMetrics(table.font).lineSpacing()
            table.setFixedHeight(2 * line + 14 + min(len(lesions), 5) * table.rowHeight(0))  # two lines of titles
        self._filling = False

    def _selectedLesion(self) -> int:
        """The number of the lesion chosen in the table, or 0."""
        row = self.ui.lesionTable.currentRow()
        return int(self._lesions[row]["number"]) if 0 <= row < len(self._lesions) else 0

    def onLesionSelected(self) -> None:
        """A lesion was chosen, by mouse or by keys: all slice views go there; its own heat map is shown."""
        if self._filling or self._parameters is None:
            return
        self._jumpToLesion()
        for heatMap in self._heatMaps():
            if heatMap.GetAttribute("LiverXAI.Target") == f"lesion:{self._selectedLesion()}":
                self.ui.heatMapSelector.setCurrentIndex(self.ui.heatMapSelector.findData(heatMap.GetID()))
        self._update()

    def onLesionClicked(self, row: int, column: int) -> None:
        """Also when it is chosen already: the user has scrolled away and wants back."""
        self._jumpToLesion()

    def _jumpToLesion(self) -> None:
        row = self.ui.lesionTable.currentRow()
        if 0 <= row < len(self._lesions):
            left, posterior, superior = (float(self._lesions[row][f"centroid_{axis}_mm"]) for axis in "lps")
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, -left, -posterior, superior)

    def _heatMaps(self) -> list[Any]:
        from LiverXAILib.mrml import find_results

        return find_results(slicer.mrmlScene, self._parameters.inputVolume, "heatmap")

    def onHeatMapChosen(self) -> None:
        if self._filling or self._parameters is None:
            return
        identifier = self.ui.heatMapSelector.currentData
        self._parameters.heatMap = slicer.mrmlScene.GetNodeByID(identifier) if identifier else None
        self._showFaithfulness()
        self._showOverlay()

    def onLook(self) -> None:
        """Opacity, threshold or colors were changed: act at once."""
        if self._filling or self._parameters is None:
            return
        self._parameters.opacity = self.ui.opacitySlider.value
        self._parameters.threshold = self.ui.thresholdSlider.value
        self._parameters.colors = self.ui.colorSelector.currentData
        self._showOverlay()

    def _showOverlay(self, place: Sequence[float] | None = None) -> None:
        """Show the CT with what was chosen over it; with all slice views at `place` (RAS mm) if there is one."""
        from LiverXAILib.mrml import show_overlay

        parameters, heatMap = self._parameters, self._parameters.heatMap
        show_overlay(
            slicer.mrmlScene,
            parameters.inputVolume,
            heatMap,
            self._result("segmentation"),
            opacity=parameters.opacity,
            threshold=parameters.threshold,
        )
        if heatMap is not None:
            colors = slicer.mrmlScene.GetFirstNodeByName(parameters.colors or next(iter(COLORS)))
            if colors is not None:
                heatMap.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
        if place is not None:
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *place)

    def _showFaithfulness(self) -> None:
        heatMap = self._parameters.heatMap
        card = _faithfulness(heatMap)
        self.ui.plotButton.enabled = card is not None
        self.ui.faithfulnessLabel.text = (
            "" if heatMap is None else card["sentence"] if card else _("How faithful this map is was not checked.")
        )

    def onShow3D(self, shown: bool) -> None:
        from LiverXAILib.mrml import show_surfaces

        segmentation = self._result("segmentation")
        if segmentation is not None and not self._filling:
            show_surfaces(segmentation, shown)

    def onPlot(self) -> None:
        from LiverXAILib.mrml import curves_to_chart

        chart = curves_to_chart(self._parameters.heatMap, slicer.mrmlScene)
        if chart is not None:
            slicer.modules.plots.logic().ShowChartInLayout(chart)


def _ownModels() -> list[str]:
    """Names of models that the user has imported."""
    from LiverXAILib.models.registry import imported_models

    try:
        return imported_models()
    except ImportError:  # without platformdirs nothing was imported yet
        return []


def _isResult(node: Any) -> bool:
    return bool(node.GetAttribute("LiverXAI.Result"))


def _faithfulness(heatMap: Any) -> dict[str, Any] | None:
    text = heatMap.GetAttribute("LiverXAI.Faithfulness") if heatMap is not None else None
    return json.loads(text) if text else None


def _faithfulnessWord(heatMap: Any) -> str:
    if heatMap is None:
        return ""
    card = _faithfulness(heatMap)
    return _("not checked") if card is None else _("faithful") if card["passed"] else _("not faithful")


def _rows(tableNode: Any) -> list[dict[str, str]]:
    """The rows of the measurements, as text by column."""
    if tableNode is None:
        return []
    table = tableNode.GetTable()
    names = [table.GetColumnName(column) for column in range(table.GetNumberOfColumns())]
    return [
        {name: table.GetValue(row, column).ToString() for column, name in enumerate(names)}
        for row in range(table.GetNumberOfRows())
    ]


def _summary(tableNode: Any) -> str:
    """The lines about liver and tumor; lesions have their own table."""
    text = tableNode.GetAttribute("LiverXAI.Summary") if tableNode is not None else ""
    return "\n".join(" ".join(line.split()) for line in (text or "").splitlines() if not line.startswith(" "))


def _number(text: str, digits: int) -> str:
    return f"{float(text):.{digits}f}" if text else "–"


def _timeWords(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return _(", about {seconds:.0f} s left").format(seconds=seconds)
    return _(", about {minutes:.0f} min left").format(minutes=seconds / 60)


def _words(value: Any) -> str:
    """A card's free-form entry in one line."""
    if isinstance(value, Mapping):
        parts = ((key.replace("_", " "), _words(item)) for key, item in value.items())
        return "; ".join(item if key == "note" else f"{key} {item}" for key, item in parts)
    return "; ".join(map(_words, value)) if isinstance(value, (list, tuple)) else str(value)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rsplit(' ', 1)[0].rstrip(';,:')}…"


class LiverXAITest(ScriptedLoadableModuleTest):
    """The self-test: runs in Slicer (Reload & Test, or ``slicer.selfTests["LiverXAI"]()``) and in the test host."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for test in (self.test_results_lie_on_the_ct, self.test_a_phantom_is_analyzed):
            self.setUp()
            test()

    def test_results_lie_on_the_ct(self) -> None:
        """The bridge to the scene, without any network: an oblique, left-handed volume and labels on it."""
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
        """The whole way with the bundled model: labels, heat map, table, overlay."""
        self.delayDisplay("Analyzing a synthetic patient")
        volumeNode, truthNode = makePhantom(spacingMm=(3.0, 3.0, 5.0))
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
