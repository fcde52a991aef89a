# SPDX-License-Identifier: Apache-2.0
"""The study's recipe (configs/study-2d.yaml) on real CT, each anatomy left out in turn: docs/study.md."""
