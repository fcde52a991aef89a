# SPDX-License-Identifier: Apache-2.0
"""Configurations of training: an error message is one sentence that names the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from LiverXAILib import cli
from LiverXAILib.errors import InputError, UsageError
from LiverXAILib.training.config import json_schema
from LiverXAILib.training.config_file import parse_config, read_config

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {
    "data": {"layout": "msd", "path": "somewhere"},
    "network": {"spacing": [3, 3, 3]},
    "training": {"patch": [32, 32, 32]},
}


def changed(**groups: Any) -> dict[str, Any]:
    return {**GOOD, **{name: {**GOOD.get(name, {}), **value} for name, value in groups.items()}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (changed(training={"epoch": 3}), r"no setting 'epoch' in 'training'\. Did you mean 'epochs'\?"),
        (changed(training={"epochs": "many"}), r'training\.epochs must be a whole number, not "many"\.'),
        (changed(training={"epochs": 0}), r"training\.epochs must be at least 1, not 0\."),
        (changed(training={"optimizer": "lion"}), r'optimizer must be one of adam, adamw, sgd, not "lion"\.'),
        (changed(data={"validation": 1}), r"data\.validation must be less than 1, not 1\."),
        (
            changed(data={"layout": "folders"}),
            r"data\.layout must be one of msd, nnunet, lits",
        ),
        ({"network": GOOD["network"]}, r"the setting data is missing\."),
        ({"data": {"path": "x"}}, r"the setting data\.layout is missing\."),
        ({**GOOD, "training": {}, "network": {"dimensions": 2, "size": [None, 66, 66]}}, r"divisible by 8"),
        (changed(network={"size": [None, 64, 64]}), r"either spacing or size"),
        ({**GOOD, "training": {}}, r"training\.patch is needed"),
        ({**GOOD, "init": "default"}, r"init brings its own network"),
        ({**GOOD, "stage": "liver"}, r"there is no init"),
        (changed(data={"layout": "phantoms"}), r"data\.phantoms"),
        (changed(data={"phantoms": 4}), r"data\.phantoms"),
        (changed(data={"fold": 1}), r"not data\.folds"),
        (changed(data={"folds": 3, "fold": 3}), r"less than data\.folds \(3\)"),
        (changed(data={"folds": 3, "validation_cases": ["a"]}), r"exclude each other"),
        (changed(training={"dice_weight": 0, "bce_weight": 0}), r"cannot both be 0"),
        (changed(augmentation={"flip": [2]}, network={"dimensions": 2}), r"axis that a 2-D network"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_config(content)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file or folder"):
        read_config(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="Cannot read"):
        read_config(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_text("data: [", encoding="utf-8")
    with pytest.raises(UsageError, match=r"c\.yaml, line 1: this is not YAML"):
        read_config(path)
    path.write_text("- data", encoding="utf-8")
    with pytest.raises(UsageError, match="consists of settings"):
        read_config(path)


def test_the_command_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(changed(training={"epoch": 3})), encoding="utf-8")
    assert cli.main(["train", str(path)]) == 2
    assert cli.main(["train"]) == 2
    assert cli.main(["train", str(path), "--set", "training"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "Did you mean 'epochs'?" in errors[0]


@pytest.mark.parametrize(
    ("value", "expected"), [("1e-3", 1e-3), (1e-3, 1e-3), ("2.5E-4", 2.5e-4), ("1", 1.0)], ids=repr
)
def test_a_number_may_be_written_as_yaml_reads_it_or_not(value: Any, expected: float) -> None:
    # YAML 1.1 parses 1e-3, which has no dot, as text.
    assert parse_config(changed(training={"learning_rate": value})).training.learning_rate == expected


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"training": {"learning_rate": "fast"}}, r'learning_rate must be a number, not "fast"\.'),
        ({"training": {"learning_rate": float("nan")}}, r"learning_rate must be (a number|more than 0)"),
        ({"training": {"learning_rate": True}}, r"learning_rate must be a number"),
        ({"training": {"epochs": 2.5}}, r"training\.epochs must be a whole number, not 2\.5\."),
        ({"training": {"freeze_norm": "perhaps"}}, r"freeze_norm must be true or false"),
        ({"training": 3}, r"training must be a group of settings, not 3\."),
        ({"training": {"patch": [3]}}, r"training\.patch must have at least 2 entries, not \[3\]\."),
        ({"network": {"spacing": [3, 3]}}, r"network\.spacing"),
        ({"network": {"spacing": [3, 3, "x"]}}, r"network\.spacing\.2 must be a number"),
        ({"network": {"intensity": {"scale": 0}}}, r"network\.intensity\.scale must be more than 0, not 0\."),
        ({"network": {"intensity": {"hight": 0}}}, r"in 'network\.intensity'\. Did you mean 'high'\?"),
        ({"data": {"fold": "some"}}, r'data\.fold must be a whole number or one of all, not "some"\.'),
        ({"data": {"fold": -1}}, r"data\.fold must be at least 0"),
        ({"data": {"labels": {"liver": "x"}}}, r"data\.labels\.liver must be a whole number or a list"),
        ({"data": {"labels": {"liver": [1, 0]}}}, r"data\.labels\.liver"),
        ({"data": {"labels": {}}}, r"the setting data\.labels\.liver is missing\."),
        ({"data": {"labels": {"liver": 1, "tumour": 2}}}, r"in 'data\.labels'\. Did you mean 'tumor'\?"),
        ({"data": {"exclude": "case"}}, r"data\.exclude must be a list"),
        ({"hardware": {"devices": 0}}, r"hardware\.devices must be at least 1"),
    ],
)
def test_wrong_values_of_every_kind_are_named(groups: dict[str, Any], sentence: str) -> None:
    content = {**GOOD, **{name: value for name, value in groups.items() if not isinstance(value, dict)}}
    content |= changed(**{name: value for name, value in groups.items() if isinstance(value, dict)}) if groups else {}
    content |= {name: value for name, value in groups.items() if not isinstance(value, dict)}
    with pytest.raises(UsageError, match=sentence) as caught:
        parse_config(content)
    assert "\n" not in str(caught.value)


def test_the_schema_for_editors_describes_every_setting() -> None:
    schema = json_schema()
    groups = schema["$defs"]
    settings = {f"{group}.{name}": one for group in groups for name, one in groups[group]["properties"].items()}
    settings |= schema["properties"]

    def described(one: dict[str, Any]) -> bool:
        return "description" in one or "description" in groups.get(one.get("$ref", "").rpartition("/")[2], {})

    assert len(settings) > 60
    assert [name for name, one in settings.items() if not described(one)] == []


def test_the_schema_for_editors_agrees_with_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        validator.validate(read_config(path).plain())
    for wrong in (changed(training={"epoch": 3}), changed(training={"epochs": 0}), {"network": GOOD["network"]}):
        assert not validator.is_valid(wrong)


def test_the_command_line_changes_any_setting(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    config = read_config(path, {"training.epochs": 3, "data.path": "elsewhere", "hardware.devices": 2})
    assert (config.name, config.training.epochs, config.data.path, config.hardware.devices) == (
        "mine",
        3,
        "elsewhere",
        2,
    )
    assert config.folder == Path("runs/mine")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_of_the_repository_are_right_and_can_be_written_out_and_read_again(path: Path) -> None:
    config = read_config(path)
    assert parse_config(config.plain()) == config


def test_hardware_may_change_when_a_run_is_resumed_and_the_recipe_may_not() -> None:
    before = parse_config(GOOD)
    assert parse_config(changed(hardware={"workers": 2}, finish={"explain": "grad-cam"})).recipe() == before.recipe()
    assert parse_config(changed(training={"epochs": 7})).recipe() != before.recipe()
