# SPDX-License-Identifier: Apache-2.0
"""Code in a model's files runs only if the user allowed exactly these files; a folder cannot declare itself trusted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import threshold_model

from LiverXAILib.cli import main
from LiverXAILib.errors import ModelError
from LiverXAILib.models import load_model
from LiverXAILib.models.downloads import checksum
from LiverXAILib.models.store import import_model, revoke_trust, trust_model
from LiverXAILib.models.trust import trust_file


class Thresholds(nn.Module):
    """Logits of background, liver and tumor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-x, x, x - 1.0], dim=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a compiled model, in a home folder without settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "share" / "compiled"
    folder.mkdir(parents=True)
    torch.jit.trace(Thresholds(), torch.zeros(1, 1, 8, 8, 8)).save(str(folder / "network.ts"))
    spec = threshold_model().spec
    stage = dataclasses.replace(
        spec.stages[0],
        network="TorchScript",
        weights=("network.ts",),
        sha256=(checksum(folder / "network.ts"),),
        layers=(),
        default_layer="",
    )
    (folder / "card.json").write_text(dataclasses.replace(spec, name="compiled", stages=(stage,)).to_json())
    return folder


def refused(model: Path | str) -> None:
    with pytest.raises(ModelError, match="liverxai models trust"):
        load_model(model)


@pytest.mark.parametrize("trusted", [True, "true", 1])
def test_what_a_folder_says_about_itself_counts_for_nothing(folder, trusted):
    record = {"source": "x", "date": "y", "files": {}, "trusted": trusted}
    (folder / "origin.json").write_text(json.dumps(record))
    refused(folder)
    shutil.copy(folder / "card.json", folder / "trusted-models.json")
    refused(folder)


def test_the_users_folder_of_models_is_as_untrusted_as_any(folder, monkeypatch):
    (folder / "origin.json").write_text(json.dumps({"source": "x", "date": "y", "files": {}, "trusted": True}))
    monkeypatch.setenv("LIVERXAI_MODELS", str(folder.parent))
    refused("compiled")
    trust_model("compiled")
    assert load_model("compiled").spec.name == "compiled"


def test_trust_is_kept_outside_the_model_and_can_be_taken_back(folder):
    before = sorted(path.name for path in folder.rglob("*"))
    trust_model(folder)
    assert load_model(folder).spec.name == "compiled"
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert trust_file().is_file()
    assert revoke_trust(folder)
    refused(folder)
    assert not revoke_trust(folder)


def test_the_same_files_elsewhere_are_trusted_and_any_change_is_not(folder, tmp_path):
    trust_model(folder)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    load_model(elsewhere)
    card = json.loads((elsewhere / "card.json").read_text())
    (elsewhere / "card.json").write_text(json.dumps({**card, "title": "Another"}))
    refused(elsewhere)


def test_another_program_with_its_own_checksum_is_asked_for_again(folder):
    trust_model(folder)
    torch.jit.trace(nn.Identity(), torch.zeros(1, 1, 8, 8, 8)).save(str(folder / "network.ts"))
    card = json.loads((folder / "card.json").read_text())
    card["stages"][0]["sha256"] = [checksum(folder / "network.ts")]
    (folder / "card.json").write_text(json.dumps(card))
    refused(folder)


def test_an_import_with_trust_remembers_it_for_these_files_alone(folder):
    with pytest.raises(ModelError, match="liverxai models trust"):
        import_model(folder)
    name, imported = import_model(folder, trust=True)
    assert load_model(name).spec.name == "compiled"
    assert "trusted" not in json.loads((imported / "origin.json").read_text())


def test_a_list_of_trusted_models_that_is_damaged_trusts_nothing(folder):
    trust_model(folder)
    trust_file().write_text(trust_file().read_text()[:-20])
    with pytest.raises(ModelError, match="list of trusted models"):
        load_model(folder)


def test_trust_is_given_on_the_command_line_after_the_files_were_shown(folder, capsys, monkeypatch):
    assert main(["models", "trust", str(folder)]) != 0
    refused(folder)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "no")
    assert main(["models", "trust", str(folder)]) == 1
    refused(folder)
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    capsys.readouterr()
    assert main(["models", "trust", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert checksum(folder / "network.ts") in shown
    assert "with all your rights" in shown
    load_model(folder)
    assert main(["models", "trust", str(folder), "--revoke"]) == 0
    refused(folder)
    assert main(["models", "trust", str(folder), "--yes"]) == 0
    load_model(folder)
