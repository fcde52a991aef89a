# SPDX-License-Identifier: Apache-2.0
"""Evaluate explanations: maps against controls, replacements of surroundings, networks of known mechanism."""
