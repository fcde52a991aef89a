# SPDX-License-Identifier: Apache-2.0
"""The study's recipe (configs/study-2d.yaml) on real CT, leaving out each anatomy in turn: docs/study.md."""
