# SPDX-License-Identifier: Apache-2.0
"""Networks whose mechanism is known: every planted cause is named by an answer, and no wrong map passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from LiverXAILib.benchmarks.explanations.audit import (
    audit_answers,
    audit_maps,
    audit_oracles,
    format_tables,
    planted_case,
)
from LiverXAILib.benchmarks.explanations.planted import MECHANISMS, Tagged
from LiverXAILib.context import RunContext
from LiverXAILib.explain import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = RunContext(device="cpu")


@pytest.mark.parametrize("name", MECHANISMS)
def test_default_answers_name_every_planted_cause_and_no_other(name):
    rows = audit_answers(planted_case(MECHANISMS[name]), CONTEXT, regions=False)
    assert [row["answer"] for row in rows] == ["counterfactual", "border"]
    assert [row["says"] for row in rows] == [row["truth"] for row in rows]


@pytest.mark.parametrize("name", ["AND", "SHIFT"])
def test_regions_name_the_marker(name):
    (row,) = (row for row in audit_answers(planted_case(MECHANISMS[name]), CONTEXT) if row["answer"] == "regions")
    assert row["says"] == row["truth"]


def test_of_a_local_network_exact_maps_pass_and_one_that_lies_elsewhere_fails():
    case = planted_case(MECHANISMS["LOCAL"])
    exact, elsewhere = audit_oracles(case, METHODS["hires-cam"], CONTEXT)
    assert exact["verdict"] == "passed"
    assert elsewhere["verdict"] == "failed"
    (made,) = audit_maps(case, ["hires-cam"], CONTEXT)
    assert made["at_causes"] > 0.99
    assert made["verdict"] == "passed"
    table = format_tables([], [exact, elsewhere, made])
    assert "| LOCAL | 92 % elsewhere | 8% | failed |" in table
    assert "0 of 3" in table


def test_a_wrong_answer_and_a_map_that_passed_wrongly_are_shown():
    answer = {"mechanism": "AND", "answer": "regions", "truth": "lesion and surroundings", "says": "lesion"}
    wrong = {"mechanism": "AND", "map": "edges", "at_causes": 0.1, "verdict": "passed", "contradicted": True}
    table = format_tables([{**answer, "right": False}], [wrong])
    assert "**no**" in table
    assert "**passed, wrongly**" in table
    assert "no answer names: AND" in table


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
