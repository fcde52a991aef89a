# SPDX-License-Identifier: Apache-2.0
"""Networks with a known mechanism: an explanation names every planted cause, and no wrong map passes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from LiverXAILib.benchmarks.explanations import audit
from LiverXAILib.benchmarks.explanations.audit import (
    DEFAULT_ANSWERS,
    audit_answers,
    audit_maps,
    audit_oracles,
    format_tables,
    planted_case,
    tagged_case,
)
from LiverXAILib.benchmarks.explanations.explain import LAYER_METHODS
from LiverXAILib.benchmarks.explanations.planted import MECHANISMS, Tagged
from LiverXAILib.cli import main
from LiverXAILib.context import RunContext
from LiverXAILib.explain import DEFAULT_METHOD, explain_all

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = RunContext(device="cpu")


@cache
def the_case(name):
    return planted_case(MECHANISMS[name])


@pytest.mark.parametrize("name", MECHANISMS)
def test_default_answers_name_every_planted_cause_and_no_other(name):
    rows = audit_answers(the_case(name), CONTEXT, DEFAULT_ANSWERS)
    assert [row["answer"] for row in rows] == ["counterfactual", "border"]
    assert [row["says"] for row in rows] == [row["truth"] for row in rows]


@pytest.mark.parametrize("name", ["AND", "SHIFT"])
def test_regions_name_the_marker(name):
    (row,) = audit_answers(the_case(name), CONTEXT, ["regions"])
    assert row["says"] == row["truth"]


@pytest.mark.parametrize("name", MECHANISMS)
def test_no_verdict_contradicts_a_planted_cause(name):
    """All maps that are computed from a layer, correct maps, and wrong maps."""
    case = the_case(name)
    made, oracles = audit_maps(case, LAYER_METHODS, CONTEXT), audit_oracles(case, DEFAULT_METHOD)
    assert [row["map"] for row in made] == list(LAYER_METHODS)
    for row in made:
        assert row["verdict"] != "passed" or row["at_causes"] >= 0.5, row
    verdicts = {row["map"]: row["verdict"] for row in oracles}
    assert verdicts.pop("exact") == "passed"
    assert set(verdicts) == {"92 % elsewhere"} | (set() if MECHANISMS[name].by_lesion else {"at the target"})
    assert set(verdicts.values()) == {"failed"}
    assert "| " + name + " | 92 % elsewhere | 8% | failed |" in format_tables([], oracles)


def test_of_a_local_network_the_default_map_lies_at_the_lesion_and_passes_as_its_own_check_says():
    case = the_case("LOCAL")
    (made,) = audit_maps(case, [DEFAULT_METHOD], CONTEXT)
    assert made["at_causes"] > 0.99
    assert made["verdict"] == "passed"
    (map_,) = explain_all(case.volume, case.model, case.segmentation, ["lesion:1"], check=True, device="cpu")
    assert map_.faithfulness["sentence"] == made["sentence"]


def test_of_a_shifting_network_the_default_map_lies_at_the_marker_on_any_processor():
    """A gradient that rounding decides about would leave the map at the target."""
    (made,) = audit_maps(the_case("SHIFT"), [DEFAULT_METHOD], CONTEXT)
    assert made["at_causes"] > 0.99


@pytest.mark.parametrize(("row", "code"), [({"right": True}, 0), ({"right": False}, 1), ({"contradicted": True}, 1)])
def test_the_command_fails_where_a_cause_is_not_named_or_a_wrong_map_passed(row, code, monkeypatch, capsys):
    answer = {"mechanism": "AND", "answer": "regions", "truth": "lesion", "says": "lesion", "right": True}
    map_ = {"mechanism": "AND", "map": "edges", "at_causes": 0.1, "verdict": "passed", "contradicted": False}
    found = [{name: row.get(name, value) for name, value in known.items()} for known in (answer, map_)]
    monkeypatch.setattr(audit, "benchmark_audit", lambda **options: ([found[0]], [found[1]]))
    assert main(["benchmark", "audit"]) == code
    assert "| AND |" in capsys.readouterr().out


def test_a_wrong_answer_and_a_map_that_passed_wrongly_are_shown():
    answer = {"mechanism": "AND", "answer": "regions", "truth": "lesion and surroundings", "says": "lesion"}
    wrong = {"mechanism": "AND", "map": "edges", "at_causes": 0.1, "verdict": "passed", "contradicted": True}
    table = format_tables([{**answer, "right": False}], [wrong])
    assert "**no**" in table
    assert "**passed, wrongly**" in table
    assert "no explanation names: AND" in table


def test_a_shortcut_around_the_bundled_model_is_named_by_the_counterfactual():
    """The image has a lesion and a bright tag in air, without which the model finds no lesion."""
    (row,) = audit_answers(tagged_case(), CONTEXT, ["counterfactual"])
    assert row["says"] == "lesion and surroundings"
    assert "is not enough: the model needs its surroundings" in row["sentence"]


class Bright(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], dim=1)


def test_the_shortcut_lets_a_network_find_lesions_only_with_a_bright_tag_in_air():
    network = Tagged(Bright())
    body = torch.full((1, 1, 32, 32, 32), -2.0)
    body[..., 16:] = 0.5
    assert (network(body)[:, 1] < -9).all()
    in_body, in_air = body.clone(), body.clone()
    in_body[..., 22:26, 22:26, 22:26] = 2.0
    in_air[..., 12:16, 12:16, 5:9] = 2.0
    assert (network(in_body)[:, 1] < -9).all()
    torch.testing.assert_close(network(in_air)[:, 1], in_air[:, 0])
    torch.testing.assert_close(network(body)[:, 0], body[:, 0])
