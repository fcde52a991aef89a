# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM in every phase of the long commands: the right exit code, no processes, no partial files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from batch_toys import write_good, write_model
from model_server import serving
from stops import stop
from training_toys import draw_nothing, tiny, write_msd

import LiverXAILib.training.fit  # noqa: F401 - what trainings are forked from has it, see forking.py
from LiverXAILib import cli
from LiverXAILib.models import load_model
from LiverXAILib.models.downloads import checksum
from LiverXAILib.models.registry import registry

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process that is to be stopped"),
    pytest.mark.usefixtures("one_thread"),
]

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


def assert_clean(stopped, number, *places):
    """Assert that it ended by the signal, and that only earlier results are in `places`."""
    assert stopped.code == 128 + number, stopped.said
    assert "Traceback" not in stopped.said
    assert not stopped.running
    assert not [name for name in stopped.temporary if "inductor" not in name]
    for place in places:
        assert not [path for path in place.rglob("*") if path.name.startswith((".", "lock-"))]


# --- batch --------------------------------------------------------------------------------------------------------


BATCH = {
    "searching": ("LiverXAILib.batch.command:find_cases", None),
    "opening": ("LiverXAILib.batch.store:Store._sweep", None),
    "starting": ("LiverXAILib.batch.session:ChildProcess", None),
    "ready": ("LiverXAILib.batch.session:Session._on_message", "ready"),
    "planning": ("LiverXAILib.batch.run:resume_decision", None),
    "reading": ("LiverXAILib.batch.session:Session._on_message", "reading"),
    "analyzing": ("LiverXAILib.batch.session:Session._on_message", "analyzing"),
    "done": ("LiverXAILib.batch.session:Session._on_message", "done"),
    "ending": ("LiverXAILib.batch.session:Session.stop", None),
    "summing up": ("LiverXAILib.batch.command:write_summary", None),
    "tables": ("LiverXAILib.batch.summary:write_table", None),
}


@BOTH
@pytest.mark.parametrize("stage", BATCH)
def test_a_batch_is_stopped(stage, number, tmp_path):
    for case in range(3):
        write_good(tmp_path / "in" / f"c{case}.nii.gz", case)
    output = tmp_path / "out"
    place, event = BATCH[stage]
    stopped = stop(
        ["batch", tmp_path / "in", "-o", output, "--model", "toy", "--explain"],
        place,
        number,
        tmp_path / "tmp",
        event=event,
        values={"LiverXAILib.batch.session:CHILD": "batch_child_toy"},
        environment={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
    )
    assert_clean(stopped, number, output)
    done = list((output / "cases").glob("*"))
    assert all((folder / "case.json").is_file() for folder in done)
    if stage in ("ending", "summing up", "tables"):
        assert len(done) == 3
    elif stage == "analyzing" and number == signal.SIGINT:
        assert "Stopping after the current case" in stopped.said
        assert len(done) == 1
    elif stage in ("searching", "opening", "starting", "ready", "planning"):
        assert not done


# --- train --------------------------------------------------------------------------------------------------------


#: Drawing takes longer than these training runs.
WITHOUT_CURVES = {"LiverXAILib.training.finish:write_curves": draw_nothing}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    data = write_msd(folder / "data", 4)
    changes = {"training__epochs": 1, "finish": {"evaluate": True, "explain": "seg-grad-cam"}}
    config = tiny(data, folder / "run", **changes)
    (folder / "study.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    assert cli.main(["train", str(folder / "study.yaml")]) == 0
    for name in ("model", "examples", "card.md", "evaluation.csv", "evaluation.json"):
        path = folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("run:find_data", signal.SIGTERM),
        ("samples:Prepare.__call__", signal.SIGINT),
        ("learner:Learner.training_step", signal.SIGINT),
        ("learner:Learner.training_step", signal.SIGTERM),
        ("learner:Learner.validation_step", signal.SIGTERM),
        ("callbacks:Checkpoints.on_train_epoch_end", signal.SIGINT),
    ],
)
def test_training_is_stopped(place, number, study, tmp_path):
    output = tmp_path / "run"
    arguments = ["train", study / "study.yaml", "-o", output, "--set", "hardware.workers=1"]
    stopped = stop(arguments, f"LiverXAILib.training.{place}", number, tmp_path / "tmp", values=WITHOUT_CURVES)
    assert_clean(stopped, number, output)
    assert not (output / "finished.json").exists()
    assert not (output / "model").exists()


def test_training_goes_on_where_the_temporary_folder_has_a_long_path(study, tmp_path):
    """Samples are passed through sockets, and a socket's path has 107 bytes at most."""
    output, folder = tmp_path / "run", tmp_path / ("long" * 20)
    arguments = ["train", study / "study.yaml", "-o", output, "--set", "hardware.workers=1"]
    place = "LiverXAILib.training.learner:Learner.validation_step"
    stopped = stop(arguments, place, signal.SIGTERM, folder, values=WITHOUT_CURVES)
    assert_clean(stopped, signal.SIGTERM, output)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("finish:write_curves", signal.SIGTERM),
        ("finish:load_model", signal.SIGINT),
        ("finish:evaluate", signal.SIGTERM),
        ("finish:_explain", signal.SIGINT),
        ("finish:_write_card", signal.SIGTERM),
    ],
)
def test_what_follows_training_is_stopped_and_done_again(place, number, study, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(study / "run", output)
    arguments = ["train", study / "study.yaml", "-o", output]
    stopped = stop(arguments, f"LiverXAILib.training.{place}", number, tmp_path / "tmp", values=WITHOUT_CURVES)
    assert_clean(stopped, number, output)
    assert not (output / "card.md").exists()
    if (output / "model").exists():
        load_model(output / "model")


@BOTH
@pytest.mark.parametrize("place", ["put_folder", "save_file"])
def test_a_model_that_is_there_is_replaced_whole_or_not_at_all(place, number, study, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(study / "run", output)
    write_model(output / "model")
    arguments = ["train", study / "study.yaml", "-o", output]
    writing = f"LiverXAILib.models.formats.liverxai:{place}"
    stopped = stop(arguments, writing, number, tmp_path / "tmp", values=WITHOUT_CURVES)
    assert_clean(stopped, number, output)
    assert load_model(output / "model").spec.name == "toy"


# --- models -------------------------------------------------------------------------------------------------------


LABELS = [
    {"name": "liver", "value": 1, "color": [1, 2, 3], "type": ["SCT", "10200004", "Liver"]},
    {"name": "tumor", "value": 2, "color": [1, 2, 3], "parent": "liver"},
]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A server with a model in a zip file, and a registry with an entry for it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIVERXAI_MODELS", raising=False)
    model = write_model(tmp_path / "toy")
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        for path in model.iterdir():
            archive.write(path, f"toy/{path.name}")
    with serving() as server:
        server.files["/toy.zip"] = (tmp_path / "toy.zip").read_bytes()
        licenses = {"code": "MIT", "weights": "MIT", "data": "MIT"}
        about = {"title": "Toy", "task": "liver", "labels": LABELS, "licenses": licenses, "source": "here"}
        archive = {"url": f"{server.address}/toy.zip", "sha256": checksum(tmp_path / "toy.zip")}
        entry = {"kind": "archive", "about": about, "archive": archive}
        path = tmp_path / "registry.json"
        path.write_text(json.dumps({"version": 1, "models": {"toy": entry}}), encoding="utf-8")
        monkeypatch.setattr(sys.modules[registry.__module__], "_REGISTRY", path)
        yield SimpleNamespace(
            home=tmp_path / "home" / "liverxai" / "models",
            folder=tmp_path,
            values={"LiverXAILib.models.registry:_REGISTRY": path},
        )


@BOTH
@pytest.mark.parametrize(
    "place",
    [
        "downloads:_receive",
        "downloads:RunContext.report",
        "downloads:checksum",
        "store:unpack",
        "store:_needed_files",
        "store:write_record",
    ],
)
def test_a_download_is_stopped_and_goes_on(place, number, shop):
    command = ["models", "download", "toy"]
    stopped = stop(command, f"LiverXAILib.models.{place}", number, shop.folder / "tmp", values=shop.values)
    assert_clean(stopped, number)
    assert {path.name for path in shop.home.iterdir()} == {".partial"}
    # The downloaded part is kept on purpose.
    assert {path.name for path in (shop.home / ".partial").iterdir()} <= {"toy.zip.part"}
    assert cli.main(command) == 0
    load_model("toy")


@BOTH
@pytest.mark.parametrize("place", ["store:find_format", "store:load_folder", "store:write_record"])
def test_an_import_is_stopped_and_leaves_nothing(place, number, shop):
    command = ["models", "import", shop.folder / "toy.zip", "--name", "mine"]
    stopped = stop(command, f"LiverXAILib.models.{place}", number, shop.folder / "tmp", values=shop.values)
    assert_clean(stopped, number, shop.home)
    assert not list(shop.home.iterdir())
