# SPDX-License-Identifier: Apache-2.0
"""Verdict and sentence about a map, from the numbers of its check and nothing else.

A map passes if what it marks most matters: replacing the voxels that it ranks highest, as many as the target has, must
have at least half the effect of replacing everything, and more than the upper quartile of any kind of control (image
edges, random places, maps of networks with shuffled weights); and at least half of the map must lie where the effect
comes from. Between the controls' median and upper quartile it is undecided. Rank correlations with shuffled networks
are reported but decide nothing: a map may resemble that of a shuffled network and still be right (Binder et al., CVPR
2023, https://arxiv.org/abs/2211.12486).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fraction of the whole effect that the voxels ranked highest must have.
DROP = 0.5
#: Fraction of the map that must lie in the smallest region with 90 % of the effect.
ENERGY = 0.5
#: Confidence that must be lost when everything is replaced; otherwise the map cannot be tested.
TESTABLE = 0.05
#: What a pass means and what it does not mean: the last sentence about every map that passed.
PASSED_MEANS = "It is faithful to the model; whether the model is right about the patient is another question."


def verdict_and_sentence(card: Mapping[str, Any], *, empty: bool, warned: bool, depends_on_far: str) -> tuple[str, str]:
    """The verdict ("passed", "undecided", "failed" or "untestable") and the sentence about it.

    :param empty: the map is 0 everywhere.
    :param warned: there is a warning about the map (degenerate layer …).
    :param depends_on_far: why the examined box does not represent the image; "" if it does.
    """
    if depends_on_far:
        return "untestable", f"This map could not be checked: {depends_on_far}"
    before, after = card["score"], card["score_replaced"]
    if before - after < TESTABLE:
        return "untestable", (
            f"This map could not be checked: even replacing everything takes the model's confidence only from "
            f"{before:.2f} to {after:.2f}."
        )
    failed = ["it is empty"] if empty else _failed_checks(card)
    if warned:
        failed.append("there is a warning about it")
    if failed:
        return "failed", f"This map did not pass: {'; '.join(failed)}."
    drop = card["drop"]
    upper = drop["controls"]["upper"]
    if drop["share"] <= upper:
        return "undecided", (
            f"This map is undecided: {_effect(card)} ({drop['share']:.0%} of what replacing everything does), but a "
            f"quarter of the controls that explain nothing get {upper:.0%} or more."
        )
    return "passed", (
        f"This map passed: {_effect(card)} ({drop['share']:.0%} of what replacing everything does); three quarters of "
        f"the controls that explain nothing get {max(upper, 0.0):.0%} or less. {PASSED_MEANS}"
    )


def _effect(card: Mapping[str, Any]) -> str:
    drop = card["drop"]
    return (
        f"replacing the {two_digits(drop['ml'])} ml that it marks most takes the model's confidence from "
        f"{card['score']:.2f} to {drop['after']:.2f}"
    )


def _failed_checks(card: Mapping[str, Any]) -> list[str]:
    """Why a map does not pass, as parts of a sentence."""
    drop, magnitude = card["drop"], card["magnitude"]
    failed = []
    if drop["share"] < DROP:
        failed.append(f"{_effect(card)}, where replacing everything takes it to {card['score_replaced']:.2f}")
    elif drop["share"] <= drop["controls"]["median"]:
        failed.append(
            "controls that explain nothing (image edges, random places, maps of networks with shuffled weights) mark "
            "what the model's confidence depends on as well"
        )
    if magnitude["energy"] < ENERGY:
        failed.append(
            f"only {magnitude['energy']:.0%} of it lies in the {two_digits(magnitude['ml'])} ml that "
            f"{magnitude['effect']:.0%} of the effect comes from"
        )
    return failed


def two_digits(value: float) -> str:
    """Two significant digits, without an exponent for the usual volumes in ml: 0.42, 4.2, 42, 420."""
    return f"{float(f'{value:.2g}'):g}"
