# SPDX-License-Identifier: Apache-2.0
"""Models are installed complete and unchanged or not at all, and none of their code is run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_server import serving
from nnunet_folders import make_folder, plans
from toys import threshold_model

from LiverXAILib.cli import main
from LiverXAILib.context import RunContext
from LiverXAILib.errors import Cancelled, ModelError
from LiverXAILib.models import download_folder, load_model, registry, save_model
from LiverXAILib.models import registry as registry_function
from LiverXAILib.models import store as store_module
from LiverXAILib.models.downloads import checksum, fetch, unpack
from LiverXAILib.models.formats.nnunet import load_nnunet
from LiverXAILib.models.registry import imported_models
from LiverXAILib.models.store import download, import_model, remove, trust_model, verify_model
from LiverXAILib.networks import UNet
from LiverXAILib.progress import CancelToken

REGISTRY_MODULE = sys.modules[registry_function.__module__]
MARK = "poison-was-run"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home folder for downloads."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIVERXAI_MODELS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server():
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained nnU-Net folder."""
    return make_folder(tmp_path_factory.mktemp("nnunet"), plans())


def left_behind(home: Path) -> list[str]:
    """All files below the folder of downloads."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Any], version: int = 1) -> None:
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"version": version, "models": models}))
    monkeypatch.setattr(REGISTRY_MODULE, "_REGISTRY", path)


def an_entry(url: str, **changes: Any) -> dict[str, Any]:
    about = {
        "title": "A toy",
        "task": "for tests",
        "labels": [
            {"name": "liver", "value": 1, "color": [1, 2, 3], "type": ["SCT", "10200004", "Liver"]},
            {"name": "tumor", "value": 2, "color": [1, 2, 3], "parent": "liver"},
        ],
        "licenses": {"code": "MIT", "weights": "CC BY 4.0", "data": "CC BY 4.0"},
        "source": "here",
    }
    archive = {"url": url, **changes.pop("archive", {})}
    return {"kind": "archive", "about": {**about, **changes}, "archive": archive, "reading": {"mirroring": False}}


def zipped(folder: Path, target: Path) -> bytes:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in folder.rglob("*"):
            file.write(path, Path("Dataset900_Toy") / folder.name / path.relative_to(folder))
    return target.read_bytes()


class Poison:
    """An object whose unpickling creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def poisoned(trained: Path, folder: Path, mark: Path) -> Path:
    """A copy of a trained folder with malicious code in its checkpoint."""
    shutil.copytree(trained, folder)
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["init_args"]["unpack_dataset"] = Poison(mark)
    torch.save(checkpoint, path)
    return folder


# --- the registry -------------------------------------------------------------------------------------------------


def test_every_named_model_says_what_it_is_for_and_under_which_license():
    for name, entry in registry().items():
        about = entry.description()
        assert about.title, name
        assert about.task, name
        assert about.labels, name
        assert all((about.licenses.code, about.licenses.weights, about.licenses.data)), name
        for label in about.labels:
            assert label.type[0] == "SCT"
            assert label.type[1].isdigit()
        if entry.archive is not None:
            assert entry.archive.url.startswith("https://")


def test_the_chain_makes_each_label_once_and_looks_around_the_liver():
    chain = registry()["totalsegmentator-liver"].chain
    assert [link.model.rpartition("-")[2] for link in chain] == ["298", "291", "591", "570"]
    assert chain[0].region is None
    assert all(link.region is not None and link.region.label == "liver" for link in chain[1:])
    made = [label for link in chain[1:] for label in link.labels]
    assert sorted(made) == sorted(label.name for label in registry()["totalsegmentator-liver"].description().labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"kind": "magic"}, "magic"),
        ({"about": None}, "about"),
        ({"archive": {"url": 3}}, "url"),
        ({"kind": "chain", "chain": [{"model": "nowhere", "labels": ["liver"]}]}, "nowhere"),
    ],
)
def test_a_registry_with_unknown_or_missing_things_is_refused(change, message, tmp_path, monkeypatch):
    a_registry(tmp_path, monkeypatch, {"toy": {**an_entry("http://x"), **change}})
    with pytest.raises(ModelError, match=message):
        registry()


def test_a_registry_of_another_version_is_refused(tmp_path, monkeypatch):
    a_registry(tmp_path, monkeypatch, {}, version=2)
    with pytest.raises(ModelError, match="version"):
        registry()


def test_a_name_that_is_not_there_is_answered_with_the_names_there_are():
    with pytest.raises(ModelError, match="obelisk"):
        load_model("obelix")


# --- downloads ----------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_unpacked_loaded_verified_and_removed(server, trained, tmp_path, monkeypatch, home):
    server.files["/toy.zip"] = zipped(trained, tmp_path / "toy.zip")
    a_registry(tmp_path, monkeypatch, {"toy": an_entry(f"{server.address}/toy.zip")})
    seen: list[float] = []
    assert not registry()["toy"].installed()
    folder = download("toy", lambda step, fraction: seen.append(fraction))
    assert folder == download_folder() / "toy"
    assert seen[-1] == pytest.approx(1.0)
    assert registry()["toy"].installed()
    model = load_model("toy")
    assert model.spec.name == "toy"
    assert [label.value for label in model.spec.labels] == [1, 2]
    assert model.spec.license == "CC BY 4.0"
    assert verify_model("toy") == folder
    checkpoint = next(folder.rglob("checkpoint_final.pth"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    for use in (verify_model, load_model):
        with pytest.raises(ModelError, match="SHA-256"):
            use("toy")
    assert remove("toy") == [folder]
    assert left_behind(home) == []


def test_an_interrupted_download_continues_where_it_stopped(server, tmp_path):
    content = os.urandom(3_000_000)
    server.files["/weights"], server.cut["/weights"] = content, 1_200_000
    target = tmp_path / "weights"
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(ModelError, match=r"continue where it stopped"):
        fetch(f"{server.address}/weights", target, sha256=digest)
    assert not target.exists()
    assert fetch(f"{server.address}/weights", target, sha256=digest) == digest
    assert target.read_bytes() == content
    assert server.ranges[0] is None
    start = int(server.ranges[1].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 1_200_000
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_file_with_another_checksum_or_size_is_not_kept(server, tmp_path):
    server.files["/weights"] = b"not what was expected"
    for wanted in ({"sha256": "0" * 64}, {"sha256": None, "size": 22}):
        with pytest.raises(ModelError, match="not the expected file"):
            fetch(f"{server.address}/weights", tmp_path / "weights", **wanted)
        assert list(tmp_path.iterdir()) == []


def test_a_truncated_archive_leaves_nothing_behind(server, trained, tmp_path, monkeypatch, home):
    server.files["/toy.zip"] = zipped(trained, tmp_path / "toy.zip")[:5000]
    a_registry(tmp_path, monkeypatch, {"toy": an_entry(f"{server.address}/toy.zip")})
    with pytest.raises(ModelError, match="not a valid zip file"):
        download("toy")
    assert left_behind(home) == []


def test_a_download_can_be_cancelled_and_needs_space(server, tmp_path, monkeypatch):
    server.files["/weights"] = bytes(3_000_000)
    token = CancelToken()
    with pytest.raises(Cancelled):
        fetch(
            f"{server.address}/weights",
            tmp_path / "weights",
            sha256=None,
            context=RunContext(lambda step, fraction: token.cancel(), token),
        )
    assert not (tmp_path / "weights").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(ModelError, match="Not enough space"):
        fetch(f"{server.address}/weights", tmp_path / "other", sha256=None)


@pytest.mark.parametrize("path", ["/nothing", None])
def test_a_server_without_the_file_or_no_server_is_said_in_one_sentence(path, server, tmp_path):
    url = f"{server.address}{path}" if path else "http://127.0.0.1:9/x"
    with pytest.raises(ModelError, match="404" if path else "connection failed"):
        fetch(url, tmp_path / "x", sha256=None)
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    server.files["http://models.invalid/weights"] = b"through the proxy"
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fetch("http://models.invalid/weights", tmp_path / "weights", sha256=None)
    assert (tmp_path / "weights").read_bytes() == b"through the proxy"


def test_terms_must_be_accepted_once(server, trained, tmp_path, monkeypatch):
    server.files["/toy.zip"] = zipped(trained, tmp_path / "toy.zip")
    licenses = {"code": "MIT", "weights": "NC", "data": "NC", "terms": "Not for commercial use."}
    a_registry(tmp_path, monkeypatch, {"toy": an_entry(f"{server.address}/toy.zip", licenses=licenses)})
    with pytest.raises(ModelError, match=r"Not for commercial use\."):
        download("toy")
    assert server.ranges == []
    download("toy", accept_license=True)
    remove("toy")
    download("toy")


# --- archives and checkpoints that nobody vouches for -------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "C:\\evil.txt", "..\\evil.txt"])
def test_a_zip_that_wants_to_write_elsewhere_is_refused(name, tmp_path, home):
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("card.json", "{}")
        file.writestr(zipfile.ZipInfo(name), "evil")
    with pytest.raises(ModelError, match="outside its folder"):
        import_model(archive)
    assert left_behind(home) == []
    assert not (tmp_path / "evil.txt").exists()


def test_a_zip_with_a_link_is_refused(tmp_path):
    archive = tmp_path / "bad.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="outside its folder"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_link_to_elsewhere_is_refused(trained, tmp_path, home):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    elsewhere = tmp_path / "elsewhere.pth"
    (folder / "fold_0" / "checkpoint_final.pth").rename(elsewhere)
    (folder / "fold_0" / "checkpoint_final.pth").symlink_to(elsewhere)
    with pytest.raises(ModelError, match="outside the folder"):
        import_model(folder)
    assert left_behind(home) == []


def test_code_in_a_checkpoint_is_not_run(trained, tmp_path, home):
    mark = tmp_path / MARK
    folder = poisoned(trained, tmp_path / "bad", mark)
    for use in (load_nnunet, load_model, import_model):
        with pytest.raises(ModelError, match="could run code"):
            use(folder)
    assert not mark.exists()
    assert left_behind(home) == []


def test_a_checkpoint_with_code_is_refused_whoever_vouches_for_it(trained, tmp_path, home):
    mark = tmp_path / MARK
    folder = poisoned(trained, tmp_path / "bad", mark)
    for files in ({}, {"fold_0/checkpoint_final.pth": checksum(folder / "fold_0" / "checkpoint_final.pth")}):
        record = {"source": "x", "date": "y", "files": files, "trusted": True}
        (folder / "origin.json").write_text(json.dumps(record))
        with pytest.raises(ModelError, match="could run code"):
            load_model(folder)
    for use in (load_model, import_model):
        with pytest.raises(ModelError, match="could run code"):
            use(folder, trust=True)
    trust_model(folder)
    with pytest.raises(ModelError, match="could run code"):
        load_model(folder)
    assert not mark.exists()


def test_an_imported_checkpoint_leaves_out_what_only_training_needs(trained, tmp_path, home):
    source = tmp_path / "whole"
    shutil.copytree(trained, source)
    path = source / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "optimizer_state": {"momentum": torch.zeros(500_000)}}, path)
    name, imported = import_model(source, "mine")
    assert imported_models() == [name]
    assert (imported / "fold_0" / path.name).stat().st_size < path.stat().st_size - 1_500_000
    x = torch.randn(1, 1, 16, 16, 16)
    expected = load_nnunet(trained).networks["nnunet"][0](x)
    torch.testing.assert_close(load_model("mine").networks["nnunet"][0](x), expected)
    verify_model("mine")


def test_a_file_that_is_no_checkpoint_is_refused(trained, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(trained, folder)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelError, match="is damaged"):
        load_nnunet(folder)


# --- importing ----------------------------------------------------------------------------------------------------


def test_an_archive_carried_by_hand_gets_the_name_of_the_registry(trained, tmp_path, monkeypatch):
    zipped(trained, tmp_path / "Dataset900_Toy.zip")
    a_registry(tmp_path, monkeypatch, {"toy": an_entry("https://example.org/Dataset900_Toy.zip")})
    assert import_model(tmp_path / "Dataset900_Toy.zip")[0] == "toy"
    assert load_model("toy").spec.title == "A toy"
    with pytest.raises(ModelError, match="already a model"):
        import_model(trained, "toy")


def test_a_model_folder_of_our_own_can_be_imported(tmp_path):
    stage = threshold_model().spec.stages[0]
    network = UNet(features=(4, 8), out_channels=2)
    spec = dataclasses.replace(
        threshold_model().spec,
        stages=(
            dataclasses.replace(
                stage,
                network="UNet",
                arguments={"features": (4, 8), "out_channels": 2},
                weights=("w.safetensors",),
                layers=(),
                default_layer="",
            ),
        ),
    )
    save_model(spec, {"all": [network.state_dict()]}, tmp_path / "model", half=False)
    (tmp_path / "model" / "secret.txt").write_text("not needed")
    name, folder = import_model(tmp_path / "model")
    assert name == "toy"
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "origin.json", "w.safetensors"]
    assert load_model("toy").spec.labels == spec.labels
    assert verify_model("toy") == folder


def test_a_model_is_not_imported_under_a_name_by_which_another_one_is_found(trained, tmp_path, monkeypatch, home):
    taken = ["default", "Default", "totalsegmentator-liver", "TotalSegmentator-8"]
    for name in taken:
        with pytest.raises(ModelError, match=rf"'{name}' is the name of another model"):
            import_model(trained, name)
    spec = dataclasses.replace(threshold_model().spec, name="default")
    monkeypatch.setattr(store_module, "load_folder", lambda *_, **__: SimpleNamespace(spec=spec))
    with pytest.raises(ModelError, match="'default' is the name of another model"):
        import_model(trained)
    assert left_behind(home) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_no_plain_word_is_refused(name, trained, home):
    with pytest.raises(ModelError, match="name"):
        import_model(trained, name or " ")
    with pytest.raises(ModelError, match="name"):
        remove(name)
    assert left_behind(home) == []


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for use in (load_model, import_model):
        with pytest.raises(ModelError, match="does not hold a model"):
            use(tmp_path / "empty")


def test_the_command_line_does_all_this(server, trained, tmp_path, monkeypatch, capsys):
    server.files["/toy.zip"] = zipped(trained, tmp_path / "toy.zip")
    a_registry(tmp_path, monkeypatch, {"toy": an_entry(f"{server.address}/toy.zip")})
    for words, expected in (
        (["list"], "to download"),
        (["show", "toy"], "CC BY 4.0"),
        (["download", "toy"], "License of the weights"),
        (["list"], "on this machine"),
        (["verify", "toy"], "match their checksums"),
        (["show", "toy", "--card"], '"network": "PlainConvUNet"'),
        (["import", str(trained), "--name", "mine"], "mine"),
        (["list"], "imported"),
        (["remove", "mine"], "removed"),
    ):
        assert main(["models", *words]) == 0, words
        assert expected in capsys.readouterr().out, words
    assert main(["models", "verify", "mine"]) == 1
    assert "no model 'mine'" in capsys.readouterr().err


def test_a_list_of_models_needs_no_torch():
    code = (
        "import sys; from LiverXAILib.cli import main; main(['models', 'list']);"
        "main(['models', 'show', 'obelisk']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
