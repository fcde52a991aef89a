# SPDX-License-Identifier: Apache-2.0
"""The files that the panel saves: those of the command line, and DICOM objects of a CT from Slicer's database."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from batch_toys import write_dicom
from panel_toys import apply_and_wait, prepare, save, save_and_reopen, wait_idle

from LiverXAILib.report.writers import WRITERS
from LiverXAILib.volumes.io import read_volume
from LiverXAILib.volumes.volume import Volume

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")
pytest.importorskip("highdicom", reason="needs the extra dicom")


def check(panel, *names):
    """Check exactly these outputs."""
    for name, item in listed(panel).items():
        item.setCheckState(qtapplication.qt.Qt.Checked if name in names else qtapplication.qt.Qt.Unchecked)
    qtapplication.process_events()


def listed(panel):
    """The items of the list by name."""
    items = [panel.ui.outputList.item(row) for row in range(panel.ui.outputList.count)]
    return {item.data(qtapplication.qt.Qt.UserRole): item for item in items}


def checked_names(panel):
    return [name for name, item in listed(panel).items() if item.checkState() == qtapplication.qt.Qt.Checked]


@pytest.fixture
def dicom_ct(panel, toy_model, tmp_path, monkeypatch):
    """An analyzed CT as Slicer's DICOM module loads it: its slices, last one first, are named in an attribute."""
    write_dicom(tmp_path / "scan")
    volume = read_volume(tmp_path / "scan")
    node = prepare(panel, Volume(volume.array, volume.ijk_to_lps), toy_model, "nothing")
    paths = {pydicom.dcmread(path).SOPInstanceUID: str(path) for path in sorted((tmp_path / "scan").iterdir())}
    database = SimpleNamespace(fileForInstance=lambda instance: paths.get(instance, ""))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    node.SetAttribute("DICOM.instanceUIDs", " ".join(reversed(paths)))
    apply_and_wait(panel)
    return node, volume, paths


def test_the_list_offers_what_the_command_line_writes_and_checks_its_defaults(panel, tmp_path):
    assert list(listed(panel)) == [name for name, writer in WRITERS.items() if not writer.required and name != "scene"]
    assert checked_names(panel) == [name for name in listed(panel) if WRITERS[name].default is True]


def test_chosen_outputs_are_written_and_kept_with_the_scene(panel, dicom_ct, tmp_path, monkeypatch):
    check(panel, "dicom", "probabilities")
    save(panel, tmp_path / "saved", monkeypatch)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"segmentation.dcm", "probability-liver.nrrd", "measurements.json"} <= names
    assert "report.html" not in names
    save_and_reopen(panel, tmp_path / "scene.mrb")
    assert checked_names(panel) == ["dicom", "probabilities"]


def test_the_dicom_segmentation_refers_to_each_slice_at_its_place(panel, dicom_ct, tmp_path, monkeypatch):
    _node, _volume, paths = dicom_ct
    check(panel, "dicom")
    save(panel, tmp_path / "saved", monkeypatch)
    dataset = pydicom.dcmread(tmp_path / "saved" / "segmentation.dcm")
    first = pydicom.dcmread(next(iter(paths.values())))
    assert dataset.StudyInstanceUID == first.StudyInstanceUID
    places = {uid: np.array(pydicom.dcmread(path).ImagePositionPatient, float) for uid, path in paths.items()}
    assert len(dataset.PerFrameFunctionalGroupsSequence) > 2
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        (derivation,) = frame.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(position, places[source.ReferencedSOPInstanceUID], atol=1e-4)


def test_no_dicom_object_is_made_of_a_ct_that_is_not_where_its_files_say(panel, dicom_ct, tmp_path, monkeypatch):
    node, _volume, _paths = dicom_ct
    matrix = np.eye(4)
    matrix[0, 3] = 12.0
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    qtapplication.process_events()
    panel.click(panel.ui.measureButton)
    wait_idle(panel)
    check(panel, "dicom")
    save(panel, tmp_path / "saved", monkeypatch)
    assert "0 are where its DICOM files say" in panel.ui.statusLabel.text
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("lost", ["attribute", "file", "database"])
def test_a_ct_that_is_not_in_the_database_says_what_to_do(panel, dicom_ct, tmp_path, monkeypatch, lost):
    node, _volume, paths = dicom_ct
    check(panel, "dicom")
    if lost == "attribute":
        node.SetAttribute("DICOM.instanceUIDs", None)
    elif lost == "database":
        monkeypatch.delattr(slicer, "dicomDatabase")
    else:
        del paths[next(iter(paths))]
    save(panel, tmp_path / "saved", monkeypatch)
    assert "loaded from Slicer's DICOM database" in panel.ui.statusLabel.text
    assert not (tmp_path / "saved").exists()
    check(panel, "tables")
    save(panel, tmp_path / "saved", monkeypatch)
    assert (tmp_path / "saved" / "measurements.json").exists()
