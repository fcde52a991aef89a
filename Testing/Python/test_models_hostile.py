# SPDX-License-Identifier: Apache-2.0
"""Invalid cards, bundles and archives are refused on loading, with a message, in bounded time and memory."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_toys import write_model

from LiverXAILib.errors import ModelError
from LiverXAILib.models import import_model, load_model


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIVERXAI_MODELS", raising=False)
    return tmp_path / "home" / "liverxai" / "models"


def changed(toy: Path, folder: Path, change: Any) -> Path:
    """A copy of the toy; `change` edits the contents of its card, or returns its text."""
    shutil.copytree(toy, folder)
    card = json.loads((folder / "card.json").read_text())
    text = change(card)
    (folder / "card.json").write_text(text if isinstance(text, str) else json.dumps(card))
    return folder


def at(*path: Any, value: Any) -> Any:
    """A change that sets a value in a card."""

    def change(card: Any) -> None:
        for key in path[:-1]:
            card = card[key]
        card[path[-1]] = value

    change.__name__ = f"{'.'.join(map(str, path))}={str(value)[:20]}"
    return change


STAGE = ("stages", 0)
CARDS = [
    *(at(*STAGE, "spacing", value=[value, 4.0, 4.0]) for value in (0, -4.0, float("nan"), float("inf"), 1e-30, 1e30)),
    at(*STAGE, "spacing", value=[4.0, 4.0]),
    *(at(*STAGE, "divisor", value=[2, 2, value]) for value in (0, -2, 2.5, 10**9, "2", True)),
    *(at(*STAGE, "window", value=[32, 32, value]) for value in (0, -32, 10**9, float("nan"))),
    *(at(*STAGE, "overlap", value=value) for value in (-0.1, 1.0, float("nan"))),
    *(at(*STAGE, "intensity", "scale", value=value) for value in (0, float("nan"), 1e300)),
    at(*STAGE, "intensity", "low", value=1000),
    *(at(*STAGE, "axes", value=value) for value in ("SPS", "", "XYZ", "S" * 10**6)),
    at(*STAGE, "default_layer", value="encoder.17"),
    at(*STAGE, "layers", 0, "name", value="nowhere.to.be.found"),
    at(*STAGE, "layers", 0, "stride", value=[0, 2, 2]),
    at(*STAGE, "channels", value=["liver", "liver"]),
    at(*STAGE, "labels", value={"liver": ["liver"], "tumor": ["bone"]}),
    at(*STAGE, "labels", value={"liver": ["liver"], "bone": ["tumor"]}),
    at(*STAGE, "activation", value="exec"),
    *(at(*STAGE, "network", value=value) for value in ("os.system", "", "UNet\x1b[2J", "Nope")),
    *(at(*STAGE, "arguments", "features", value=value) for value in ([], [0, 2], [-2, 2], [2] * 10**5, [10**9, 2])),
    at(*STAGE, "arguments", "out_channels", value=10**9),
    at(*STAGE, "arguments", "convolutions_per_stage", value=10**6),
    at(*STAGE, "arguments", "norm", value="__import__('os')"),
    *(at(*STAGE, "weights", value=[value]) for value in ("../weights.safetensors", "/etc/passwd", "C:\\x", "a\0b", "")),
    at(*STAGE, "sha256", value=["0" * 63]),
    at(*STAGE, "sha256", value=[]),
    *(at("labels", 0, "value", value=value) for value in (-1, 0, 256, 1.5, float("nan"), True, None)),
    at("labels", 1, "value", value=1),
    at("labels", 1, "name", value="liver"),
    at("labels", 1, "parent", value="tumor"),
    at("labels", 1, "parent", value="nobody"),
    at("labels", 0, "color", value=[-1, 0, 300]),
    at("labels", value=[]),
    at("stages", value=[]),
    at("name", value=""),
    at("name", value="a\nb"),
    at("name", value=["a"]),
    at("stages", value={"a": 1}),
    at("unknown", value=1),
    lambda card: card["stages"].extend(card["stages"] * 10**4),
    lambda card: card["stages"].append(card["stages"][0]),
    lambda card: json.dumps(card)[:-20],
    lambda card: json.dumps(card).replace('"name"', '"name": "x", "name"', 1),
    lambda card: "[" * 10**5 + "]" * 10**5,
    lambda card: '{"a":' * 10**5,
    lambda card: "1" * 10**5,
    lambda card: '{"name": "' + "a" * 40_000_000 + '"}',
    lambda card: "",
    lambda card: "null",
]


@pytest.mark.parametrize("change", CARDS, ids=lambda change: f"{change.__name__}")
def test_a_card_that_makes_no_sense_is_refused(change, toy, tmp_path):
    with pytest.raises(ModelError) as refused:
        load_model(changed(toy, tmp_path / "model", change))
    assert 10 < len(str(refused.value)) < 2100
    assert str(refused.value).isprintable() or "\n" in str(refused.value)


def test_a_card_that_is_a_folder_a_pipe_or_not_text_is_refused(toy, tmp_path):
    folder = changed(toy, tmp_path / "model", at("name", value="x"))
    (folder / "card.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError):
        load_model(folder)
    (folder / "card.json").unlink()
    (folder / "card.json").mkdir()
    with pytest.raises(ModelError):
        load_model(folder)


# --- MONAI bundles ------------------------------------------------------------------------------------------------

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
}


TRANSFORMS = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0]},
    {"_target_": "ScaleIntensityRanged", "a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0},
]
SENSIBLE = {
    "preprocessing": {"_target_": "Compose", "transforms": TRANSFORMS},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.5},
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "softmax": True}]},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The weights of the network with the channels 4 and 8."""
    from monai.networks import nets

    path = tmp_path_factory.mktemp("weights") / "model.pt"
    arguments = {name: value for name, value in NETWORK.items() if name != "_target_"}
    torch.save(nets.UNet(**arguments).state_dict(), path)
    return path


def bundle(folder: Path, weights: Path, channels: Any, **others: Any) -> Path:
    """A bundle whose network has these channels; `others` are added to its configuration."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    shutil.copyfile(weights, folder / "models" / "model.pt")
    config = {"network_def": {**NETWORK, "channels": channels}, **SENSIBLE, **others}
    channel_def = {"0": "background", "1": "liver", "2": "tumor"}
    formats = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": channel_def}}}
    metadata = {"name": "x", "version": "1", "network_data_format": formats}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_the_bundle_that_is_changed_below_is_a_sensible_one(weights, tmp_path):
    load_model(bundle(tmp_path / "bundle", weights, "$[4, 2 * 4]"))


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "$1 / 0",
            "$1 // 0",
            "$1 % 0",
            "$0 ** -1",
            "$10 ** 10 ** 10",
            "$2 ** 10 ** 9",
            "$1e300 * 1e300",
            "$'a' * 10 ** 9",
        ),
        *(
            "$[0] * 10 ** 9",
            "$(4,) * 10 ** 9",
            "$-" + "-" * 900 + "1",
            "$" + "(" * 400 + "1" + ")" * 400,
            "$" + "1+" * 10**5 + "1",
        ),
        *("$", "$ ", "$)", "$1 if", "$lambda: 1", "$(x := 1)", "$open('/etc/passwd')", "$@nothing", "$@network_def"),
        *("@network_def#channels", "@a@b", "$'%s' % 1", "$f'{1}'", "$1 << 10 ** 9", "$len(5)", "$len()", "$min()"),
    ],
)
def test_an_expression_that_makes_no_sense_is_refused(expression, weights, tmp_path):
    with pytest.raises(ModelError):
        load_model(bundle(tmp_path / "bundle", weights, expression))


def test_a_bundle_whose_values_refer_to_each_other_is_refused(weights, tmp_path):
    circle = {"a": "@b", "b": "@a"}
    with pytest.raises(ModelError, match="refers to itself"):
        load_model(bundle(tmp_path / "circle", weights, "@a", **circle))
    doubling = {f"a{n}": [f"@a{n + 1}"] * 10 for n in range(12)} | {"a12": [1]}
    with pytest.raises(ModelError):
        load_model(bundle(tmp_path / "doubling", weights, "@a0", **doubling))


# --- archives -----------------------------------------------------------------------------------------------------


def zipped(toy: Path, path: Path) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    for one in toy.iterdir():
        archive.write(one, one.name)
    return archive


def assert_refused(archive: Path, home: Path) -> None:
    with pytest.raises(ModelError):
        import_model(archive)
    assert not home.exists() or not list(home.iterdir())


def test_an_archive_of_more_than_5_000_files_is_refused(toy, tmp_path, home):
    with zipped(toy, tmp_path / "model.zip") as archive:
        for number in range(5_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    assert_refused(tmp_path / "model.zip", home)


def test_an_archive_that_unfolds_to_far_more_than_it_is_is_refused(toy, tmp_path, home):
    with zipped(toy, tmp_path / "model.zip") as archive:
        archive.writestr("zeros", bytes(100_000_000))
    assert_refused(tmp_path / "model.zip", home)


def test_an_archive_that_lies_about_the_size_of_a_file_is_refused(toy, tmp_path, home):
    with zipped(toy, tmp_path / "model.zip") as archive:
        archive.writestr("zeros", bytes(50_000_000))
    raw = (tmp_path / "model.zip").read_bytes()
    assert struct.pack("<I", 50_000_000) in raw
    (tmp_path / "model.zip").write_bytes(raw.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 10)))
    assert_refused(tmp_path / "model.zip", home)


def test_an_archive_within_itself_or_deep_in_folders_is_refused(toy, tmp_path, home):
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer, zipped(toy, tmp_path / "model.zip"):
        outer.write(tmp_path / "model.zip", "model.zip")
    assert_refused(tmp_path / "outer.zip", home)
    with zipped(toy, tmp_path / "deep.zip") as archive:
        archive.writestr("/".join("d" * 3000), b"")
    assert_refused(tmp_path / "deep.zip", home)
