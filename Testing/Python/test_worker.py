# SPDX-License-Identifier: Apache-2.0
"""The engine in a child process: same results, reuse between requests, cancel, kill, and no orphans."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from batch_toys import phantom, write_dicom, write_model
from worker_toys import SLOW, alive, children, roomy_phantom, until, wait, wait_for_progress

import LiverXAILib as lx
from LiverXAILib.analysis import Decision
from LiverXAILib.reading import reject
from LiverXAILib.worker import WorkerClient, WorkerError
from LiverXAILib.worker.wire import pack_segmentation, unpack_segmentation

pytestmark = pytest.mark.usefixtures("forked_children")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("models") / "toy"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, forked_children):
    """One worker for the tests that do not end it."""
    client = WorkerClient(threads=1, log=tmp_path_factory.mktemp("log") / "worker.log")
    yield client
    client.close()


@pytest.fixture
def own(tmp_path):
    """A worker for one test only."""
    client = WorkerClient(threads=1, log=tmp_path / "worker.log")
    yield client
    client.close()


def test_the_worker_finds_what_the_library_finds(shared, model_folder):
    volume = phantom(lesions=2)
    seen = []
    shared.analyze(volume, "two lesions", model=model_folder, explain=["liver", "tumor"], check=True, device="cpu")
    event = wait(shared, seen)
    assert event.kind == "done", event
    model = lx.load_model(model_folder)
    expected = lx.analyze(volume, model, targets=["liver", "tumor"], check=True, device="cpu")
    found = event.result
    np.testing.assert_array_equal(found.segmentation.labels.array, expected.segmentation.labels.array)
    assert found.model == expected.model
    assert found.measurements == expected.measurements
    assert found.volume is volume
    for ours, theirs in zip(found.explanations, expected.explanations, strict=True):
        np.testing.assert_allclose(ours.heatmap.array, theirs.heatmap.array, atol=1e-6)
        assert (ours.target, ours.method, ours.layer) == (theirs.target, theirs.method, theirs.layer)
        assert ours.faithfulness["sentence"] == theirs.faithfulness["sentence"]
    for name, grid in expected.segmentation.stage_grids.items():
        assert found.segmentation.stage_grids[name].matches(grid)


def test_what_explanations_need_travels_with_the_segmentation(tmp_path, model_folder):
    model = lx.load_model(model_folder)
    plain = lx.segment(phantom(), model, device="cpu")
    by_network = {"tumor": plain.probabilities["liver"]}
    segmentation = dataclasses.replace(plain, stage_centers={"liver": 93.25}, network_probabilities=by_network)
    back = unpack_segmentation(pack_segmentation(segmentation, tmp_path), tmp_path, model.spec)
    assert list(back.network_probabilities) == ["tumor"]
    np.testing.assert_array_equal(back.network_probabilities["tumor"].array, by_network["tumor"].array)
    np.testing.assert_array_equal(back.probabilities["tumor"].array, plain.probabilities["tumor"].array)
    assert back.stage_centers == {"liver": 93.25}
    assert back.provenance == segmentation.provenance


def test_progress_names_the_step_rises_and_estimates_the_rest(shared, model_folder):
    seen = []
    shared.analyze(phantom(), "ct", model=model_folder, explain=["liver", "tumor"], check=True, device="cpu")
    assert wait(shared, seen).kind == "done"
    fractions = [event.fraction for event in seen]
    assert fractions == sorted(fractions)
    assert len({event.step for event in seen}) > 1
    assert all(event.step for event in seen)
    assert any(event.remaining_s is not None for event in seen)


def test_another_question_needs_neither_image_nor_model_again(shared, model_folder):
    volume = phantom(lesions=2)
    shared.analyze(volume, "two lesions", model=model_folder, explain=[], device="cpu")
    analysis = wait(shared).result
    pid = shared.pid
    assert shared.holds("two lesions", "two lesions")
    assert not shared.holds("never sent")
    shared.explain(["lesion:2"], "two lesions", model=model_folder, device="cpu")
    started = time.monotonic()
    event = wait(shared)
    seconds = time.monotonic() - started
    (explanation,) = event.result.explanations
    expected = lx.explain(volume, lx.load_model(model_folder), analysis.segmentation, "lesion:2", device="cpu")
    np.testing.assert_allclose(explanation.heatmap.array, expected.heatmap.array, atol=1e-6)
    model = lx.load_model(model_folder)
    (answer,) = lx.explain_lesions(volume, model, analysis.segmentation, ["lesion:2"], device="cpu")
    assert [one.sentence for one in event.result.answers] == [answer.sentence]
    assert shared.pid == pid
    # The worker reports its computing time; the rest is overhead of the client.
    print(f"overhead {seconds - explanation.provenance['seconds']:.3f} s")


def test_an_edited_segmentation_can_be_explained(shared, model_folder):
    volume = phantom()
    shared.analyze(volume, "ct", model=model_folder, explain=[], device="cpu")
    found = wait(shared).result.segmentation
    edited = lx.Segmentation(
        found.labels.with_array(np.where(found.labels.array == 2, 1, found.labels.array)),
        found.specs,
        provenance=found.provenance,
    )
    shared.explain(["tumor"], "ct", labels="edited", segmentation=edited, model=model_folder, device="cpu")
    event = wait(shared)
    assert isinstance(event.error, lx.UsageError)
    assert "No tumor was found" in str(event.error)
    shared.explain(["liver"], "ct", labels="edited", segmentation=edited, model=model_folder, device="cpu")
    assert wait(shared).kind == "done"
    assert shared.holds("ct", "edited")


def test_the_client_knows_whether_the_worker_holds_a_complete_result(shared, model_folder):
    volume, kept = phantom(lesions=2), {"model": model_folder, "device": "cpu"}
    shared.analyze(volume, "ct", explain=[], **kept)
    found = wait(shared).result.segmentation
    assert shared.holds("ct", analysis="ct")
    shared.refine([reject(9)], "ct", "refused", volume=volume, base="ct", **kept)
    assert isinstance(wait(shared).error, lx.UsageError)
    assert shared.holds("ct", analysis="ct")
    shared.refine([reject(1)], "ct", "refined", volume=volume, base="ct", **kept)
    assert wait(shared).kind == "done"
    assert shared.holds("ct", analysis="refined")
    shared.explain(["liver"], "moved", volume=volume, labels="refined", segmentation=found, **kept)
    assert wait(shared).kind == "done"
    assert shared.holds("moved", "refined")
    assert not shared.holds("moved", analysis="refined")
    shared.explain(["liver"], "ct", volume=volume, labels="refined", segmentation=found, **kept)
    assert wait(shared).kind == "done"
    assert not shared.holds("ct", analysis="refined")


def test_what_a_failed_request_may_have_replaced_is_sent_again(shared, model_folder):
    volume = phantom()
    shared.analyze(volume, "ct", model=model_folder, explain=[], device="cpu")
    found = wait(shared).result.segmentation
    without = lx.Segmentation(found.labels.with_array(np.minimum(found.labels.array, 1)), found.specs)
    shared.explain(["tumor"], "ct", labels="erased", segmentation=without, model=model_folder, device="cpu")
    assert isinstance(wait(shared).error, lx.UsageError)
    assert shared.holds("ct")
    assert not shared.holds("ct", "ct")
    shared.explain(["tumor"], "ct", labels="ct", segmentation=found, model=model_folder, device="cpu")
    assert wait(shared).kind == "done"
    shared.analyze(volume, "other ct", model="nonsense", explain=[], device="cpu")
    assert isinstance(wait(shared).error, lx.ModelError)
    assert not shared.holds("ct")
    shared.analyze(volume, "ct", model=model_folder, explain=[], device="cpu")
    assert wait(shared).kind == "done"


def test_what_goes_wrong_before_the_worker_is_asked_is_told(shared, model_folder):
    def fail():
        raise lx.UsageError("There is nothing to be explained.")

    shared.analyze(phantom(), "ct", model=model_folder, explain=[], device="cpu")
    wait(shared)
    shared.explain(["liver"], "ct", labels="never drawn", segmentation=fail, model=model_folder, device="cpu")
    event = wait(shared)
    assert type(event.error) is lx.UsageError
    assert str(event.error) == "There is nothing to be explained."
    assert not shared.busy


def test_probabilities_come_along(shared, model_folder):
    volume = phantom()
    shared.analyze(volume, "another ct", model=model_folder, explain=[], device="cpu")
    found = wait(shared).result.segmentation
    expected = lx.segment(volume, lx.load_model(model_folder), device="cpu")
    assert list(found.probabilities) == list(expected.probabilities)
    for name, probability in expected.probabilities.items():
        np.testing.assert_array_equal(found.probabilities[name].array, probability.array)
        assert found.probabilities[name].grid.matches(probability.grid)


def test_the_last_analysis_is_written_with_the_explanations_asked_for_later(shared, model_folder, tmp_path):
    shared.analyze(phantom(), "ct", model=model_folder, explain=["liver"], device="cpu")
    wait(shared)
    shared.explain(["tumor"], "ct", model=model_folder, device="cpu")
    wait(shared)
    shared.write("ct", tmp_path / "result", report=False)
    files = wait(shared).result["files"]
    assert {"segmentation", "heatmap-liver", "heatmap-tumor", "table"} <= set(files)
    assert all(Path(path).is_file() for path in files.values())
    shared.write("another ct", tmp_path / "other", report=False)
    assert "Press Apply again" in str(wait(shared).error)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"model": "nonsense"}, lx.ModelError, "There is no model 'nonsense'"),
        ({"device": "cuda:7"}, lx.DeviceError, "cuda:7"),
        ({"explain": ["spleen"]}, lx.UsageError, "spleen"),
        ({"method": "guess"}, lx.UsageError, "guess"),
    ],
)
def test_errors_keep_their_type_and_their_sentence(shared, model_folder, arguments, kind, sentence):
    shared.analyze(phantom(), "ct", **{"model": model_folder, **arguments})
    event = wait(shared)
    assert event.kind == "failed"
    assert type(event.error) is kind
    assert sentence in str(event.error)
    assert "Traceback" in event.details


def test_an_image_that_is_no_ct_is_refused_unless_it_is_forced(shared, model_folder):
    volume = phantom()
    shifted = volume.with_array(volume.array + 1024)
    shared.analyze(shifted, "mr", model=model_folder, explain=[], device="cpu")
    assert "does not look like CT" in str(wait(shared).error)
    assert not shared.holds("mr")
    shared.analyze(shifted, "mr", model=model_folder, explain=[], device="cpu", force=True)
    assert wait(shared).kind == "done"


def test_only_one_request_runs_at_a_time(shared, model_folder):
    shared.analyze(phantom(), "ct", model=model_folder, explain=[])
    with pytest.raises(lx.UsageError, match="busy"):
        shared.environment()
    wait(shared)


def test_the_environment_names_versions_and_devices(shared):
    shared.environment()
    result = wait(shared).result
    assert "cpu" in result["devices"]
    assert set(result["versions"]) == {"LiverXAI", "Python", "torch"}


def test_cancel_ends_the_request_and_keeps_the_worker(shared, model_folder):
    shared.analyze(roomy_phantom(), "roomy", model=model_folder, device="cpu", **SLOW)
    wait_for_progress(shared)
    pid = shared.pid
    shared.cancel()
    event = wait(shared)
    assert isinstance(event.error, lx.Cancelled)
    shared.analyze(phantom(), "ct", model=model_folder, explain=[], device="cpu")
    event = wait(shared)
    assert event.kind == "done", event
    assert shared.pid == pid


def test_one_core_is_left_free():
    cores = len(os.sched_getaffinity(0))
    assert WorkerClient()._threads == max(1, cores - 1)


def test_the_client_loads_neither_torch_nor_qt():
    code = (
        "import sys; from LiverXAILib.worker import WorkerClient; WorkerClient(); import LiverXAILib.worker.wire; "
        "print([m for m in ('torch', 'PySide6', 'qt', 'slicer', 'vtk') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_the_log_tells_what_happened_but_nothing_of_the_patient(shared, model_folder, tmp_path):
    volume = phantom()
    named = lx.Volume(volume.array, volume.ijk_to_lps, {"PatientName": "Doe^Jane", "warnings": []})
    shared.analyze(named, "Doe^Jane CT", model=model_folder, explain=[], device="cpu")
    wait(shared)
    shared.write("Doe^Jane CT", tmp_path / "file" / "Doe Jane", report=False)
    wait(shared)
    (tmp_path / "plain file").write_text("")
    shared.write("Doe^Jane CT", tmp_path / "plain file" / "Doe Jane", report=False)
    assert wait(shared).kind == "failed"
    log = shared.log.read_text()
    assert "analyze: done" in log
    assert "write: input" in log
    assert "Doe" not in log


def test_a_killed_worker_is_told_and_replaced(shared, model_folder):
    shared.analyze(roomy_phantom(), "roomy", model=model_folder, device="cpu", **SLOW)
    wait_for_progress(shared)
    pid = shared.pid
    os.kill(pid, signal.SIGKILL)
    event = wait(shared)
    assert isinstance(event.error, WorkerError)
    assert "out of memory" in str(event.error)
    assert not shared.holds("roomy")
    shared.analyze(phantom(), "ct", model=model_folder, explain=[], device="cpu")
    assert wait(shared).kind == "done"
    assert shared.pid != pid


def test_close_leaves_neither_process_nor_files(shared, model_folder):
    shared.analyze(phantom(), "ct", model=model_folder, explain=[], device="cpu")
    wait(shared)
    pid, folder = shared.pid, shared._folder
    assert list(folder.glob("*.npy"))
    shared.close()
    assert not alive(pid)
    assert not folder.exists()
    assert shared.poll() == []


def test_a_worker_that_does_not_hear_cancel_is_ended(own, model_folder, monkeypatch):
    monkeypatch.setattr("LiverXAILib.worker.client.CANCEL_GRACE_S", 0.2)
    own.analyze(roomy_phantom(), "ct", model=model_folder, device="cpu", **SLOW)
    wait_for_progress(own)
    pid = own.pid
    os.kill(pid, signal.SIGSTOP)
    own.cancel()
    assert isinstance(wait(own).error, lx.Cancelled)
    assert not alive(pid)


def test_a_killed_host_leaves_no_worker_and_no_files(model_folder, tmp_path):
    roomy = roomy_phantom()
    np.savez(tmp_path / "ct.npz", array=roomy.array, ijk_to_lps=roomy.ijk_to_lps)
    program = f"""
        import time
        import numpy as np
        from LiverXAILib.volumes.volume import Volume
        from LiverXAILib.worker import WorkerClient
        client = WorkerClient(threads=1)
        ct = Volume(**np.load({str(tmp_path / "ct.npz")!r}))
        client.analyze(ct, "ct", model={model_folder!r}, explain=["liver"], method="occlusion")
        while not any(event.kind == "progress" for event in client.poll()):
            time.sleep(0.05)
        print(client.pid, flush=True)
        time.sleep(100)
    """
    host = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    worker = int(host.stdout.readline())
    assert worker in children(host.pid)
    assert list(tmp_path.glob(".liverxai-*"))
    host.kill()
    host.wait()
    host.stdout.close()
    assert until(lambda: not alive(worker))
    assert not list(tmp_path.glob(".liverxai-*"))


def test_the_worker_writes_every_output_that_the_command_line_writes(shared, model_folder, tmp_path):
    write_dicom(tmp_path / "scan")
    shared.analyze(lx.read_volume(tmp_path / "scan"), "scan", model=model_folder, explain=["liver"], device="cpu")
    assert wait(shared).kind == "done"
    shared.write("scan", tmp_path / "result", write=["dicom", "probabilities"])
    event = wait(shared)
    assert event.kind == "done", event.details
    assert event.result["warnings"] == []
    assert {"segmentation.dcm", "probability-liver.nrrd", "segmentation.seg.nrrd"} <= {
        path.name for path in (tmp_path / "result").iterdir()
    }


@pytest.mark.parametrize("lost", [False, True], ids=["held", "lost"])
def test_decisions_go_by_places_and_can_be_taken_back(shared, model_folder, lost):
    volume = phantom(lesions=2)
    shared.analyze(volume, "reader", model=model_folder, explain=["lesion:2"], device="cpu")
    first = wait(shared).result
    kept = {answer.kind: answer for answer in first.answers if str(answer.target) == "lesion:2"}
    assert kept
    places = [lesion.centroid_lps_mm for lesion in first.measurements.lesions]
    held = first

    def ask(*decisions):
        nonlocal held
        asked = {"base": "" if lost else names[-1], "segmentation": held.segmentation if lost else None}
        earlier = [one.to_dict() for one in held.decisions]
        names.append(f"labels {len(names)} {lost}")
        shared.refine(
            decisions, "reader", names[-1], volume=volume, earlier=earlier, model=model_folder, device="cpu", **asked
        )
        event = wait(shared)
        if event.kind == "done":
            held = event.result
        return event

    names = ["reader"]
    # The number is from another list; the place is that of the larger lesion.
    result = ask(Decision("reject", (2,), places[0])).result
    assert [x.centroid_lps_mm for x in result.measurements.lesions] == [places[1]]
    if not lost:
        assert {answer.kind for answer in result.answers if str(answer.target) == "lesion:1"} == set(kept)
    refused = ask(Decision("reject", (1,), places[0]))
    assert refused.kind == "failed"
    assert "There is no lesion at RAS" in str(refused.error)
    if not lost:
        names.pop()
    assert ask(Decision("split", (1,), places[1])).result.measurements.lesion_count == 2
    back = ask(Decision("undo"), Decision("undo")).result
    assert back.decisions == ()
    assert back.measurements == first.measurements
    np.testing.assert_array_equal(back.segmentation.labels.array, first.segmentation.labels.array)
    failed = ask(Decision("undo"))
    assert failed.kind == "failed"
    assert "no decision" in str(failed.error)
