# SPDX-License-Identifier: Apache-2.0
"""The Slicer module LiverXAI: liver and liver tumor segmentation in CT with explanations. For research use only.

What it computes lives in the package LiverXAILib; here is what Slicer needs to show it. Loading this file imports
neither torch nor Qt, and installs nothing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

if find_spec("LiverXAILib") is None:
    # An installed extension has the library beside this file; a source checkout has it beside this folder.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from LiverXAILib.errors import LiverXAIError
from LiverXAILib.progress import CancelToken

if TYPE_CHECKING:
    from LiverXAILib.models import Model
    from LiverXAILib.mrml import AnalysisNodes

#: Packages that Slicer does not bring and that segmenting needs; torch comes from the extension "PyTorch".
REQUIRED_PACKAGES = ("torch", "safetensors", "pooch", "platformdirs")

Progress = Callable[[str, float], None]


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
    from LiverXAILib.training.phantom import make_phantom

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
        method: str = "seg-grad-cam",
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
        method: str = "seg-grad-cam",
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


class LiverXAIWidget(ScriptedLoadableModuleWidget):
    """A plain panel: choose a CT, press Apply, see the numbers."""

    def setup(self) -> None:
        super().setup()
        import qt  # only a panel needs Qt

        self.logic = LiverXAILogic()
        self.inputSelector = slicer.qMRMLNodeComboBox()
        self.inputSelector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.inputSelector.addEnabled = False
        self.inputSelector.removeEnabled = False
        self.inputSelector.noneEnabled = True
        self.inputSelector.setMRMLScene(slicer.mrmlScene)
        self.inputSelector.toolTip = _("The CT to analyze")
        self.applyButton = qt.QPushButton(_("Apply"))
        self.applyButton.toolTip = _("Segment the liver and its tumors, explain and measure them")
        self.resultLabel = qt.QLabel(_("Choose a CT and press Apply. For research use only."))
        self.resultLabel.wordWrap = True
        form = qt.QFormLayout()
        form.addRow(_("CT:"), self.inputSelector)
        form.addRow(self.applyButton)
        form.addRow(self.resultLabel)
        self.layout.addLayout(form)
        self.layout.addStretch(1)
        self.applyButton.connect("clicked(bool)", self.onApply)
        self.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
        self.onInputChanged(None)

    def onInputChanged(self, node: Any) -> None:
        self.applyButton.enabled = self.inputSelector.currentNode() is not None

    def onApply(self, checked: bool = False) -> None:
        with slicer.util.tryWithErrorDisplay(_("The analysis failed."), waitCursor=True):
            nodes = self.logic.analyze(self.inputSelector.currentNode())
            self.resultLabel.text = nodes.table.GetAttribute("LiverXAI.Summary")
            if nodes.heatmaps:
                self.logic.showExplanation(list(nodes.heatmaps.values())[-1])


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
