# SPDX-License-Identifier: Apache-2.0
"""A round trip through a real PACS: query, retrieve, analyze, store, retrieve again."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from batch_toys import environment, run_batch, write_dicom, write_model
from dicomweb_client.api import DICOMwebClient

from LiverXAILib.batch import dicomweb
from LiverXAILib.batch.dicomweb import Archive, is_address
from LiverXAILib.errors import InputError
from LiverXAILib.volumes.dicom_seg import read_segment_masks
from LiverXAILib.volumes.io import read_volume

PLUGIN = next((path for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")), None)
needs_orthanc = pytest.mark.skipif(
    shutil.which("Orthanc") is None or PLUGIN is None,
    reason="orthanc and orthanc-dicomweb are not installed (see .ci/install-system-packages)",
)


@pytest.fixture
def pacs(tmp_path):
    """The address of an empty Orthanc on this machine, with a user and a password."""
    folder = tmp_path / "orthanc"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"reader": "pass word"},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(["Orthanc", folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            assert process.poll() is None, (folder / "log.txt").read_text()
            yield f"dicomweb+http://reader:pass%20word@127.0.0.1:{port}/dicom-web"
        finally:
            process.terminate()
            process.wait(30)


def client_of(address: str) -> DICOMwebClient:
    return Archive(address)._client


@needs_orthanc
@pytest.mark.timeout(600)
def test_a_batch_reads_from_a_pacs_and_stores_its_results_there(pacs, tmp_path):
    for name in ("one", "two"):
        write_dicom(tmp_path / name, seed=len(name))
    files = [pydicom.dcmread(path) for name in ("one", "two") for path in sorted((tmp_path / name).iterdir())]
    client_of(pacs).store_instances(files)
    write_model(tmp_path / "model")
    outputs = ["--write", "dicom", "dicom-sr", "--explain", "--no-report"]
    arguments = [pacs, "--output", tmp_path / "out", "--model", tmp_path / "model", "--device", "cpu", *outputs]
    ran = run_batch(*arguments, env=environment(tmp_path))
    assert ran.returncode == 0, ran.stdout
    assert "pass word" not in ran.stdout
    assert "6 DICOM objects stored" in ran.stdout

    client = client_of(pacs)
    cases = list((tmp_path / "out" / "cases").iterdir())
    assert len(cases) == 2
    for number, case in enumerate(cases):
        result = pydicom.dcmread(case / "segmentation.dcm")
        study = result.StudyInstanceUID
        series: dict[str, list[str]] = {}
        for one in client.search_for_series(study):
            series.setdefault(one["00080060"]["Value"][0], []).append(one["0020000E"]["Value"][0])
        assert {modality: len(uids) for modality, uids in series.items()} == {"CT": 1, "SR": 1, "SEG": 2}
        volume = read_volume(fetched(client, study, series["CT"][0], tmp_path / f"ct{number}"))
        segmentation = fetched(client, study, result.SeriesInstanceUID, tmp_path / f"seg{number}")
        masks = read_segment_masks(next(segmentation.iterdir()), volume.grid)
        for label, mask in read_segment_masks(case / "segmentation.dcm", volume.grid).items():
            np.testing.assert_array_equal(masks[label], mask)
            assert mask.any()

    ran = run_batch(*arguments, env=environment(tmp_path))
    assert "0 DICOM objects stored" in ran.stdout


def fetched(client: DICOMwebClient, study: str, series: str, folder: Path) -> Path:
    folder.mkdir()
    for dataset in client.retrieve_series(study, series):
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
    return folder


@needs_orthanc
def test_filters_of_the_address_choose_series_and_a_wrong_password_is_a_sentence(pacs, tmp_path):
    write_dicom(tmp_path / "ct")
    file = pydicom.dcmread(next((tmp_path / "ct").iterdir()))
    file.PatientID = "chosen"
    client_of(pacs).store_instances([file])
    folder = Archive(f"{pacs}?PatientID=chosen").fetch(tmp_path / "fetched")
    assert [path.stem for path in folder.rglob("*.dcm")] == [file.SOPInstanceUID]
    wrong = pacs.replace("pass%20word", "wrong")
    with pytest.raises(InputError, match="refused the request") as caught:
        Archive(wrong).fetch(tmp_path / "other")
    assert "wrong" not in str(caught.value)


class FakeClient:
    """A service with series of one instance each, which counts what it is asked."""

    def __init__(self, series=()):
        self.series, self.asked, self.stored = dict(series), [], []

    def search_for_series(self, search_filters, get_remaining):
        self.asked.append((search_filters, get_remaining))
        return [{"0020000D": {"Value": [study]}, "0020000E": {"Value": [series]}} for study, series in self.series]

    def iter_series(self, study, series, media_types):
        self.asked.append((study, series, media_types))
        yield from self.series[study, series]

    def store_instances(self, datasets):
        self.stored += datasets


@pytest.fixture
def service(monkeypatch):
    client, opened = FakeClient(), []
    monkeypatch.setattr(dicomweb, "_client", lambda *values: opened.append(values) or client)
    client.opened = opened
    return client


def test_the_address_names_service_user_password_and_filters(service):
    archive = Archive("dicomweb+https://an%40na:pass%20word@host:8042/dicom-web/?PatientID=17&StudyDate=20240101-")
    assert archive.url == "https://host:8042/dicom-web"
    assert archive.filters == {"PatientID": "17", "StudyDate": "20240101-"}
    assert service.opened == [("https://host:8042/dicom-web", "an@na", "pass word")]
    assert Archive("dicomweb+http://host").url == "http://host"
    assert service.opened[1] == ("http://host", "", "")


def test_series_are_retrieved_once_and_whole(service, tmp_path):
    write_dicom(tmp_path / "ct", slices=2)
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    service.series = {("1.2", "1.9"): files[:1], ("1.2", "1.3"): files[1:]}
    archive, said = Archive("dicomweb+http://host?PatientID=17"), []
    folder = archive.fetch(tmp_path / "in", lambda text, fraction: said.append((text, fraction)))
    assert folder == tmp_path / "in"
    assert said == [("Retrieving series 1 of 2", 0.0), ("Retrieving series 2 of 2", 0.5)]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.dcm")}
    assert found == {f"1.2/1.9/{files[0].SOPInstanceUID}.dcm", f"1.2/1.3/{files[1].SOPInstanceUID}.dcm"}
    assert service.asked == [
        ({"PatientID": "17", "Modality": "CT"}, True),
        *(("1.2", series, (("application/dicom", "*"),)) for series in ("1.3", "1.9")),
    ]
    del service.asked[:]
    archive.fetch(tmp_path / "in")
    assert len(service.asked) == 1
    service.series = {("1.2", "../1.4"): files}
    with pytest.raises(InputError, match="not valid DICOMweb"):
        archive.fetch(tmp_path / "in")
    service.series = {}
    assert archive.fetch(tmp_path / "none").is_dir()


def test_results_are_stored_once(service, tmp_path):
    write_dicom(tmp_path / "ct", slices=2)
    first, second = sorted((tmp_path / "ct").iterdir())
    archive = Archive("dicomweb+http://host")
    assert archive.store([first], tmp_path) == 1
    assert archive.store([first, second], tmp_path) == 1
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (first, second)]
    assert [dataset.SOPInstanceUID for dataset in service.stored] == uids
    assert (tmp_path / "stored.txt").read_text().split() == uids
    with pytest.raises(InputError, match=r"Cannot use .*gone\.dcm: No such file"):
        archive.store([tmp_path / "gone.dcm"], tmp_path)


def test_a_pacs_that_is_not_there_is_a_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dicomweb+http://127.0.0.1:{free.getsockname()[1]}/dicom-web"
    assert is_address(address)
    assert not is_address("/data/dicomweb")
    with pytest.raises(InputError, match="cannot be reached"):
        Archive(address).fetch(tmp_path)


def test_a_busy_service_is_asked_three_times(monkeypatch, tmp_path):
    monkeypatch.setattr(dicomweb, "_WAIT_MS", 1)
    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(503)
            self.end_headers()

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="not available at the moment: its last response was HTTP status 503"):
            Archive(f"http://127.0.0.1:{server.server_port}/dicom-web").fetch(tmp_path)
        server.shutdown()
    assert len(asked) == 3
