# SPDX-License-Identifier: Apache-2.0
"""Results are shown in steps, between which Slicer's event loop runs; anything may happen between two steps."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from batch_toys import phantom
from panel_toys import add_ct, prepare, results, wait_idle

import LiverXAILib as lx
from LiverXAILib.worker.client import Event

qtapplication = pytest.importorskip("slicerhost.qtapplication", reason="needs PySide6-Essentials and slicer-core")
slicer = pytest.importorskip("slicer")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def analysis(toy_model):
    volume = phantom(lesions=2)
    return lx.analyze(volume, lx.load_model(toy_model), targets=("liver", "tumor"), device="cpu")


@pytest.fixture
def show(panel, monkeypatch):
    """Make the panel show a result as if it came from the worker, with the given steps."""

    def show(answer, steps):
        events = [Event("done", 0, result=answer)]
        monkeypatch.setattr(panel.widget.runner.client, "poll", lambda: [events.pop()] if events else [])
        panel.widget.runner.start(lambda: 0, steps)
        wait_idle(panel)

    return show


def show_analysis(panel, node, answer):
    """The steps by which an analysis of a CT is shown."""
    from LiverXAILib.panel.outcomes import Asked

    return panel.widget.outcomes.show_analysis(answer, Asked.now(panel.widget.state), "token", "toy")


def watched(steps, between):
    """The steps; after each one `between` is called with its number."""
    value = None
    for number in itertools.count():
        try:
            work = steps.send(value)
        except StopIteration as end:
            return end.value
        between(number)
        value = yield work


def test_what_takes_long_is_done_in_turns_of_its_own(panel, toy_model, analysis, show, monkeypatch):
    node = prepare(panel, phantom(lesions=2), toy_model)
    widget, numbers, shown, made = panel.widget, [], {}, [[]]

    def note(owner, name):
        """Record the number of steps before this function is called."""
        original = getattr(owner, name)

        def noted(*arguments):
            shown.setdefault(owner, []).append(len(numbers))
            return original(*arguments)

        monkeypatch.setattr(owner, name, noted)

    for owner in (widget.models, widget.heatMaps, widget.sensitivity):
        note(owner, "show")
    note(widget.results, "_fill_lesions")
    note(widget.outcomes, "_overlaid")

    def between(number):
        numbers.append(number)
        known = list(itertools.chain.from_iterable(made))
        made.append([one for one in results(node, "") if one not in known])

    show(analysis, lambda answer: watched(show_analysis(panel, node, answer), between))
    assert len(shown) == 5
    turns = [turn for turns in shown.values() for turn in turns]
    assert len(turns) == len(set(turns)), shown
    kinds = [[one.GetAttribute("LiverXAI.Result") for one in new] for new in made if new]
    assert kinds[0] == ["segmentation", "measurements"]
    assert all(len(new) == 1 for new in kinds[1:]), kinds
    assert {new[0] for new in kinds[1:]} == {"heatmap", "changed CT", "uncertainty"}
    assert panel.ui.lesionTable.rowCount == 2
    assert panel.ui.statusLabel.text.startswith("Done in")


def test_a_step_that_waits_for_nothing_follows_at_once(panel, show):
    intervals, timer = [], panel.widget.runner.timer

    def steps(answer):
        yield
        intervals.append(timer.interval)
        yield lambda: None
        intervals.append(timer.interval)
        return ()

    show("answer", steps)
    assert intervals[0] == 0  # Qt still processes its events between two steps
    assert intervals[1] > 0  # the thread is asked at intervals
    assert timer.interval > intervals[1]


def remove_ct(panel, node):
    slicer.mrmlScene.RemoveNode(node)


def remove_segmentation(panel, node):
    for one in results(node, "segmentation"):
        slicer.mrmlScene.RemoveNode(one)


def remove_results(panel, node):
    for one in results(node, ""):
        slicer.mrmlScene.RemoveNode(one)


def close_scene(panel, node):
    panel.host.clear()


def choose_another(panel, node):
    panel.ui.inputSelector.setCurrentNode(add_ct(phantom(1), "another"))


@pytest.mark.parametrize("action", [remove_ct, remove_segmentation, remove_results, close_scene, choose_another])
def test_whatever_happens_between_two_steps_the_panel_shows_what_is_there(panel, toy_model, analysis, show, action):
    def run(after):
        """Show the analysis, with the action after this step; return the CT and the number of steps taken."""
        panel.host.clear()
        node, taken = prepare(panel, phantom(lesions=2), toy_model), []

        def between(number):
            taken.append(number)
            if number == after:
                qtapplication.qt.QTimer.singleShot(0, act)

        def act():
            action(panel, node)

        show(analysis, lambda answer: watched(show_analysis(panel, node, answer), between))
        qtapplication.process_events()
        return node, len(taken)

    _, count = run(None)
    assert count > 10
    for after in range(count):
        node, _ = run(after)
        where, state = f"after step {after} of {count}", panel.widget.state
        assert "⚠" not in panel.ui.statusLabel.text, f"{where}: {panel.ui.statusLabel.text}"
        segmentation = state.result("segmentation")
        assert panel.ui.segmentsTable.segmentationNode() is segmentation, where
        assert panel.ui.resultsButton.visible == (segmentation is not None), where
        assert panel.ui.lesionTable.rowCount == 2 * len(state.results("measurements")), where
        assert panel.ui.heatMapSelector.count == len(state.results("heatmap")) + 1, where
        assert panel.ui.applyButton.text == "Apply", where
        if action is choose_another:
            assert state.volume_node.GetName() == "another", where
            assert len(results(node, "heatmap")) == 2, where  # everything is shown when the CT is chosen again


def test_nothing_is_imported_in_slicers_thread_when_results_come(toy_model, tmp_path):
    volume = phantom(lesions=2)
    np.savez(tmp_path / "ct.npz", array=volume.array, ijk_to_lps=volume.ijk_to_lps)
    program = f"""
        import sys
        import threading
        sys.path[:0] = [{str(ROOT / "Testing")!r}, {str(ROOT)!r}]
        import numpy as np
        from slicerhost import qtapplication
        panel = qtapplication.Panel({str(ROOT / "LiverXAI" / "LiverXAI.py")!r})
        late, runner = [], panel.widget.runner

        class Watch:
            def find_spec(self, name, path=None, target=None):
                if runner.timer.active and threading.current_thread() is threading.main_thread():
                    late.append(name)

        sys.meta_path.insert(0, Watch())
        from LiverXAILib.mrml import volume_to_node
        from LiverXAILib.volumes.volume import Volume
        ct = np.load({str(tmp_path / "ct.npz")!r})
        node = volume_to_node(Volume(ct["array"], ct["ijk_to_lps"]), panel.host.scene, "CT")
        panel.choose(panel.ui.modelSelector, "")
        panel.ui.modelFolder.currentPath = {toy_model!r}
        panel.choose(panel.ui.deviceSelector, "cpu")
        panel.ui.inputSelector.setCurrentNode(node)
        for button in (panel.ui.applyButton, panel.ui.explainButton, panel.ui.rejectButton):
            panel.ui.lesionTable.selectRow(0)
            panel.click(button)
            qtapplication.wait_until(lambda: not runner.busy)
            print(panel.ui.statusLabel.text.splitlines()[0])
        panel.close()
        print("torch" in sys.modules, late)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *said, last = result.stdout.splitlines()
    assert [words.split()[0] for words in said] == ["Done", "Done", "Measured"]
    assert last == "False []"
